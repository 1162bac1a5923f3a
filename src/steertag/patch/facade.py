"""The class that stands for `socket.socket` while a program is patched."""

from __future__ import annotations

import socket as std
import sys
import threading
from typing import Any, ClassVar, Final

from steertag.family.stack import Stack
from steertag.patch.policy import Policy
from steertag.patch.sockets import INTERNET, PatchedSocket, PolicySocket, made_by
from steertag.socket.base import HostSocket
from steertag.socket.base import socket as ours
from steertag.socket.file import File

_KINDS: Final = (int(std.SOCK_STREAM), int(std.SOCK_DGRAM))
_FLAGS: Final = int(std.SOCK_NONBLOCK | std.SOCK_CLOEXEC)
_making = threading.local()


class _Kind(type(ours)):  # type: ignore[misc]
    """The host's sockets and ours are instances of it, whatever their classes."""

    def __instancecheck__(cls, instance: object) -> bool:
        if type.__instancecheck__(cls, instance):
            return True
        return cls is Facade and isinstance(instance, HostSocket | ours)

    def __subclasscheck__(cls, subclass: type) -> bool:
        if type.__subclasscheck__(cls, subclass):
            return True
        return cls is Facade and issubclass(subclass, HostSocket | ours)


class Facade(ours, metaclass=_Kind):
    """`socket.socket` of a patched program: it makes what the policy says.

    What is not a stream or datagram socket of AF_INET or AF_INET6 is the host's; so is what the
    chosen family has not, what has a descriptor of the host's, and what steertag makes for itself.
    """

    __module__ = "socket"
    __qualname__ = "socket"

    policy: ClassVar[Policy | None] = None
    stack: ClassVar[Stack]
    _for_process = PatchedSocket
    # For those who call them on the class.
    makefile = HostSocket.makefile  # type: ignore[assignment]  # the same, with overloads

    def __new__(
        cls, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None
    ) -> Any:
        policy = Facade.policy
        if policy is None or getattr(_making, "inside", False) or _is_ours(sys._getframe(1)):
            return HostSocket(family, type, proto, fileno)
        domain = int(std.AF_INET if family == -1 else family)
        if fileno is not None:
            return cls._of_fd(fileno, family, type, proto)
        kind = int(std.SOCK_STREAM if type == -1 else type)
        flags, kind = kind & _FLAGS, kind & ~_FLAGS
        if domain in INTERNET and kind in _KINDS:
            _making.inside = True
            try:
                made = cls._chosen(policy, domain, kind, 0 if proto == -1 else int(proto))
            finally:
                _making.inside = False
            if made is not None:
                if flags & std.SOCK_NONBLOCK:
                    made.setblocking(False)
                return made
        if cls is Facade:
            return HostSocket(family, type, proto)
        return cls._wrap(Facade.stack.sock_create(domain, kind, 0 if proto == -1 else proto))

    @classmethod
    def _chosen(cls, policy: Policy, domain: int, kind: int, proto: int) -> ours | None:
        if policy.rules is not None and cls is Facade:
            return PolicySocket(Facade.stack, policy, domain, kind, proto)
        return made_by(Facade.stack, policy.default, domain, kind, proto, cls)

    @classmethod
    def _of_fd(cls, fd: int, family: int, type: int, proto: int) -> Any:
        file = File.of_fd(Facade.stack, fd) if fd >= 0 else None
        if file is None:
            return HostSocket(family, type, proto, fd)
        file.take_fd(fd)
        made = cls._wrap(file.sock, file, fd)
        if isinstance(made, PatchedSocket) and family in INTERNET:
            made._domain = int(family)
        return made

    @classmethod
    def _class_for(cls, implementation: type[ours]) -> type:
        return implementation if cls is Facade else super()._class_for(implementation)


def _is_ours(frame: Any) -> bool:
    """Whether steertag asks, itself or through a function of the standard module's."""
    name = frame.f_globals.get("__name__", "")
    if name == "socket" and frame.f_back is not None:
        name = frame.f_back.f_globals.get("__name__", "")
    return bool(name.startswith("steertag."))
