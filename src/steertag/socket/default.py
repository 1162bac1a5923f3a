"""The Stack that module-level calls use, made when first asked for."""

from __future__ import annotations

import errno
import os
import threading

from steertag.errors import os_error
from steertag.family import modules
from steertag.family.proto import Proto
from steertag.family.proto_ops import NetProtoFamily
from steertag.family.stack import Stack
from steertag.host import register
from steertag.inet.const import AF_INET_NEW_TCP
from steertag.sdp.options import AF_INET_SDP

SYSCTL_VARIABLE = "STEERTAG_SYSCTL"
_OF_FAMILY = {
    "net.ipv4.": AF_INET_NEW_TCP,
    "net.ipv6.": AF_INET_NEW_TCP,
    "net.sdp.": AF_INET_SDP,
}

_lock = threading.Lock()
_default: Stack | None = None


def default_stack() -> Stack:
    """The process's default Stack, with the host's families registered.

    The environment variable STEERTAG_SYSCTL may set its parameters: "name=value" pairs separated
    by semicolons. STEERTAG_DEVICE says which devices AF_INET_NEW_TCP has, which are opened when
    the family is used for the first time (see steertag.runtime.interfaces). AF_INET_SDP's are
    SDP_FALLBACK, SDP_ZCOPY_THRESH, SDP_CONFIG and STEERTAG_SDP_TRANSPORT.

    Raises:
        OSError: ENOENT or EINVAL, the variable names no parameter or no value for it.
    """
    global _default
    if _default is not None:
        return _default
    with _lock:
        if _default is None:
            stack = Stack(load_family=_load_family)
            register(stack)
            apply_environment(stack)
            _default = stack
        return _default


def _load_family(stack: Stack, family: int) -> None:
    # Imported here: who has no use for them pays nothing for them.
    if family == AF_INET_NEW_TCP:
        from steertag.runtime.interfaces import open_environment

        open_environment(stack)
    elif family == AF_INET_SDP:
        from steertag.runtime import sdp

        config = sdp.SdpConfig.from_environment()
        if config.carrier == "new_tcp" and AF_INET_NEW_TCP not in stack.families:
            _load_family(stack, AF_INET_NEW_TCP)
        sdp.register(stack, config)
    else:
        modules.request_module(stack, family)


def apply_environment(stack: Stack) -> None:
    """Set what STEERTAG_SYSCTL says."""
    for pair in os.environ.get(SYSCTL_VARIABLE, "").split(";"):
        name, equals, value = pair.strip().partition("=")
        if not name:
            continue
        if not equals:
            raise os_error(errno.EINVAL, f"{SYSCTL_VARIABLE}: {name!r} has no value")
        for prefix, family in _OF_FAMILY.items():
            if name.startswith(prefix) and family not in stack.families:
                _load_family(stack, family)  # which brings these parameters
        stack.sysctl.write(name.strip(), value.strip())


def proto_register(prot: Proto) -> None:
    """`Stack.proto_register` of the default Stack."""
    default_stack().proto_register(prot)


def proto_unregister(prot: Proto) -> None:
    """`Stack.proto_unregister` of the default Stack."""
    default_stack().proto_unregister(prot)


def sock_register(family: NetProtoFamily) -> None:
    """`Stack.sock_register` of the default Stack."""
    default_stack().sock_register(family)


def sock_unregister(family: int) -> None:
    """`Stack.sock_unregister` of the default Stack."""
    default_stack().sock_unregister(family)
