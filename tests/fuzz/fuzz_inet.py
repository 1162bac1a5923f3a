"""AF_INET_NEW_TCP under atheris (coverage-guided): `.ci/run` runs it, a bounded number of times.

uv run --with atheris python -m tests.fuzz.fuzz_inet -runs=50000
"""

from __future__ import annotations

import sys

import atheris  # in CI only

with atheris.instrument_imports(include=["steertag.inet", "steertag.wire", "steertag.device"]):
    from tests.fuzz.targets import one_input


def main() -> None:
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
