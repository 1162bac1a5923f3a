"""`stag decode`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Final

import click

from steertag.cli.interrupt import keep_interrupts

if TYPE_CHECKING:
    from steertag.observe.decode import Decoder, Frame

_BAD: Final = 1
_UNREADABLE: Final = 2
_INTERRUPTED: Final = 130


@click.command()
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.option(
    "--stream", "streams", multiple=True, type=click.IntRange(0), metavar="N",
    help="Only TCP connection N, counted from 0 as tshark's tcp.stream; may be repeated.",
)  # fmt: skip
@click.option(
    "--port", "ports", multiple=True, type=click.IntRange(0, 0xFFFF), metavar="PORT",
    help="Only connections with this TCP port, taken for iWARP; may be repeated.",
)  # fmt: skip
@click.option("--bad", "bad_only", is_flag=True, help="Print only what is wrong.")
@click.option("-c", "--limit", type=click.IntRange(1), metavar="N", help="Stop after N frames.")
@click.option("-l", "--line-buffered", is_flag=True, help="Flush after each line.")
def decode(
    file: str,
    as_json: bool,
    streams: tuple[int, ...],
    ports: tuple[int, ...],
    bad_only: bool,
    limit: int | None,
    line_buffered: bool,
) -> None:
    """Decode the iWARP connections in a capture, one line a frame.

    FILE is a pcap or pcapng file, also gzip'd or xz'd; - is standard input. Exit code 1 says that
    something is bad: a CRC, a frame, the order of segments, a gap in the capture; 2 that the
    capture cannot be read.
    """
    from steertag.observe.decode import Decoder, frame_object, line

    decoder = Decoder(streams=streams, ports=ports)
    printed = _Printed(limit, line_buffered)

    def show(frame: Frame) -> str:
        start = decoder.summary.time_ns or 0
        return _json(frame_object(frame, start)) if as_json else line(frame, start)

    error = _print(file, decoder, printed, show, bad_only=bad_only)
    _print_end(decoder, printed, error, as_json=as_json, choosy=bool(streams or ports))
    if error is not None:
        sys.exit(_UNREADABLE)
    if decoder.summary.bad:
        sys.exit(_BAD)


class _Printed:
    """Lines that go to standard output; the limit counts the frames among them."""

    def __init__(self, limit: int | None, flush: bool) -> None:
        self._left = limit
        self._flush = flush
        self.stopped = False

    def line(self, text: str, *, counts: bool) -> None:
        sys.stdout.write(text + "\n")
        if self._flush:
            sys.stdout.flush()
        if counts and self._left is not None:
            self._left -= 1
            self.stopped = self._left == 0


def _print(
    file: str,
    decoder: Decoder,
    printed: _Printed,
    show: Callable[[Frame], str],
    *,
    bad_only: bool,
) -> str | None:
    """Print the frames of a capture; the answer says why it can't be read to its end."""
    from steertag.errors import WireError
    from steertag.observe.capture import read_capture
    from steertag.observe.decode import Note

    name = click.format_filename(file)
    source: str | BinaryIO = sys.stdin.buffer if file == "-" else file
    frames: Iterator[Frame] = decoder.decode(read_capture(source))
    keep_interrupts()
    try:
        while not printed.stopped:
            try:
                frame = next(frames, None)
            except WireError as exc:
                return f"{name}: {exc}; {_advice(decoder)}"
            except OSError as exc:
                return f"{name}: {exc.strerror or exc}; check the name and its owner and mode"
            if frame is None:
                break
            if frame.bad or not bad_only:
                printed.line(show(frame), counts=not isinstance(frame, Note))
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        raise SystemExit(_INTERRUPTED) from None
    unknown = decoder.summary.unknown_linktypes
    if unknown and sum(unknown.values()) == decoder.summary.packets:
        types = ", ".join(map(str, unknown))
        return f"{name}: no packet of link type {types} can be read; capture on an IP interface"
    return None


def _advice(decoder: Decoder) -> str:
    if decoder.summary.packets:
        return f"what is before that, {decoder.summary.packets} packets, was decoded"
    return "give a file of tcpdump's or Wireshark's, pcap or pcapng"


def _print_end(
    decoder: Decoder, printed: _Printed, error: str | None, *, as_json: bool, choosy: bool
) -> None:
    from steertag.observe.decode import summary_lines, summary_object

    summary = decoder.summary
    if error is not None:
        click.echo(f"stag: {error}", err=True)
        if as_json:
            printed.line(
                _json({"type": "error", "code": _UNREADABLE, "message": error}), counts=False
            )
    if as_json:
        printed.line(_json(summary_object(summary)), counts=False)
    elif summary.packets or error is None:
        lines = summary_lines(summary)
        if printed.stopped:
            lines.append("stopped at the limit: what follows in the capture wasn't looked at")
        elif summary.tcp_streams and not summary.iwarp_streams and choosy:
            lines.append("no iWARP connection is among those that --stream and --port choose")
        elif summary.tcp_streams and not summary.iwarp_streams:
            lines.append("no connection is iWARP by the looks of it; --port PORT insists on one")
        sys.stdout.flush()  # so that the summary comes last where both go to one place
        click.echo("\n".join(lines), err=True)


def _json(found: dict[str, object]) -> str:
    import json

    return json.dumps(found, separators=(",", ":"))
