"""What pyverbs has for devices of certain vendors; there are none here.

Their modules can be imported, so that programs that ask before they use them run. Their classes
and functions refuse, as they do on another vendor's device.
"""

from __future__ import annotations

import sys
from functools import partial
from types import ModuleType

from steertag.compat.pyverbs.base import PyverbsCM
from steertag.compat.pyverbs.pyverbs_error import unsupported


class _Refusing(PyverbsCM):
    """A class of a vendor's provider."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        raise unsupported(f"{type(self).__name__}: it is another vendor's device")


class _Provider(ModuleType):
    """A module of a vendor's: every class and function that is asked for is there."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or name.isupper():
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if name[0].isupper():
            kind: object = type(name, (_Refusing,), {"__module__": self.__name__})
        else:
            kind = partial(_refuse, name)
        setattr(self, name, kind)
        return kind


def _refuse(name: str, *args: object, **kwargs: object) -> None:
    """A function of a vendor's provider."""
    raise unsupported(f"{name}: it is another vendor's device")


def module(name: str) -> ModuleType:
    """The module `pyverbs.<name>`, made when it is first asked for."""
    full = f"pyverbs.{name}"
    known = sys.modules.get(full)
    if known is not None:
        return known
    made = _Provider(full, __doc__)
    made.__path__ = []
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(module(parent), child, made)
    sys.modules[full] = made
    return made
