"""rdma-core's own tests, as Debian ships them, run through the pyverbs layer without a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import pyverbs_suite as suite
from tests.interop.guest import archive
from tests.interop.guest.build import cache_directory
from tests.support import require_tool, require_unshare

EXPECTED = suite.expected()
CM = "test_rdmacm"


@pytest.fixture(scope="module")
def tests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], bool]:
    """The tests in a directory, their names, and whether the table is about this version."""
    require_tool("apt-get")
    require_tool("dpkg-deb")
    (package,) = archive.download([EXPECTED.package], cache_directory() / "packages")
    unpacked = tmp_path_factory.mktemp("package")
    archive.unpack([package], unpacked)
    directory = tmp_path_factory.mktemp("tests")
    suite.prepare(unpacked, directory)
    version = archive.versions(EXPECTED.package)[EXPECTED.package]
    return directory, suite.names(directory), version.partition("-")[0] == EXPECTED.version


def test_the_table_has_every_test_that_the_package_has(
    tests: tuple[Path, list[str], bool],
) -> None:
    _, names, is_this_version = tests
    known = {*EXPECTED.runs, *EXPECTED.skips, *EXPECTED.left_out}
    assert names
    if is_this_version:
        assert set(names) == known


@pytest.mark.parametrize("module", EXPECTED.modules())
def test_a_module_of_rdma_core_behaves_as_the_table_says(
    module: str, tests: tuple[Path, list[str], bool]
) -> None:
    if module == CM:
        require_tool("ip")
        require_unshare("--mount", "--net")
    directory, names, is_this_version = tests
    chosen = [
        name for name in names if name.startswith(f"{module}.") and name not in EXPECTED.left_out
    ]
    if not chosen:
        # Not of this version: the test of the table says so where it matters.
        return
    output = suite.run(
        directory, ["-v", *(f"tests.{name}" for name in chosen)], isolated=module == CM
    )
    results = suite.results(output)
    assert sorted(results) == sorted(chosen), output
    wrong = {
        name: result
        for name, result in results.items()
        if not _as_expected(name, result, is_this_version=is_this_version)
    }
    assert wrong == {}, output


def _as_expected(name: str, result: str, *, is_this_version: bool) -> bool:
    if name in EXPECTED.runs:
        return result == "ok"
    if name in EXPECTED.skips:
        return EXPECTED.reasons[EXPECTED.skips[name]][1].search(result) is not None
    # A test of another version: it may pass or skip itself.
    return not is_this_version and result not in ("FAIL", "ERROR")


def test_the_reference_page_has_the_table() -> None:
    page = suite.PAGE.read_text(encoding="utf-8")
    _, found, rest = page.partition(suite.BEGIN)
    assert found, "the page has no place for the list"
    assert rest.partition(suite.END)[0].strip() == suite.reference().strip(), (
        "python -m tests.interop.pyverbs_suite brings the page up to date"
    )


def test_what_is_skipped_has_a_reason_and_every_reason_is_used() -> None:
    assert set(EXPECTED.skips.values()) == set(EXPECTED.reasons)
    assert not EXPECTED.runs & EXPECTED.skips.keys()
    assert not EXPECTED.left_out.keys() & (EXPECTED.runs | EXPECTED.skips.keys())
