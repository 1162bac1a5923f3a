"""A decoder of iWARP: MPA, DDP and RDMAP out of the TCP connections of a capture.

    decoder = Decoder()
    for frame in decoder.decode(read_capture("siw.pcap")):
        print(line(frame, decoder.summary.time_ns or 0))

It is made of what a frame passes through: `reassembly` puts segments in order, `framing` cuts them
into FPDUs (`search` where their boundaries were lost, `markers` where there are any), `headers`
reads one, `order` says whether it may come now; `text` and `objects` show it.
"""

from steertag.observe.decode.decoder import Decoder, Summary
from steertag.observe.decode.frames import FpduFrame, Frame, Link, MpaFrame, Note
from steertag.observe.decode.objects import frame_object, summary_object
from steertag.observe.decode.text import line, summary_lines

__all__ = [
    "Decoder",
    "FpduFrame",
    "Frame",
    "Link",
    "MpaFrame",
    "Note",
    "Summary",
    "frame_object",
    "line",
    "summary_lines",
    "summary_object",
]
