"""Files at both ends: a source that is watched while it is read, a sink that appears when whole,
and a directory tree that nobody gets out of.

A served name is walked one component at a time, each opened relative to its parent's descriptor
and never through a symbolic link (openat(2) with O_NOFOLLOW), so that no name and no race with
somebody who swaps a directory for a link leads outside.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from steertag.transfer.errors import ExitCode, TransferError, from_os_error
from steertag.transfer.names import escape
from steertag.transfer.protocol import Entry

PART_SUFFIX: Final = ".part"

_NAME_MAX: Final = 255
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
# O_NONBLOCK: a FIFO that takes the file's place after we looked must not hang the server.
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_PART: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Source:
    """An open regular file that is to be sent.

    Attributes:
        size, mode, mtime_ns: as they were when it was opened; `mode` is permission bits only.
    """

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise _not_regular(name, status.st_mode)
        self.size = status.st_size
        self.mode = status.st_mode & 0o777
        self.mtime_ns = status.st_mtime_ns

    def check_unchanged(self) -> None:
        """Raise SOURCE_CHANGED if somebody wrote to the file since it was opened."""
        status = os.fstat(self.fd)
        if status.st_size != self.size:
            raise self.changed(f"went from {self.size} to {status.st_size} octets")
        if status.st_mtime_ns != self.mtime_ns:
            raise self.changed("was written to")

    def changed(self, how: str) -> TransferError:
        """The error for a source that changed."""
        return TransferError(
            ExitCode.SOURCE_CHANGED,
            f"{escape(self.name)} {how} while it was sent; "
            "nothing was replaced, try again when nobody writes to it",
        )

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_local_source(path: Path) -> Source:
    """A file of this user's own; symbolic links are followed, as `cp` does."""
    name = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise _not_regular(name, status.st_mode)
        return Source(os.open(path, _READ), name)
    except OSError as error:
        raise from_os_error(error, name) from error


def _not_regular(name: str, mode: int) -> TransferError:
    if stat.S_ISDIR(mode):
        text = "is a directory; stag moves one file at a time, `stag ls` lists directories"
    else:
        text = "is not a regular file; only regular files can be moved"
    return TransferError(ExitCode.FAILURE, f"{escape(name)} {text}")


class Sink:
    """A file that arrives: `NAME.part`, locked, its space reserved; `commit` gives it its name.

    An existing `.part` is overwritten in place. Leaving the context without `commit` removes it.

    Raises (on construction):
        TransferError: BUSY when another transfer holds the `.part`; NO_SPACE when the file cannot
            fit; what the file system says otherwise.
    """

    def __init__(self, dir_fd: int, leaf: str, size: int, name: str, replace: bool = True) -> None:
        self.name = name
        self.size = size
        self.reserved = False
        self._leaf = leaf
        self._part = part_name(leaf)
        self._replace = replace
        self._committed = False
        self._dir_fd = os.dup(dir_fd)
        try:
            self._check_target()
            self.fd = self._open_part()
        except OSError as error:
            os.close(self._dir_fd)
            raise from_os_error(error, name) from error
        except TransferError:
            os.close(self._dir_fd)
            raise
        try:
            self._reserve()
        except OSError as error:
            self.close()
            raise from_os_error(error, name) from error

    def _check_target(self) -> None:
        try:
            status = os.stat(self._leaf, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISDIR(status.st_mode):
            raise TransferError(
                ExitCode.FAILURE, f"{escape(self.name)} is a directory; name a file in it"
            )
        if stat.S_ISLNK(status.st_mode):
            with suppress(OSError):  # a link that leads nowhere is replaced like a file
                status = os.stat(self._leaf, dir_fd=self._dir_fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
            raise TransferError(
                ExitCode.FAILURE,
                f"{escape(self.name)} is not a regular file, and is not replaced by one; "
                "name another",
            )
        if not self._replace:
            raise self._exists()

    def _exists(self) -> TransferError:
        return TransferError(
            ExitCode.FAILURE,
            f"{escape(self.name)} exists; leave out --no-clobber to replace it",
        )

    def _open_part(self) -> int:
        while True:
            fd = self._try_part()
            if fd is not None:
                return fd

    def _try_part(self) -> int | None:
        """The locked `.part`, or None when it was renamed or replaced under our hands."""
        try:
            fd = os.open(self._part, _PART, 0o600, dir_fd=self._dir_fd)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
            raise _outside(self._part, "is a symbolic link; remove it") from None
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(self.name + PART_SUFFIX, status.st_mode)
            _lock(fd, self.name)
            if not self._is_ours(fd):
                os.close(fd)
                return None
            if status.st_nlink != 1 or status.st_uid != os.geteuid():
                # Written through, it would change a file that has another name or owner.
                os.unlink(self._part, dir_fd=self._dir_fd)
                os.close(fd)
                return None
            os.fchmod(fd, 0o600)
            return fd
        except BaseException:
            with suppress(OSError):
                os.close(fd)
            raise

    def _is_ours(self, fd: int) -> bool:
        """Whether the name `.part` still stands for the file that `fd` has open."""
        try:
            there = os.stat(self._part, dir_fd=self._dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(fd), there)

    def _reserve(self) -> None:
        os.ftruncate(self.fd, self.size)
        if not self.size:
            self.reserved = True
            return
        try:
            os.posix_fallocate(self.fd, 0, self.size)
            self.reserved = True
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise

    def is_tmpfs(self) -> bool:
        """Whether the file's pages are memory only (tmpfs), by the device's line in mountinfo."""
        device = os.fstat(self.fd).st_dev
        number = f"{os.major(device)}:{os.minor(device)}"
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            for line in mounts:
                before, _, after = line.partition(" - ")
                if before.split()[2] == number:
                    return after.split()[0] == "tmpfs"
        return False

    @contextmanager
    def mapping(self) -> Iterator[mmap.mmap | None]:
        """The file as shared memory, readable and writable; None when it is empty."""
        if not self.size:
            yield None
            return
        mapped = mmap.mmap(self.fd, self.size, mmap.MAP_SHARED)
        try:
            yield mapped
        finally:
            # The frames of an exception may still hold a view; then the mapping goes with them.
            with suppress(BufferError):
                mapped.close()

    def commit(self, mode: int, mtime_ns: int) -> None:
        """Sync, give mode and time, rename to the final name, sync the directory."""
        try:
            os.fchmod(self.fd, mode & 0o777)
            os.utime(self.fd, ns=(mtime_ns, mtime_ns))
            os.fsync(self.fd)
            self._check_part_target()
            if not self._is_ours(self.fd):
                raise TransferError(
                    ExitCode.BUSY,
                    f"{escape(self.name)}{PART_SUFFIX} was moved away by somebody else; try again",
                )
            self._rename()
            self._committed = True
            self._sync_directory()
        except OSError as error:
            raise from_os_error(error, self.name) from error

    def _check_part_target(self) -> None:
        """Refuse to replace a `.part` that another transfer is filling."""
        if not self._leaf.endswith(PART_SUFFIX):
            return
        try:
            fd = os.open(self._leaf, _READ | os.O_NOFOLLOW, dir_fd=self._dir_fd)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES, errno.ELOOP):
                return
            raise
        try:
            _lock(fd, self.name)
        finally:
            os.close(fd)

    def _rename(self) -> None:
        here = self._dir_fd
        if self._replace:
            os.replace(self._part, self._leaf, src_dir_fd=here, dst_dir_fd=here)
            return
        try:
            os.link(self._part, self._leaf, src_dir_fd=here, dst_dir_fd=here)
        except FileExistsError:
            raise self._exists() from None
        os.unlink(self._part, dir_fd=here)

    def _sync_directory(self) -> None:
        try:
            fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._dir_fd)
        except PermissionError:
            return  # we may write to it but not read it: there is no way to sync it
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def close(self) -> None:
        """Give everything back; without `commit`, remove the `.part`."""
        try:
            if not self._committed and self._is_ours(self.fd):
                os.unlink(self._part, dir_fd=self._dir_fd)
        except OSError as error:
            # A directory that was taken away or made read-only keeps its `.part`.
            if error.errno not in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS):
                raise
        finally:
            os.close(self.fd)
            os.close(self._dir_fd)

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def part_name(leaf: str) -> str:
    """What `leaf` is called until it is whole: `leaf.part`, shortened where that is too long."""
    octets = os.fsencode(leaf)
    if len(octets) + len(PART_SUFFIX) <= _NAME_MAX:
        return leaf + PART_SUFFIX
    mark = hashlib.sha256(octets).hexdigest()[:16]
    return os.fsdecode(octets[:200]) + "~" + mark + PART_SUFFIX


def _lock(fd: int, name: str) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TransferError(
            ExitCode.BUSY,
            f"{escape(name)} is being written by another transfer; try again when it is done",
        ) from None


def open_local_sink(path: Path, size: int, replace: bool = True) -> Sink:
    """A file of this user's own; its directory may be reached through symbolic links."""
    name = str(path)
    try:
        dir_fd = os.open(path.parent, _DIRECTORY)
    except OSError as error:
        raise from_os_error(error, str(path.parent)) from error
    try:
        return Sink(dir_fd, path.name, size, name, replace)
    finally:
        os.close(dir_fd)


def split_name(name: str) -> list[str]:
    """The components of a served name; none for the served directory itself.

    Raises:
        TransferError: OUTSIDE_DIRECTORY for an absolute name or one with `..`.
    """
    if name.startswith("/"):
        raise _outside(name, "is absolute; names are relative to the served directory")
    components = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in components:
        raise _outside(name, "has a `..`; names stay inside the served directory")
    return components


def _outside(name: str, problem: str) -> TransferError:
    return TransferError(ExitCode.OUTSIDE_DIRECTORY, f"{escape(name)} {problem}")


class Tree:
    """A served directory. Every name given to it is a stranger's."""

    def __init__(self, directory: Path) -> None:
        try:
            self._fd = os.open(directory, _DIRECTORY)
        except OSError as error:
            raise from_os_error(error, str(directory)) from error

    def close(self) -> None:
        os.close(self._fd)

    @contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """The descriptor of the directory that holds `name`, and the last component."""
        *parents, leaf = split_name(name) or [""]
        fd = os.dup(self._fd)
        try:
            for component in parents:
                self._refuse_link(component, fd, name)
                below = os.open(component, _DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                os.close(fd)
                fd = below
            if leaf:
                self._refuse_link(leaf, fd, name)
            yield fd, leaf
        except OSError as error:
            raise from_os_error(error, name, served=True) from error
        finally:
            os.close(fd)

    @staticmethod
    def _refuse_link(component: str, dir_fd: int, name: str) -> None:
        """Say what is wrong before O_NOFOLLOW would refuse with a vague ENOTDIR or ELOOP."""
        with suppress(FileNotFoundError):
            status = os.stat(component, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                raise _outside(
                    name,
                    f"leads through the symbolic link {escape(component)}; links are not served",
                )

    def open_source(self, name: str) -> Source:
        """File `name`, for reading."""
        with self._parent(name) as (dir_fd, leaf):
            if not leaf:
                raise _not_regular(name or ".", stat.S_IFDIR)
            status = os.stat(leaf, dir_fd=dir_fd, follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise _not_regular(name, status.st_mode)  # opening a device can have effects
            return Source(os.open(leaf, _READ | os.O_NOFOLLOW, dir_fd=dir_fd), name)

    def open_sink(self, name: str, size: int, replace: bool) -> Sink:
        """A place for file `name`."""
        if name.endswith("/"):
            raise TransferError(ExitCode.FAILURE, f"{escape(name)} names a directory, not a file")
        with self._parent(name) as (dir_fd, leaf):
            if not leaf:
                raise TransferError(ExitCode.FAILURE, "the URL names no file")
            return Sink(dir_fd, leaf, size, name, replace)

    def entries(self, name: str) -> Iterator[Entry]:
        """What is in directory `name`, or the one entry of file `name`."""
        with self._parent(name) as (dir_fd, leaf):
            status = os.stat(leaf or ".", dir_fd=dir_fd, follow_symlinks=False)
            if not stat.S_ISDIR(status.st_mode):
                yield _entry(leaf, status)
                return
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(leaf or ".", flags, dir_fd=dir_fd)
            try:
                with os.scandir(fd) as found:
                    for item in found:
                        with suppress(FileNotFoundError):  # removed since: not there
                            yield _entry(item.name, item.stat(follow_symlinks=False))
            finally:
                os.close(fd)


def _entry(name: str, status: os.stat_result) -> Entry:
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "other")
    return Entry(name, kind, status.st_size, stat.S_IMODE(status.st_mode), status.st_mtime_ns)
