"""atheris (coverage-guided) over the targets of a module: `.ci/run` runs it, with a bound.

    uv run --with atheris python -m tests.fuzz.drive sdp_targets -runs=20000 DIRECTORY

The directory is made if need be, and keeps what the fuzzer found worth keeping.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import atheris  # in CI only

INSTRUMENTED = {
    "targets": ["steertag.inet", "steertag.wire", "steertag.device"],
    "sdp_targets": ["steertag.sdp", "steertag.rdma", "steertag.wire"],
}
"""Module -> the packages whose coverage guides."""


def main() -> None:
    name = sys.argv.pop(1)
    with atheris.instrument_imports(include=INSTRUMENTED[name]):
        module = importlib.import_module(f"tests.fuzz.{name}")
    corpus = Path(sys.argv[-1])
    corpus.mkdir(exist_ok=True)
    for number, octets in enumerate(module.seeds()):
        (corpus / f"seed-{number}").write_bytes(octets)
    atheris.Setup(sys.argv, module.one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
