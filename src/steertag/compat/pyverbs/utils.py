"""pyverbs' helpers: GIDs, and what numbers mean."""

from __future__ import annotations

from collections.abc import Mapping

from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs.pyverbs_error import PyverbsUserError

_QP_TYPES = {
    2: "RC",
    3: "UC",
    4: "UD",
    8: "Raw Packet",
    9: "XRCD_SEND",
    10: "XRCD_RECV",
    0xFF: "Driver QP",
}
_QP_STATES = ("Reset", "Init", "RTR", "RTS", "SQD", "SQE", "Error", "Unknown")
_MTUS = {1: 256, 2: 512, 3: 1024, 4: 2048, 5: 4096}
_ACCESS = {
    1: "Local write",
    2: "Remote write",
    4: "Remote read",
    8: "Remote atomic",
    16: "MW bind",
    32: "Zero based",
    64: "On demand",
}
_MIGRATION = ("Migrated", "Re-arm", "Armed")


def be64toh(num: int) -> int:
    """A number in network byte order, as this host has it."""
    return int.from_bytes(num.to_bytes(8, "big"), "little")


def gid_str(subnet_prefix: int, interface_id: int) -> str:
    """The text of a GID whose halves are in network byte order."""
    digits = f"{be64toh(subnet_prefix):016x}{be64toh(interface_id):016x}"
    return ":".join(digits[at : at + 4] for at in range(0, 32, 4))


def gid_str_to_array(val: str) -> list[str]:
    """The 16 octets of a GID's text, two hexadecimal digits each."""
    groups = val.split(":")
    if len(groups) != 8 or any(len(group) != 4 for group in groups):
        raise PyverbsUserError(f"Invalid GID value ({val})")
    try:
        bytes.fromhex("".join(groups))
    except ValueError:
        raise PyverbsUserError(f"Invalid GID value ({val})") from None
    return [group[at : at + 2] for group in groups for at in (0, 2)]


def qp_type_to_str(qp_type: int) -> str:
    return _QP_TYPES.get(qp_type, f"Unknown ({qp_type})")


def qp_state_to_str(qp_state: int) -> str:
    known = 0 <= qp_state < len(_QP_STATES)
    return _QP_STATES[qp_state] if known else f"Unknown ({qp_state})"


def mtu_to_str(mtu: int) -> int:
    return _MTUS.get(mtu, 0)


def access_flags_to_str(flags: int) -> str:
    return flags_to_str(flags, _ACCESS)


def mig_state_to_str(mig: int) -> str:
    return _MIGRATION[mig] if 0 <= mig < len(_MIGRATION) else f"Unknown ({mig})"


def rereg_error_to_str(error: int) -> str:
    try:
        return e.ibv_rereg_mr_err_code(error).name
    except ValueError:
        return f"Unknown error ({error})"


def flags_to_str(flags: int, names: Mapping[int, str], separator: str = " ") -> str:
    """The names of the bits that are set, a separator behind each."""
    return "".join(name + separator for bit, name in names.items() if flags & bit)
