"""AF_INET_SDP's engine under atheris (coverage-guided): `.ci/run` runs it, as `fuzz_inet`.

    uv run --with atheris python -m tests.fuzz.fuzz_sdp -runs=20000 -len_control=0 DIRECTORY

The directory is made if need be, and keeps what the fuzzer found worth keeping.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris  # in CI only

with atheris.instrument_imports(include=["steertag.sdp", "steertag.rdma", "steertag.wire"]):
    from tests.fuzz.sdp_targets import one_input, seeds


def main() -> None:
    corpus = Path(sys.argv[-1])
    corpus.mkdir(exist_ok=True)
    for number, octets in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(octets)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
