"""What numbers mean, in libibverbs' words."""

from __future__ import annotations

from typing import Final

_WC_STATUS: Final = (
    "success",
    "local length error",
    "local QP operation error",
    "local EE context operation error",
    "local protection error",
    "Work Request Flushed Error",
    "memory management operation error",
    "bad response error",
    "local access error",
    "remote invalid request error",
    "remote access error",
    "remote operation error",
    "transport retry counter exceeded",
    "RNR retry counter exceeded",
    "local RDD violation error",
    "remote invalid RD request",
    "aborted error",
    "invalid EE context number",
    "invalid EE context state",
    "fatal error",
    "response timeout error",
    "general error",
    "TM error",
    "TM software rendezvous",
)


def wc_status_to_str(status: int) -> str:
    """`ibv_wc_status_str`."""
    return _WC_STATUS[status] if 0 <= status < len(_WC_STATUS) else f"unknown ({status})"
