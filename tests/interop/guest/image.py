"""The guest's kernel and initial root, put together from unpacked packages."""

from __future__ import annotations

import lzma
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

_LIB: Final = "usr/lib/x86_64-linux-gnu"
_LOADER: Final = "ld-linux-x86-64.so.2"
_HERE: Final = Path(__file__).parent
_PROGRAMS: Final = (
    "ibv_devinfo",
    "ip",
    "python3.11",
    "rdma",
    "rdma_client",
    "rdma_server",
    "rping",
    "tc",
    "tcpdump",
    "ucmatose",
)
_OWN_APPLETS: Final = ("busybox", "ip", "tc")
"""Programs that busybox would shadow."""
_MODULES: Final = (
    "siw",
    "rdma_cm",
    "rdma_ucm",
    "iw_cm",
    "ib_uverbs",
    "crc32c_generic",
    "crc32_generic",
    "sch_netem",
    "virtio_pci",
    "virtio_net",
)
_UNUSED_PYTHON: Final = (
    "asyncio",
    "concurrent",
    "dbm",
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "multiprocessing",
    "pydoc_data",
    "sqlite3",
    "test",
    "tkinter",
    "turtledemo",
    "venv",
    "wsgiref",
    "xmlrpc",
)
_XZ: Final = b"\xfd7zXZ\0"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"


def _run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command, check=True, capture_output=True, timeout=300, **options)  # type: ignore[call-overload,no-any-return]


def uncompressed_kernel(vmlinuz: bytes) -> bytes:
    """The ELF file in a bzImage (Documentation/x86/boot.rst).

    QEMU boots it as it is (PVH); unpacking it in the guest would cost an emulated processor
    several seconds.
    """
    sectors = vmlinuz[0x1F1]
    offset, length = struct.unpack_from("<II", vmlinuz, 0x248)
    at = (sectors + 1) * 512 + offset
    payload = vmlinuz[at : at + length]
    if payload.startswith(_XZ):
        kernel = lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(payload)
    elif payload.startswith(_ZSTD):
        kernel = subprocess.run(
            ["zstd", "-dcq"], input=payload, capture_output=True, check=False, timeout=60
        ).stdout  # what follows the frame in the payload makes zstd complain
    else:
        raise ValueError(f"a kernel compressed in an unknown way: {payload[:6].hex()}")
    if not kernel.startswith(b"\x7fELF"):
        raise ValueError("no ELF file in the kernel image")
    return kernel


class Root:
    """The initial root as it comes to be.

    Args:
        directory: where it is put together.
        userland: the unpacked packages of programs.
        kernel: the unpacked kernel package.
        release: of the kernel.
    """

    def __init__(self, directory: Path, userland: Path, kernel: Path, release: str) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        self._root, self._user, self._kernel = directory, userland, kernel
        self._release = release
        self._loader = next(
            path.resolve() for path in userland.rglob(_LOADER) if path.resolve().is_file()
        )
        self._library_path = ":".join(
            str(path) for path in (userland / _LIB, userland / "lib/x86_64-linux-gnu")
        )

    def assemble(self, siw: Path) -> None:
        for name in ("proc", "sys", "dev", "tmp", "root", "run", "lib64", _LIB):
            (self._root / name).mkdir(parents=True)
        self._busybox()
        self._programs()
        self._python()
        self._providers()
        self._libraries()
        self._modules(siw)
        self._settings()

    def _copy(self, source: Path, target: str) -> None:
        to = self._root / target
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, to)

    def _busybox(self) -> None:
        self._copy(self._user / "bin/busybox", "bin/busybox")
        applets = _run(self._user / "bin/busybox", "--list").stdout.decode().split()
        for applet in applets:
            if applet not in _OWN_APPLETS:
                (self._root / "bin" / applet).symlink_to("busybox")

    def _programs(self) -> None:
        for name in _PROGRAMS:
            candidates = (self._user / bin / name for bin in ("usr/bin", "usr/sbin", "bin", "sbin"))
            self._copy(next(path for path in candidates if path.is_file()), f"usr/bin/{name}")
        (self._root / "usr/bin/python3").symlink_to("python3.11")

    def _python(self) -> None:
        """The standard library but for what is never used, and pyverbs; compiled."""
        library = self._root / "usr/lib/python3.11"
        shutil.copytree(
            self._user / "usr/lib/python3.11",
            library,
            ignore=shutil.ignore_patterns(*_UNUSED_PYTHON),
        )
        pyverbs = self._user / "usr/lib/python3/dist-packages/pyverbs"
        shutil.copytree(pyverbs, library / "pyverbs")
        _run(
            *(self._loader, "--library-path", self._library_path),
            *(self._user / "usr/bin/python3.11", "-S", "-m", "compileall", "-q"),
            *("-s", self._root, "-p", "/", "--invalidation-mode", "unchecked-hash"),
            library,
            env={"PYTHONHOME": str(self._user / "usr")},
        )

    def _providers(self) -> None:
        for provider in (self._user / _LIB / "libibverbs").glob("libsiw-*.so"):
            self._copy(provider, f"{_LIB}/libibverbs/{provider.name}")
        self._copy(self._user / "etc/libibverbs.d/siw.driver", "etc/libibverbs.d/siw.driver")

    def _libraries(self) -> None:
        """What the programs and Python's extensions are linked with."""
        self._copy(self._loader, f"lib64/{_LOADER}")
        needed: set[str] = set()
        objects = [
            path
            for path in (self._root / "usr").rglob("*")
            if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
        ]
        for path in objects:
            listing = subprocess.run(
                [self._loader, "--library-path", self._library_path, "--list", path],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            ).stdout
            needed.update(re.findall(r"=> (/\S+)", listing))
        # Opened at run time, by a thread that ends.
        needed.update(map(str, self._user.rglob("libgcc_s.so.1")))
        for library in needed:
            name = Path(library).name
            if name != _LOADER:
                self._copy(Path(library), f"{_LIB}/{name}")
        (self._root / "lib").mkdir(exist_ok=True)
        (self._root / "lib/x86_64-linux-gnu").symlink_to(f"/{_LIB}")

    def _modules(self, siw: Path) -> None:
        tree = self._kernel / "lib/modules" / self._release
        (tree / "extra").mkdir(exist_ok=True)
        shutil.copy(siw, tree / "extra/siw.ko")
        busybox = self._user / "bin/busybox"
        _run(busybox, "depmod", "-b", self._kernel, self._release)
        needs = {}
        for line in (tree / "modules.dep").read_text().splitlines():
            path, _, others = line.partition(":")
            needs[Path(path).name.partition(".")[0].replace("-", "_")] = [path, *others.split()]
        for path in {path for name in _MODULES for path in needs.get(name, [])}:
            self._copy(tree / path, f"lib/modules/{self._release}/{path}")
        _run(busybox, "depmod", "-b", self._root, self._release)

    def _settings(self) -> None:
        etc = self._root / "etc"
        (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\n")
        (etc / "group").write_text("root:x:0:\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n10.0.2.15 guest\n10.0.2.2 host\n")
        self._copy(_HERE / "agent.py", "sbin/agent")
        self._copy(_HERE / "init", "init")
        (self._root / "init").chmod(0o755)

    def pack(self, target: Path) -> None:
        """Write the root as a compressed cpio archive, everything owned by root."""
        names = sorted(str(path.relative_to(self._root)) for path in self._root.rglob("*"))
        archive = _run(
            *("cpio", "--create", "--format=newc", "--owner=0:0", "--quiet"),
            cwd=self._root,
            input="\n".join(names).encode(),
        ).stdout
        target.write_bytes(_run("zstd", "-q", "-3", "-T0", "-c", input=archive).stdout)
