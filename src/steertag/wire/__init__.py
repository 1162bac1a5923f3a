"""Pure codecs, one header per file: bytes in, dataclass out, and back. No I/O, no state."""
