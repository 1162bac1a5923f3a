"""Where processes that may be looked into leave their sockets, and whom to trust there.

The directory is private to its user: a real directory (no symbolic link), owned by the user, that
nobody else can enter. Everything in it is reached through a descriptor of the directory, so that
what was checked is what is used, whatever becomes of the path meanwhile.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import socket as host
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from steertag.errors import os_error

VARIABLE: Final = "STEERTAG_INSPECT"
"""Environment: a directory instead of the usual one, or `off`."""
_OFF: Final = frozenset({"off", "0", "no"})
_NAME: Final = re.compile(r"([1-9]\d{0,9})\.sock")
_HIDDEN: Final = re.compile(r"\.[0-9a-f]{16}")
_HIDDEN_SECONDS: Final = 60.0
_CONNECT_SECONDS: Final = 2.0


def directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """The directory of this user's sockets; None where the environment says `off`.

    `$STEERTAG_INSPECT`, else `$XDG_RUNTIME_DIR/steertag`, else `/run/user/UID/steertag`, else
    `/tmp/steertag-UID`.
    """
    said = environ.get(VARIABLE, "").strip()
    if said:
        return None if said.lower() in _OFF else Path(said)
    uid = os.geteuid()
    for base in (environ.get("XDG_RUNTIME_DIR", ""), f"/run/user/{uid}"):
        # A directory of somebody else is left over from su or sudo.
        if base and os.path.isdir(base) and os.stat(base).st_uid == uid:
            return Path(base, "steertag")
    return Path(f"/tmp/steertag-{uid}")


@contextmanager
def opened(path: Path, *, create: bool) -> Iterator[int]:
    """A descriptor of the directory, checked; made with mode 0700 if asked to.

    Raises:
        OSError: ENOENT where there is none; EPERM where it isn't private to its owner, or the owner
            is somebody else (root may look into anybody's).
    """
    if create:
        with suppress(FileExistsError):  # checked below, whoever made it
            os.mkdir(path, 0o700)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as exc:
        if exc.errno in (errno.ELOOP, errno.ENOTDIR):
            raise os_error(errno.EPERM, f"{path} is not a directory of its own") from exc
        raise
    try:
        status = os.fstat(fd)
        uid = os.geteuid()
        if status.st_uid != uid and (create or uid != 0):
            raise os_error(errno.EPERM, f"{path} belongs to user {status.st_uid}")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise os_error(errno.EPERM, f"{path} is open to others; chmod 700 it")
        yield fd
    finally:
        os.close(fd)


def address(fd: int, name: str) -> str:
    """The address of a socket in the directory: short enough for any path, and bound to `fd`."""
    return f"/proc/self/fd/{fd}/{name}"


def socket_name(pid: int) -> str:
    return f"{pid}.sock"


def process_of(name: str) -> int | None:
    """The process whose socket bears the name; None for other files."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def hidden_name() -> str:
    """A name for a socket that doesn't listen yet."""
    return f".{secrets.token_hex(8)}"


def connect(fd: int, name: str) -> host.socket | None:
    """A connection to the socket `name`; None, and the name is removed, where nobody listens.

    Raises OSError, TimeoutError among them, where somebody does and doesn't take it.
    """
    peer = host.socket(host.AF_UNIX, host.SOCK_STREAM)
    peer.settimeout(_CONNECT_SECONDS)
    try:
        peer.connect(address(fd, name))
    except (ConnectionRefusedError, FileNotFoundError):
        # Names appear once their socket listens: this one's process has died.
        peer.close()
        unlink(fd, name)
        return None
    except OSError:
        peer.close()
        raise
    return peer


def sweep(fd: int) -> None:
    """Remove what processes that died without notice have left."""
    for name in os.listdir(fd):
        pid = process_of(name)
        if pid is not None:
            if os.path.exists(f"/proc/{pid}"):
                continue
            # It may live in another process namespace, unseen here.
            try:
                peer = connect(fd, name)
            except OSError:
                continue  # it lives
            if peer is not None:
                peer.close()
        elif _HIDDEN.fullmatch(name) and _age(fd, name) > _HIDDEN_SECONDS:
            unlink(fd, name)


def unlink(fd: int, name: str) -> None:
    """Remove a name; that somebody else did is as good."""
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return


def _age(fd: int, name: str) -> float:
    try:
        return time.time() - os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return 0.0
