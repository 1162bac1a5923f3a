"""tshark as an independent reader of iWARP."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from steertag.wire.rdmap import Opcode
from tests.support import require_tool

_OPCODE: Final = re.compile(r"= OpCode: .*\(0x([0-9a-f]+)\)$", re.MULTILINE)
_START_FRAME: Final = re.compile(r"ID Re[qp] frame: [0-9a-f]{32}$", re.MULTILINE)
_VERIFY_CHECKSUMS: Final = ("-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE")


@dataclass(frozen=True)
class Verdict:
    """What tshark says of a capture.

    Attributes:
        good, bad: FPDUs whose CRC it found good or bad.
        opcodes: FPDUs by RDMAP opcode.
        start_frames: MPA Request and Reply frames.
        malformed: frames that it could not decode.
        bad_checksums: packets with a wrong checksum of IPv4 or TCP.
        text: all of it.
    """

    good: int
    bad: int
    opcodes: Counter[Opcode]
    start_frames: int
    malformed: int
    bad_checksums: int
    text: str


def shown(capture: Path, *options: str) -> str:
    """What tshark prints of `capture`."""
    # Without this option, tshark takes some payloads for RPC-over-RDMA.
    command = [require_tool("tshark"), "--disable-protocol", "rpcordma", "-r", str(capture)]
    return subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=120, check=True
    ).stdout


def judge(capture: Path, *, verify_checksums: bool = True) -> Verdict:
    """Let tshark decode `capture`.

    Args:
        verify_checksums: of IPv4 and TCP too; a capture of a sender that leaves them to its network
            card has wrong ones, and tshark then reassembles nothing.
    """
    text = shown(capture, *(_VERIFY_CHECKSUMS if verify_checksums else ()), "-V")
    return Verdict(
        good=text.count("(Good CRC32)"),
        bad=text.count("(Bad CRC32"),
        opcodes=Counter(Opcode(int(code, 16)) for code in _OPCODE.findall(text)),
        start_frames=len(_START_FRAME.findall(text)),
        malformed=text.count("Malformed Packet"),
        bad_checksums=len(re.findall(r"[Cc]hecksum [Ss]tatus: Bad", text)),
        text=text,
    )
