"""`python -m steertag.compat.pyverbs`: run a program that imports pyverbs on steertag's RNIC."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Final

from steertag.compat.pyverbs import install

_PATH: Final = Path(__file__).parent.parent / "path"
"""Holds a `pyverbs` that is this one, for programs that the program starts."""
_USAGE: Final = """\
usage: python -m steertag.compat.pyverbs PROGRAM [ARGUMENT...]
       python -m steertag.compat.pyverbs -m MODULE [ARGUMENT...]

Run a Python program that imports pyverbs, rdma-core's binding, on steertag's RNIC. The device is
steertag0. The exit status is the program's.
"""
_NO_PROGRAM: Final = 2


def main() -> None:
    """Raises SystemExit, with the program's status; 2 where there is no program to run."""
    arguments = sys.argv[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_USAGE)
        raise SystemExit(0)
    as_module = arguments[:1] == ["-m"]
    del arguments[:as_module]
    if not arguments:
        _fail("no program to run was named; --help says how")
    program = arguments[0]
    if program.startswith("-"):
        _fail(f"unknown option {program}; --help says which there are")
    install()
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(_PATH), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    sys.argv[:] = arguments
    if as_module:
        _run_module(program)
    else:
        _run_program(program)


def _run_module(name: str) -> None:
    import importlib.util

    sys.path[0] = ""
    try:
        found = importlib.util.find_spec(name)
    except ImportError:
        found = None
    if found is None:
        _fail(f"no module named {name}")
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def _run_program(program: str) -> None:
    path = Path(program)
    try:
        needed = path / "__main__.py" if path.is_dir() else path
        with needed.open("rb"):
            pass
    except OSError as exc:
        _fail(f"can't open {needed}: {exc.strerror}")
    sys.path[0] = str(path.resolve().parent)
    runpy.run_path(str(path.absolute()), run_name="__main__")


def _fail(message: str) -> None:
    sys.stderr.write(f"steertag.compat.pyverbs: {message}\n")
    raise SystemExit(_NO_PROGRAM)


if __name__ == "__main__":
    main()
