"""Deadlines of what waits."""

from __future__ import annotations

import time


def deadline_after(timeout: float | None) -> float | None:
    """When `timeout` seconds from now are over; None waits for ever."""
    return None if timeout is None else time.monotonic() + timeout
