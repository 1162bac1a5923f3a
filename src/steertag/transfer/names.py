"""File names: octets that a person may read, a program may parse and a terminal must not obey.

Inside the mover a name is a `str` as `os.fsdecode` gives it (octets that are no UTF-8 become lone
surrogates), so that every name that a file system can hold survives the trip.
"""

from __future__ import annotations

import os


def escape(name: str) -> str:
    r"""`name` with everything that a terminal could act on written as an escape.

    Printable characters stay; a backslash doubles; control characters and octets that are no
    UTF-8 become ``\xNN``; other unprintable ones (bidirectional overrides, say) ``\uNNNN``.
    """
    return "".join(map(_escape_character, name))


def _escape_character(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    point = ord(character)
    if 0xDC80 <= point <= 0xDCFF:  # an octet that os.fsdecode could not decode
        return f"\\x{point - 0xDC00:02x}"
    if point < 0x100:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def is_encodable(name: str) -> bool:
    """Whether the file system's encoding can hold `name` (a stranger's surrogates may not fit)."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False


def printable(text: str) -> str:
    """A line from a stranger, safe to print: like `escape`, but what it escaped stays as it is."""
    return "".join(c if c == "\\" else _escape_character(c) for c in text)
