"""Builds the guest: `python -m tests.interop.guest.build` or the fixture does, whoever is first.

Everything comes from Debian's archive at the time; what is built is kept in a directory, under a
key made of the versions and of these scripts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.interop.guest import archive, image, module
from tests.support import NEEDS, require_tool

CACHE_VARIABLE: Final = "STEERTAG_GUEST_CACHE"
_HERE: Final = Path(__file__).parent
_SCRIPTS: Final = ("agent.py", "archive.py", "build.py", "image.py", "init", "module.py")
_TOOLS: Final = ("apt-cache", "apt-get", "cpio", "dpkg-deb", "make", "strip", "zstd")


@dataclass(frozen=True)
class Image:
    """What QEMU boots: an ELF kernel and an initial root."""

    kernel: Path
    root: Path


def cache_directory() -> Path:
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "steertag" / "guest"


def build() -> Image:
    """The guest's image, built unless it is there already. Skips where something is missing."""
    for tool in _TOOLS:
        require_tool(tool)
    kernel = archive.kernel()
    require_tool(kernel.compiler)
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock"):
        target = cache / f"image-{_key(kernel)}"
        if not target.exists():
            _build(kernel, cache, target)
            for other in cache.glob("image-*"):
                if other != target:
                    shutil.rmtree(other)
    return Image(target / "vmlinux", target / "root.cpio.zst")


def _key(kernel: archive.Kernel) -> str:
    digest = hashlib.sha256(repr(kernel).encode())
    digest.update(repr(sorted(archive.versions(*archive.USERLAND).items())).encode())
    for name in _SCRIPTS:
        digest.update((_HERE / name).read_bytes())
    return digest.hexdigest()[:16]


def _build(kernel: archive.Kernel, cache: Path, target: Path) -> None:
    packages = cache / "packages"
    siw = cache / f"siw-{kernel.version}"
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch_name:
        scratch = Path(scratch_name)
        if not siw.exists():
            (source,) = archive.download([f"linux-source-{kernel.series}"], scratch)
            module.extract(source, scratch / "siw-source")
            (scratch / "siw-source").rename(siw)
        programs = archive.download(archive.userland(), packages)
        (vmlinuz,) = archive.download([f"linux-image-{kernel.release}"], packages)
        headers = archive.download(list(kernel.build_packages), packages)
        for name, files in (("user", programs), ("kernel", [vmlinuz]), ("headers", headers)):
            archive.unpack(files, scratch / name)
        ko = module.build(kernel, siw, scratch / "headers", scratch / "siw")
        made = scratch / "image"
        made.mkdir()
        boot = scratch / "kernel/boot" / f"vmlinuz-{kernel.release}"
        (made / "vmlinux").write_bytes(image.uncompressed_kernel(boot.read_bytes()))
        root = image.Root(scratch / "root", scratch / "user", scratch / "kernel", kernel.release)
        root.assemble(ko)
        root.pack(made / "root.cpio.zst")
        made.rename(target)
        keep = {*programs, vmlinuz, *headers}
        for file in packages.iterdir():
            if file not in keep:
                file.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One builder at a time; others wait and find the work done."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    try:
        image = build()
    except pytest.skip.Exception as exc:
        # Under `.ci/run`: fails here as it does in the tests, unless nothing can be done about it.
        print(exc.msg)
        sys.exit(str(exc.msg).startswith(NEEDS))
    print(f"{image.kernel}\n{image.root}")


if __name__ == "__main__":
    main()
