"""siw.ko for Debian's kernel, which doesn't have it: from the source of the same version.

siw's constants become module parameters, with siw's values for defaults, so that a test changes
them in a running guest: /sys/module/siw/parameters.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Final

from tests.interop.guest.archive import Kernel

_SIW: Final = "/drivers/infiniband/sw/siw/"
_MAKEFILE: Final = """\
obj-m := siw.o
siw-y := {objects}
"""
_SWITCHES: Final = (
    "mpa_crc_required",
    "mpa_crc_strict",
    "peer_to_peer",
    "siw_tcp_nagle",
    "try_gso",
    "zcopy_tx",
)
# (file, what is there, what replaces it)
_EDITS: Final = (
    *(
        edit
        for name in _SWITCHES
        for edit in (
            ("siw.h", rf"extern const bool {name};", f"extern bool {name};"),
            (
                "siw_main.c",
                rf"^const bool {name}( = true)?;",
                rf"bool {name}\1;\nmodule_param({name}, bool, 0644);",
            ),
        )
    ),
    (
        "siw_main.c",
        r"^u_char mpa_version = MPA_REVISION_2;",
        r"\g<0>\nmodule_param(mpa_version, byte, 0644);",
    ),
    # In host order: 0x8000 is the zero-length Write, 0x4000 the zero-length Read.
    (
        "siw_cm.c",
        r"^static __be16 rtr_type = .*;",
        "static unsigned short rtr_bits = 0xc000;\n"
        "module_param(rtr_bits, ushort, 0644);\n"
        "#define rtr_type htons(rtr_bits)",
    ),
    ("siw_cm.c", r"^#include <linux/errno\.h>", r"\g<0>\n#include <linux/moduleparam.h>"),
)


def extract(package: Path, directory: Path) -> None:
    """siw's source out of the package linux-source-*."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE
    ) as unpacking:
        with tarfile.open(fileobj=unpacking.stdout, mode="r|") as outer:
            for member in outer:
                if member.name.endswith(".tar.xz"):
                    inner = outer.extractfile(member)
                    assert inner is not None
                    with tarfile.open(fileobj=inner, mode="r|xz") as source:
                        _extract_siw(source, directory)
                    break
        unpacking.kill()  # it would unpack the rest of the kernel
    if not (directory / "siw_main.c").exists():
        raise FileNotFoundError(f"{package.name} has no siw")


def _extract_siw(source: tarfile.TarFile, directory: Path) -> None:
    found = False
    for member in source:
        if _SIW in member.name and member.isfile():
            found = True
            file = source.extractfile(member)
            assert file is not None
            (directory / Path(member.name).name).write_bytes(file.read())
        elif found and _SIW not in member.name:
            return


def parametrize(directory: Path) -> None:
    """Make module parameters of siw's constants."""
    for name, pattern, replacement in _EDITS:
        file = directory / name
        text, count = re.subn(pattern, replacement, file.read_text(), flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"siw's {name} has {count} lines like {pattern!r}; expected one")
        file.write_text(text)


def build(kernel: Kernel, source: Path, headers: Path, scratch: Path) -> Path:
    """Compile siw; gives siw.ko.

    Args:
        source: as `extract` left it; not changed.
        headers: where the kernel's build packages are unpacked.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(source, scratch)
    parametrize(scratch)
    objects = " ".join(sorted(f"{file.stem}.o" for file in scratch.glob("siw_*.c")))
    (scratch / "Makefile").write_text(_MAKEFILE.format(objects=objects))
    tree = headers / "usr/src" / f"linux-headers-{kernel.release}"
    makefile = tree / "Makefile"
    makefile.write_text(
        makefile.read_text().replace("include /usr/src/", f"include {headers}/usr/src/")
    )
    done = subprocess.run(
        ["make", "-C", tree, f"M={scratch}", f"CC={kernel.compiler}", "-j2", "modules"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    if done.returncode:
        raise RuntimeError(f"siw.ko was not built: {done.stderr or done.stdout}")
    module = scratch / "siw.ko"
    subprocess.run(["strip", "-g", module], check=True, timeout=60)
    return module
