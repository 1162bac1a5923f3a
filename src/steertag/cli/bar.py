"""A transfer's progress on a terminal, and its notices on standard error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from steertag.transfer.names import escape
from steertag.transfer.progress import Progress
from steertag.transfer.report import Fallback

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class TerminalProgress(Progress):
    """A bar with rate and time left when standard error is a terminal; else notices only.

    Args:
        quiet: show nothing but fallbacks.
    """

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def begin(self, name: str, size: int) -> None:
        if self._quiet or not sys.stderr.isatty():
            return
        # Imported here: rich takes longer to load than all the rest of the command.
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.fields[phase]:<8} {task.fields[file]}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task("", total=size, phase="moving", file=escape(name))
        self._bar.start()

    def picked(self, path: str, why: str) -> None:
        if not self._quiet:
            self._say(f"path: {path} ({why})")

    def fell_back(self, fallback: Fallback) -> None:
        self._say(f"path: {fallback.target}, fell back from {fallback.source}: {fallback.reason}")

    def moved(self, count: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, count)

    def restart(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.reset(self._task, phase="moving")

    def syncing(self) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, phase="syncing")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            click.echo(text, err=True)
