"""pyverbs' `fork`: memory that is registered needs no care when a process forks."""

from __future__ import annotations

from steertag.compat.pyverbs import libibverbs_enums as e


def fork_init() -> None:
    """There is nothing to prepare."""


def is_fork_initialized() -> int:
    return e.ibv_fork_status.IBV_FORK_UNNEEDED
