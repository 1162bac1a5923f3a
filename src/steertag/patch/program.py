"""Runs a Python program as the interpreter would, with its sockets patched."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib.machinery
import importlib.util
import io
import logging
import os
import signal
import sys
import types
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from steertag.errors import StateError
from steertag.family.rules import Log
from steertag.patch.install import Patch, patch

_PROG: Final = "python -m steertag.patch"
_ELF: Final = b"\x7fELF"
_USAGE: Final = 2
_DESCRIPTION: Final = (
    "Run a Python program as it is, with sockets of the family that a policy chooses instead of "
    "the host's AF_INET and AF_INET6 ones."
)
_EPILOG: Final = (
    "Without --family and --rules, the environment's STEERTAG_FAMILY and SDP_CONFIG say it; "
    "without these, it is SDP with a fallback to TCP. The exit status is the program's; 2: it "
    "could not be started."
)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (see {_PROG} --help)")


def main(arguments: Sequence[str]) -> None:
    """Run what the command line names; does not come back where that ends the process."""
    options, program = _parse(arguments)
    atexit.register(_die_of_interrupt)
    try:
        made = patch(options.family, rules=options.rules)
    except (ValueError, StateError) as exc:
        _fail(str(exc))
    except OSError as exc:
        _fail(f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror or str(exc))
    if options.verbose:
        _tell(made)
    _hide_our_frames()
    if options.module is not None:
        run_module(options.module, program)
    else:
        run_path(program[0], program[1:])


def _parse(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the program with its arguments (with -m: the arguments)."""
    parser = _Parser(
        prog=_PROG,
        usage="%(prog)s [OPTION]... PROGRAM|-m MODULE [ARGUMENT]...",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--family",
        metavar="NAME",
        help="sdp, both (falls back), tcp, new_tcp, host or a number; with rules: if none matches",
    )
    parser.add_argument("--rules", metavar="FILE", help="a policy file: docs/reference/rules.md")
    parser.add_argument(
        "--verbose", action="store_true", help="say on standard error what is chosen, and why"
    )
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module as a program")
    split = _end_of_options(arguments)
    options = parser.parse_args(arguments[:split])
    program = list(arguments[split:])
    if options.module is None and not program:
        parser.error("which program? Expected PROGRAM or -m MODULE")
    return options, program


def _end_of_options(arguments: Sequence[str]) -> int:
    """Where the program's own words begin, whatever they look like."""
    at = 0
    while at < len(arguments):
        word = arguments[at]
        if word in ("--family", "--rules"):
            at += 2
        elif word == "-m":
            return min(at + 2, len(arguments))
        elif word.startswith("-m") and not word.startswith("--"):
            return at + 1
        elif word.startswith("-") and word != "-":
            at += 1
        else:
            return at
    return len(arguments)


def _fail(message: str) -> NoReturn:
    print(f"{_PROG}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(_USAGE)


def _tell(made: Patch) -> None:
    """--verbose: the policy, and the family of each socket as it is chosen."""
    rules = made.policy.rules
    Log(logging.DEBUG).open()
    by = "every socket" if rules is None else f"the rules of {rules.name}; where none matches"
    logging.getLogger("steertag.patch").info("%s: %s", by, made.policy.default)


# -- running it ---------------------------------------------------------------------------------


def run_path(path: str, arguments: Sequence[str]) -> None:
    """`python PATH ARGUMENTS`: a script, or a directory or archive with a `__main__.py`."""
    finder = importlib.machinery.PathFinder
    spec = None
    if os.path.isdir(path) or not path.endswith((".py", ".pyc")):
        spec = finder.find_spec("__main__", [path])
    if spec is not None and spec.loader is not None:
        sys.path[0] = path
        sys.argv = [path, *arguments]
        _run(_code_of(spec, path), spec.origin or path, spec)
        return
    if os.path.isdir(path):
        _fail(f"can't find '__main__.py' in {path!r}")
    try:
        with io.open_code(os.path.abspath(path)) as file:
            source = file.read()
    except OSError as exc:
        _fail(f"can't open file {path!r}: {exc.strerror}")
    if source.startswith(_ELF):
        _fail(f"{path!r} is no Python program: `stag run -- {path}` is for those")
    sys.path[0] = os.path.dirname(os.path.realpath(path))
    sys.argv = [path, *arguments]
    if path.endswith(".pyc"):
        loader = importlib.machinery.SourcelessFileLoader("__main__", path)
        _run(loader.get_code("__main__"), path, None)
        return
    _run(compile(source, path, "exec", dont_inherit=True), path, None)


def run_module(name: str, arguments: Sequence[str]) -> None:
    """`python -m NAME ARGUMENTS`."""
    sys.path[0] = os.getcwd()
    sys.argv = ["-m", *arguments]
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        name += ".__main__"
        spec = _find(name)
    if spec is None or spec.loader is None:
        _fail(f"no module named {name}")
    code = _code_of(spec, name)
    origin = spec.origin or name
    sys.argv[0] = origin
    _run(code, origin, spec)


def _find(name: str) -> importlib.machinery.ModuleSpec | None:
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError, TypeError) as exc:
        _fail(f"can't find module {name}: {exc}")


def _code_of(spec: importlib.machinery.ModuleSpec, what: str) -> types.CodeType:
    get_code: Any = getattr(spec.loader, "get_code", None)
    code = get_code(spec.name) if get_code is not None else None
    if not isinstance(code, types.CodeType):
        _fail(f"{what} can't be run as a program")
    return code


def _run(
    code: types.CodeType | None, path: str, spec: importlib.machinery.ModuleSpec | None
) -> None:
    """Run it as `__main__`, which from now on is the program's."""
    if code is None:
        _fail(f"{path} can't be run as a program")
    module = types.ModuleType("__main__")
    module.__dict__.update(__builtins__=sys.modules["builtins"], __file__=path)
    if spec is not None:
        package = spec.name.rpartition(".")[0]
        module.__dict__.update(__spec__=spec, __loader__=spec.loader, __package__=package)
    else:
        module.__dict__["__loader__"] = importlib.machinery.SourceFileLoader("__main__", path)
    sys.modules["__main__"] = module
    exec(code, module.__dict__)


_interrupted: Final[list[bool]] = []


def _die_of_interrupt() -> None:
    """A program that Ctrl-C ends dies of the signal, so that a shell's loop ends with it."""
    if not _interrupted:
        return
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGINT)


def _hide_our_frames() -> None:
    """A traceback begins where the program does."""
    before = sys.excepthook

    def hook(
        kind: type[BaseException], exc: BaseException, trace: types.TracebackType | None
    ) -> None:
        at = trace
        while at is not None and at.tb_frame.f_code is not _run.__code__:
            at = at.tb_next
        if at is not None and at.tb_next is not None:
            trace = at.tb_next
            exc.__traceback__ = trace
        elif at is None and isinstance(exc, SyntaxError):
            trace = exc.__traceback__ = None  # the program was not begun: it can't be read
        before(kind, exc, trace)
        if isinstance(exc, KeyboardInterrupt):
            _interrupted.append(True)

    sys.excepthook = hook
