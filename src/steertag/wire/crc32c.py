"""CRC32C (Castagnoli), the checksum of an MPA FPDU (RFC 5044 section 4.4, RFC 3385).

Initial value and final inversion are those of iSCSI. On the wire the 32 bits are stored with the
least significant octet first, unlike every other integer of iWARP.
"""

import struct
from typing import Final

from fastcrc.crc32 import iscsi as crc32c

__all__ = ["CRC_FIELD", "RESIDUE", "crc32c"]

CRC_FIELD: Final = struct.Struct("<I")
RESIDUE: Final = 0x48674BC7
"""The CRC32C of any octets and their own CRC field behind them."""
