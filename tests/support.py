"""What tests ask of the machine they run on.

A test that lacks something says so through one of these and is skipped. There are two kinds of
lack: what could have been installed (`needs ...`) fails under `.ci/run`, which installs it; what
the kernel or the container forbids (`not possible here: ...`) is skipped everywhere.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

PROJECT: Final = Path(__file__).resolve().parent.parent
NEEDS: Final = "needs "
IN_CI: Final = os.environ.get("STEERTAG_CI") == "1"


def require_tool(name: str) -> str:
    """The path of the program `name`; the test is skipped when it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{NEEDS}{name}, which is not installed")
    return found


def require_root() -> None:
    """Skip unless the effective user is root."""
    if os.geteuid() != 0:
        pytest.skip(f"{NEEDS}root")


@functools.cache
def _unshare_refusal(flags: tuple[str, ...]) -> str | None:
    done = subprocess.run(
        ["unshare", *flags, "true"], capture_output=True, text=True, check=False, timeout=30
    )
    return None if done.returncode == 0 else done.stderr.strip()


def may_unshare(*flags: str) -> bool:
    """Whether `unshare FLAGS` works here; for tests that do without if it does not."""
    able = os.geteuid() == 0 and shutil.which("unshare") is not None
    return able and _unshare_refusal(flags) is None


def require_unshare(*flags: str) -> None:
    """Skip unless `unshare FLAGS` works, e.g. `require_unshare("--net", "--mount")`.

    Root in a container may be forbidden to make namespaces; no package changes that.
    """
    require_root()
    require_tool("unshare")
    refusal = _unshare_refusal(flags)
    if refusal is not None:
        pytest.skip(f"not possible here: {refusal}")
