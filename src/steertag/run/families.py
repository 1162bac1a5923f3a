"""Which family serves a program's sockets, by the names that options and rules have for it, and the
Stack that has it.
"""

from __future__ import annotations

import errno
import importlib
import os
import socket as std

from steertag.family import net
from steertag.family.stack import Stack
from steertag.run import sockaddr
from steertag.run.launch import RunConfig


def family_number(name: str, domain: int) -> int:
    """The family that serves a socket of `domain`, by its name in RunConfig or in rules."""
    if name in ("host", "tcp"):
        return domain
    if name == "new_tcp":
        from steertag.inet.const import AF_INET_NEW_TCP

        return AF_INET_NEW_TCP
    if name in ("sdp", "both"):
        return 27  # AF_INET_SDP
    return int(name)


def open_stack(config: RunConfig) -> Stack:
    """The data process's Stack, with the family that was asked for.

    Raises:
        OSError: it can't be had; which, and why.
    """
    if config.device is not None:
        os.environ["STEERTAG_DEVICE"] = config.device
    from steertag.socket.default import default_stack

    stack = default_stack()
    for name in config.modules:
        _import(stack, name)
    if config.family.isdecimal():
        _look_for(stack, config.family, f"--family {config.family}")
    else:
        family = family_number(config.family, sockaddr.AF_INET)
        try:
            net.sock_release(stack.sock_create(family, std.SOCK_STREAM, 0))
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(error.errno, f"family {config.family}: {reason}") from error
    if config.rules is not None:
        for rule in config.rules.rules:
            if rule.use.isdecimal():
                where = f"--rules {config.rules.name}:{rule.line}: {rule.use}"
                _look_for(stack, rule.use, where)
    return stack


def _look_for(stack: Stack, number: str, where: str) -> None:
    """Raises OSError: nobody has registered that family."""
    for kind in (std.SOCK_STREAM, std.SOCK_DGRAM, std.SOCK_SEQPACKET):
        try:
            net.sock_release(stack.sock_create(int(number), kind, 0))
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
        return
    raise OSError(
        errno.EAFNOSUPPORT,
        f"{where}: nobody has registered that family; install the package that brings it,"
        " or name its module with --import",
    )


def _import(stack: Stack, name: str) -> None:
    """A module that brings a family: it registers at import, or its `register(stack)` does.

    Raises:
        OSError: it can't, whatever it is that the module raises.
    """
    try:
        module = importlib.import_module(name)
        register = getattr(module, "register", None)
        if callable(register):
            register(stack)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise OSError(errno.ENOEXEC, f"--import {name}: {what}") from error
