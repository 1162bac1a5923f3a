"""AF_INET_NEW_TCP under atheris (coverage-guided): `.ci/run` runs it, a bounded number of times.

    uv run --with atheris python -m tests.fuzz.fuzz_inet -runs=50000 -len_control=0 DIRECTORY

The directory is made if need be, and keeps what the fuzzer found worth keeping.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # in CI only

with atheris.instrument_imports(include=["steertag.inet", "steertag.wire", "steertag.device"]):
    from tests.fuzz.targets import one_input, seeds


def main() -> None:
    corpus = Path(sys.argv[-1])
    corpus.mkdir(exist_ok=True)
    for number, octets in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(octets)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
