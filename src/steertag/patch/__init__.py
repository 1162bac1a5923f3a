"""Existing programs over a family that a policy chooses: `steertag.patch()`.

    import steertag
    steertag.patch("sdp")               # or rules="policy.conf"; before sockets are made
    ...
    steertag.unpatch()

`with steertag.patch(...):` undoes it at the end of the block. `python -m steertag.patch PROGRAM`
does it for a program as it is. docs/how-to/drop-in-sockets.md says what works and what does not.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from steertag.patch.install import Patch, patch, unpatch
from steertag.patch.policy import FAMILY_VARIABLE, Policy
from steertag.patch.tls import wrap_socket

__all__ = ["FAMILY_VARIABLE", "Patch", "Policy", "patch", "unpatch", "wrap_socket"]


class _Callable(types.ModuleType):
    """The module, which is called as its function: `steertag.patch` names both."""

    def __call__(self, *args: Any, **kwargs: Any) -> Patch:
        return patch(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
