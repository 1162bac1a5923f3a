"""`--pcap FILE` for commands that talk iWARP."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click


class CaptureFailed(click.ClickException):
    """The capture could not be made, or not to its end: a line, and exit code 1."""

    def __init__(self, path: Path, error: OSError, advice: str) -> None:
        super().__init__(f"--pcap {click.format_filename(path)}: {error.strerror}; {advice}")


def pcap_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--pcap FILE`, and record what it does while it runs."""

    @functools.wraps(command)
    def wrapper(*args: object, pcap: Path | None, **kwargs: object) -> None:
        with recording(pcap):
            command(*args, **kwargs)

    return click.option(
        "--pcap",
        metavar="FILE",
        type=click.Path(path_type=Path, readable=False),
        help="Record this side's RDMA connections in FILE, for Wireshark and `stag decode`.",
    )(wrapper)


@contextmanager
def recording(path: Path | None) -> Iterator[None]:
    """Record the RDMA connections of RNICs that are opened meanwhile over the default Stack.

    Raises CaptureFailed where the file can't be created, and at the end where it could not be
    written to its end.
    """
    if path is None:
        yield
        return
    from steertag import default_stack
    from steertag.observe.recorder import Recorder

    try:
        recorder = Recorder(path)
    except OSError as exc:
        raise CaptureFailed(path, exc, "name a file that can be written") from exc
    observers = default_stack().observers
    observers.append(recorder.watch)
    try:
        yield
    finally:
        observers.remove(recorder.watch)
        recorder.close()
    if recorder.failure is not None:
        raise CaptureFailed(path, recorder.failure, "what the capture has is whole, but not all")
