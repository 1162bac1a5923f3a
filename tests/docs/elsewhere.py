"""Commands in the documentation that another test, or the CI script, runs.

The key is the command as the page shows it; the value is `path::test` or `path: text in it`. A
command that is not here is run by `test_pages.py`, as the page has it.
"""

from __future__ import annotations

from typing import Final

_THERE_BEFORE: Final = (
    "tests/interop/test_new_tcp_mover.py::"
    "test_an_interface_that_was_there_before_is_used_without_any_right_and_stays"
)
ELSEWHERE: Final[dict[str, str]] = {
    "pip install uv": ".ci/run: pip install",
    "pip install uv && uv run stag demo": ".ci/run: uv run stag demo",
    "pip install uv && uv run pytest -n auto": ".ci/run: uv run pytest -n auto",
    "unshare -Urn": (
        "tests/interop/test_new_tcp_mover.py::test_a_namespace_of_anybody_s_own_will_do"
    ),
    'ip tuntap add dev stag0 mode tun user "$USER" vnet_hdr': _THERE_BEFORE,
    "ip address add 10.9.0.1/24 dev stag0": _THERE_BEFORE,
    "ip link set stag0 up": _THERE_BEFORE,
    "uv run pytest -n auto": ".ci/run: uv run pytest -n auto",
    "uv run pytest -m bench -s": ".ci/run: uv run pytest -m bench -s",
    "uv run python bench/ucx.py": "tests/bench/test_beside_peers.py::test_the_rnic_beside_ucx",
    "uv run python bench/new_tcp.py": (
        "tests/bench/test_new_tcp.py::test_bulk_beside_the_hosts_loopback"
    ),
    "uv run python bench/sdp.py": (
        "tests/bench/test_sdp.py::test_large_sends_beside_the_raw_socket"
    ),
    "uv run python bench/many.py": (
        "tests/bench/test_beside_peers.py::test_an_active_connection_among_a_thousand"
    ),
    "uv run python bench/run.py": "tests/bench/test_run.py::test_programs_beside_themselves",
    "uv run python -m steertag.compat.pyverbs examples/for_pyverbs/pingpong.py": (
        "tests/unit/test_compat_pyverbs.py::test_a_program_for_pyverbs_runs_unchanged"
    ),
    "uv run python -m tests.interop.guest.build": (
        ".ci/run: step guest uv run python -m tests.interop.guest.build"
    ),
    "uv run ruff check": ".ci/run: step lint uv run ruff check",
    "uv run ruff format --check": ".ci/run: step format uv run ruff format --check",
    "uv run mypy": ".ci/run: step types uv run mypy",
    "uv run lint-imports": ".ci/run: step imports uv run lint-imports",
    "uv run --group docs mkdocs build --strict": (
        ".ci/run: step docs uv run --group docs mkdocs build --strict"
    ),
    "uv run --group docs towncrier build --draft": (
        ".ci/run: step changelog uv run --group docs towncrier build --draft"
    ),
}
