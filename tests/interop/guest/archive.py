"""Debian's archive: which packages, downloading them, taking them apart."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.support import NEEDS, require_tool

KERNEL: Final = "linux-image-amd64"
USERLAND: Final = (
    "busybox-static",
    "ibverbs-providers",
    "ibverbs-utils",
    "iproute2",
    "python3-pyverbs",
    "rdma-core",
    "rdmacm-utils",
    "tcpdump",
)
# Dependencies that nothing in the guest calls.
_SKIPPED: Final = re.compile(
    r"adduser|debconf|dpkg|init-system-helpers|lib(find|number|text|perl|pam)-?.*|lsb-base"
    r"|media-types|passwd|perl.*|sysvinit-utils|tar|udev|usrmerge"
)
_TIMEOUT: Final = 600


@dataclass(frozen=True)
class Kernel:
    """Debian's kernel of the moment.

    Attributes:
        release: as `uname -r` says, e.g. 6.1.0-56-amd64.
        version: of the packages.
        series: as in linux-source-6.1.
        build_packages: what a module for it is built with.
        compiler: the program that the kernel was built with.
    """

    release: str
    version: str
    series: str
    build_packages: tuple[str, ...]
    compiler: str


def output_of(*command: str) -> str:
    """What `command` prints; the test is skipped where the package lists can't answer."""
    require_tool(command[0])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=_TIMEOUT, env=_environment()
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        pytest.skip(f"{NEEDS}Debian's package lists (apt-get update): {command[0]}: {reason}")
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "LC_ALL": "C"}


def depends(package: str) -> list[str]:
    return re.findall(r"^ *Depends: ([^<\s]+)", output_of("apt-cache", "depends", package), re.M)


def versions(*packages: str) -> dict[str, str]:
    """The version of each package that would be installed."""
    text = output_of("apt-cache", "show", "--no-all-versions", *packages)
    names = re.findall(r"^Package: (\S+)", text, re.M)
    return dict(zip(names, re.findall(r"^Version: (\S+)", text, re.M), strict=True))


def _require_debian() -> None:
    if platform.machine() != "x86_64" or platform.freedesktop_os_release().get("ID") != "debian":
        pytest.skip("not possible here: the guest is made of the packages of Debian for amd64")


def kernel() -> Kernel:
    _require_debian()
    images = [name for name in depends(KERNEL) if name.startswith("linux-image-")]
    if not images:
        pytest.skip(f"{NEEDS}Debian's package lists: they have no {KERNEL}")
    release = images[0].removeprefix("linux-image-")
    headers = f"linux-headers-{release}"
    needed = depends(headers)
    match = re.search(r"gcc-\d+", " ".join(needed))
    series = re.match(r"\d+\.\d+", release)
    assert match is not None, f"{headers} names no compiler"
    assert series is not None, f"{release} is no kernel release"
    return Kernel(
        release=release,
        version=versions(images[0])[images[0]],
        series=series[0],
        build_packages=(headers, *(name for name in needed if name.startswith("linux-"))),
        compiler=match[0],
    )


def userland() -> list[str]:
    """The packages of the guest's programs, with what they depend on."""
    text = output_of(
        *("apt-get", "-o", "Dir::State::status=/dev/null", "-o", "APT::Install-Recommends=0"),
        *("-s", "install", *USERLAND),
    )
    names = re.findall(r"^Inst (\S+)", text, re.M)
    return [name for name in names if not _SKIPPED.fullmatch(name)]


def download(packages: list[str], directory: Path) -> list[Path]:
    """The packages' files in `directory`; what it has already is not fetched again."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download")
    uris = output_of(*command, "--print-uris", *packages)
    files = {file.partition("_")[0]: file for file in re.findall(r"^'[^']*' (\S+) ", uris, re.M)}
    wanted = [name for name in packages if not (directory / files[name]).exists()]
    if wanted:
        subprocess.run(
            [*command, *wanted], cwd=directory, check=True, timeout=_TIMEOUT, env=_environment()
        )
    return [directory / files[name] for name in packages]


def unpack(packages: list[Path], directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", package, directory], check=True, timeout=_TIMEOUT)
