"""TCP packets as scripts write them, after packetdrill, and their octets.

    [ce] PU. 1:1001(1000) ack 1 win 257 urg 5 <TS val 7 ecr 3,sack 1:9 20:30>
    S 0:0(0) win 65535 <mss 1460,sackOK,TS val 7 ecr 0,wscale 7>

Flags are F S R P . (ACK) U E (ECE) W (CWR). Sequence numbers count from each end's initial one.
This is a codec of the tests' own, written from the RFCs: what it says of the Stack's packets is a
second opinion.
"""

from __future__ import annotations

import re
import socket
import struct
from dataclasses import dataclass, field, replace
from typing import Final

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << bit for bit in range(8))
LETTERS: Final = {"F": FIN, "S": SYN, "R": RST, "P": PSH, ".": ACK, "U": URG, "E": ECE, "W": CWR}
ECN: Final = {"noecn": 0, "ect1": 1, "ect0": 2, "ce": 3}
MASK: Final = 0xFFFFFFFF
TCP, ICMP, ICMP6 = 6, 1, 58


class Malformed(ValueError):
    """Not a packet, or not the text of one."""


@dataclass
class Tcp:
    """A TCP packet. In a template None is what isn't said: not compared, or left to the sender.

    Attributes:
        sacks: SACK blocks; None without the option.
        fast_open: the cookie; None without the option.
        options: the kinds of the options in the order they stand, NOP left out.
        ecn: of the IP header, 0..3.
        valid: both checksums are right.
    """

    flags: int = ACK
    seq: int = 0
    ack: int = 0
    window: int | None = None
    urgent: int = 0
    payload: bytes = b""
    mss: int | None = None
    wscale: int | None = None
    sack_ok: bool = False
    tsval: int | None = None
    tsecr: int | None = None
    sacks: list[tuple[int, int]] | None = None
    fast_open: bytes | None = None
    options: tuple[int, ...] | None = None
    ecn: int | None = None
    sport: int = 0
    dport: int = 0
    source: str = ""
    dest: str = ""
    ttl: int = 64
    valid: bool = True
    raw_options: bytes | None = field(default=None, repr=False)

    @property
    def length(self) -> int:
        return len(self.payload)

    @property
    def end_seq(self) -> int:
        """One past the last sequence number that it takes."""
        return (self.seq + self.length + bool(self.flags & SYN) + bool(self.flags & FIN)) & MASK

    def relative(self, own: int, peer: int) -> Tcp:
        """With numbers that count from the initial ones of its sender and of its receiver."""
        sacks = self.sacks and [((a - peer) & MASK, (b - peer) & MASK) for a, b in self.sacks]
        ack = (self.ack - peer) & MASK if self.flags & ACK else 0
        return replace(self, seq=(self.seq - own) & MASK, ack=ack, sacks=sacks)

    def absolute(self, own: int, peer: int) -> Tcp:
        """The inverse of `relative`."""
        return self.relative(-own, -peer)

    def __str__(self) -> str:
        letters = "".join(letter for letter, bit in LETTERS.items() if self.flags & bit)
        text = f"{letters} {self.seq}:{(self.seq + self.length) & MASK}({self.length})"
        if self.flags & ACK:
            text += f" ack {self.ack}"
        if self.window is not None:
            text += f" win {self.window}"
        if self.urgent:
            text += f" urg {self.urgent}"
        names = {ecn: name for name, ecn in ECN.items()}
        prefix = f"[{names[self.ecn]}] " if self.ecn else ""
        return f"{prefix}{text} <{','.join(self._option_texts())}>"

    def _option_texts(self) -> list[str]:
        texts = []
        if self.mss is not None:
            texts.append(f"mss {self.mss}")
        if self.sack_ok:
            texts.append("sackOK")
        if self.tsval is not None:
            texts.append(f"TS val {self.tsval} ecr {self.tsecr}")
        if self.wscale is not None:
            texts.append(f"wscale {self.wscale}")
        if self.fast_open is not None:
            texts.append(f"FO {self.fast_open.hex()}".rstrip())
        if self.sacks is not None:
            texts.append("sack " + " ".join(f"{a}:{b}" for a, b in self.sacks))
        return texts


# -- text ----------------------------------------------------------------------------------------

_PACKET: Final = re.compile(
    r"(?:\[(?P<ecn>\w+)\] )?(?P<flags>[FSRP.UEW]+) (?P<seq>\d+):(?P<end>\d+)\((?P<length>\d+)\)"
    r"(?: ack (?P<ack>\d+))?(?: win (?P<win>\d+))?(?: urg (?P<urg>\d+))?(?: <(?P<options>.*)>)?"
)


@dataclass
class Template:
    """What a script says of a packet: `packet`, and which of its fields were said at all."""

    packet: Tcp
    said: frozenset[str]
    echo: bool = False
    """`TS ... ecr last`: the receiver's latest timestamp is echoed."""


def parse_text(text: str) -> Template:
    """A packet's text. Raises Malformed."""
    match = _PACKET.fullmatch(text)
    if match is None:
        raise Malformed(text)
    seq, end, length = (int(match[name]) for name in ("seq", "end", "length"))
    if (end - seq) & MASK != length:
        raise Malformed(f"{text}: {end} - {seq} isn't {length}")
    packet = Tcp(flags=sum(LETTERS[letter] for letter in match["flags"]), seq=seq & MASK)
    packet.payload = filler(seq, length)
    said = {"flags", "seq", "length"}
    for name, attribute in (("ack", "ack"), ("win", "window"), ("urg", "urgent")):
        if match[name] is not None:
            setattr(packet, attribute, int(match[name]) & MASK)
            said.add(attribute)
    if match["ecn"] is not None:
        packet.ecn = ECN[match["ecn"]]
        said.add("ecn")
    echo = False
    if match["options"] is not None:
        said.add("options")
        packet.options = ()
        for option in filter(None, match["options"].split(",")):
            echo |= _option_text(packet, option.strip(), said)
    return Template(packet, frozenset(said), echo)


def _option_text(packet: Tcp, text: str, said: set[str]) -> bool:
    words = text.split()
    kind, values = words[0], words[1:]
    assert packet.options is not None
    if kind == "mss":
        packet.mss, number = _number(values, "mss", said), 2
    elif kind == "wscale":
        packet.wscale, number = _number(values, "wscale", said), 3
    elif kind == "sackOK":
        packet.sack_ok, number = True, 4
    elif kind == "sack":
        packet.sacks, number = [_block(word) for word in values], 5
        said.add("sacks")
    elif kind == "FO":
        packet.fast_open, number = bytes.fromhex("".join(values)), 34
        if values:
            said.add("fast_open")
    elif kind == "TS":
        packet.options += (8,)
        return _timestamps(packet, dict(zip(values[::2], values[1::2], strict=True)), said)
    else:
        raise Malformed(text)
    packet.options += (number,)
    return False


def _number(values: list[str], name: str, said: set[str]) -> int:
    if not values:
        return 0  # there, whatever it says
    said.add(name)
    return int(values[0])


def _block(text: str) -> tuple[int, int]:
    left, right = text.split(":")
    return int(left) & MASK, int(right) & MASK


def _timestamps(packet: Tcp, values: dict[str, str], said: set[str]) -> bool:
    packet.tsval = packet.tsecr = 0
    if "val" in values:
        packet.tsval = int(values["val"]) & MASK
        said.add("tsval")
    if values.get("ecr") == "last":
        return True
    if "ecr" in values:
        packet.tsecr = int(values["ecr"]) & MASK
        said.add("tsecr")
    return False


def filler(seq: int, length: int) -> bytes:
    """The octets that scripts send from `seq` on: each says where it belongs."""
    start = seq % 251
    return (_PATTERN * (length // len(_PATTERN) + 2))[start : start + length]


_PATTERN: Final = bytes(range(251))


def differences(found: Tcp, template: Template) -> list[str]:
    """In what a packet is not as the template says; both relative.

    Where a segment is pushed is the sender's own affair (RFC 9293 section 3.9.1.2): data that is
    said without P may have it.
    """
    wanted, wrong = template.packet, []
    hidden = PSH & ~wanted.flags if wanted.length else 0
    pairs: list[tuple[str, object, object]] = [
        ("flags", found.flags & ~hidden, wanted.flags),
        ("seq", found.seq, wanted.seq),
        ("length", found.length, wanted.length),
    ]
    others = sorted(template.said - {"flags", "seq", "length"})
    pairs += [(name, getattr(found, name), getattr(wanted, name)) for name in others]
    pairs.append(("valid checksums", found.valid, True))
    wrong += [f"{name}: {is_!r}, not {should!r}" for name, is_, should in pairs if is_ != should]
    return wrong


# -- octets --------------------------------------------------------------------------------------


def checksum(octets: bytes) -> int:
    """RFC 1071, not complemented for the caller's sake: 0xFFFF over a right packet."""
    if len(octets) % 2:
        octets += b"\0"
    total: int = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def _packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def _pseudo(source: bytes, dest: bytes, protocol: int, length: int) -> bytes:
    if len(source) == 4:
        return source + dest + struct.pack("!BBH", 0, protocol, length)
    return source + dest + struct.pack("!IxxxB", length, protocol)


def emit_options(packet: Tcp) -> bytes:
    """In the order that `options` says, each padded to four octets."""
    if packet.raw_options is not None:
        return packet.raw_options
    out = b""
    for kind in packet.options or ():
        if kind == 2:
            out += struct.pack("!BBH", 2, 4, packet.mss)
        elif kind == 3:
            out += struct.pack("!BBBB", 1, 3, 3, packet.wscale)
        elif kind == 4:
            out += bytes((1, 1, 4, 2))
        elif kind == 5:
            blocks = b"".join(struct.pack("!II", *block) for block in packet.sacks or ())
            out += bytes((1, 1, 5, 2 + len(blocks))) + blocks
        elif kind == 8:
            out += struct.pack("!BBBBII", 1, 1, 8, 10, packet.tsval, packet.tsecr)
        elif kind == 34:
            cookie = packet.fast_open or b""
            out += bytes((34, 2 + len(cookie))) + cookie
            out += b"\x01" * (-len(out) % 4)
    return out


def emit(packet: Tcp) -> bytes:
    """The IP packet; wrong checksums where `valid` is False."""
    source, dest = _packed(packet.source), _packed(packet.dest)
    options = emit_options(packet)
    offset = (20 + len(options)) // 4 << 12 | packet.flags
    window = 65535 if packet.window is None else packet.window
    ack = packet.ack if packet.flags & ACK else 0
    header = struct.pack(
        "!HHIIHHHH", packet.sport, packet.dport, packet.seq, ack, offset, window, 0, packet.urgent
    )
    segment = header + options + packet.payload
    total = checksum(_pseudo(source, dest, TCP, len(segment)) + segment)
    field = (total ^ 0xFFFF) if packet.valid else total ^ 0xFFFE
    segment = segment[:16] + struct.pack("!H", field) + segment[18:]
    return ip_header(source, dest, TCP, len(segment), packet.ecn or 0, packet.ttl) + segment


def ip_header(
    source: bytes, dest: bytes, protocol: int, length: int, tos: int = 0, ttl: int = 64
) -> bytes:
    """Of a packet with `length` octets behind it."""
    if len(source) == 16:
        first = 6 << 28 | tos << 20
        return struct.pack("!IHBB", first, length, protocol, ttl) + source + dest
    fields = (0x45, tos, 20 + length, 1, 0x4000, ttl, protocol)
    header = struct.pack("!BBHHHBB", *fields) + bytes(2) + source + dest
    return header[:10] + struct.pack("!H", checksum(header) ^ 0xFFFF) + header[12:]


def parse(octets: bytes) -> Tcp | None:
    """A TCP packet; None for another protocol. Raises Malformed for what nobody should send."""
    split = _split_ip(octets)
    if split is None:
        return None
    source, dest, ecn, ttl, segment, ip_valid = split
    if len(segment) < 20:
        raise Malformed("a TCP header cut short")
    sport, dport, seq, ack, offset, window, _, urgent = struct.unpack_from("!HHIIHHHH", segment)
    header = offset >> 12 << 2
    if not 20 <= header <= len(segment):
        raise Malformed(f"data offset of {header} octets")
    total = checksum(_pseudo(source, dest, TCP, len(segment)) + segment)
    family = socket.AF_INET if len(source) == 4 else socket.AF_INET6
    packet = Tcp(
        flags=offset & 0xFF,
        seq=seq,
        ack=ack,
        window=window,
        urgent=urgent,
        payload=segment[header:],
        ecn=ecn,
        sport=sport,
        dport=dport,
        source=socket.inet_ntop(family, source),
        dest=socket.inet_ntop(family, dest),
        ttl=ttl,
        valid=ip_valid and total == 0xFFFF,
    )
    _parse_options(packet, segment[20:header])
    return packet


def _split_ip(octets: bytes) -> tuple[bytes, bytes, int, int, bytes, bool] | None:
    if octets[0] >> 4 == 6:
        first, length, protocol, ttl = struct.unpack_from("!IHBB", octets)
        if protocol != TCP:
            return None
        if len(octets) != 40 + length:
            raise Malformed(f"IPv6 length {length} in a frame of {len(octets)}")
        return octets[8:24], octets[24:40], first >> 20 & 3, ttl, octets[40:], True
    header, tos, total, _, fragment, ttl, protocol = struct.unpack_from("!BBHHHBB", octets)
    if protocol != TCP or fragment & 0x3FFF:
        return None
    size = (header & 15) * 4
    if total != len(octets):
        raise Malformed(f"IPv4 length {total} in a frame of {len(octets)}")
    valid = checksum(octets[:size]) == 0xFFFF
    return octets[12:16], octets[16:20], tos & 3, ttl, octets[size:], valid


def _parse_options(packet: Tcp, octets: bytes) -> None:
    kinds, at = [], 0
    while at < len(octets) and octets[at]:
        kind = octets[at]
        if kind == 1:
            at += 1
            continue
        size = octets[at + 1] if at + 1 < len(octets) else 0
        if size < 2 or at + size > len(octets):
            raise Malformed(f"option {kind} of {size} octets")
        _parse_option(packet, kind, octets[at + 2 : at + size])
        kinds.append(kind)
        at += size
    packet.options = tuple(kinds)


def _parse_option(packet: Tcp, kind: int, value: bytes) -> None:
    if kind == 2:
        (packet.mss,) = struct.unpack("!H", value)
    elif kind == 3:
        packet.wscale = value[0]
    elif kind == 4:
        packet.sack_ok = True
    elif kind == 5:
        numbers = struct.unpack(f"!{len(value) // 4}I", value)
        packet.sacks = list(zip(numbers[::2], numbers[1::2], strict=True))
    elif kind == 8:
        packet.tsval, packet.tsecr = struct.unpack("!II", value)
    elif kind == 34:
        packet.fast_open = value


def icmp_error(quoted: bytes, source: str, dest: str, kind: int, code: int, info: int = 0) -> bytes:
    """An ICMP or ICMPv6 error about `quoted`; `info` fills the second word (the MTU)."""
    packed = _packed(source), _packed(dest)
    v6 = len(packed[0]) == 16
    room = 1232 if v6 else 28
    message = struct.pack("!BBHI", kind, code, 0, info) + quoted[:room]
    protocol = ICMP6 if v6 else ICMP
    pseudo = _pseudo(*packed, protocol, len(message)) if v6 else b""
    message = message[:2] + struct.pack("!H", checksum(pseudo + message) ^ 0xFFFF) + message[4:]
    return ip_header(*packed, protocol, len(message)) + message
