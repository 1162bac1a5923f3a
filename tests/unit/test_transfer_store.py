"""Files at both ends: nobody leaves the tree, nothing half-done gets a final name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from steertag.transfer.errors import ExitCode, TransferError
from steertag.transfer.store import (
    Sink,
    Tree,
    open_local_sink,
    open_local_source,
    part_name,
    split_name,
)


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "served" / "sub").mkdir(parents=True)
    (tmp_path / "served" / "file").write_bytes(b"inside")
    (tmp_path / "secret").write_bytes(b"outside")
    opened = Tree(tmp_path / "served")
    yield opened
    opened.close()


def fill(sink: Sink, data: bytes) -> None:
    os.pwrite(sink.fd, data, 0)


def code_of(caught: pytest.ExceptionInfo[TransferError]) -> ExitCode:
    return caught.value.code


# Names


@pytest.mark.parametrize("name", ["../secret", "sub/../../secret", "..", "/etc/passwd", "/"])
def test_a_name_that_climbs_or_is_absolute_is_outside(tree: Tree, name: str) -> None:
    for attempt in (
        lambda: tree.open_source(name),
        lambda: tree.open_sink(name, 1, True),
        lambda: list(tree.entries(name)),
    ):
        with pytest.raises(TransferError) as caught:
            attempt()
        if name == "/" and "directory" in str(caught.value):
            continue  # a sink's name that ends in a slash is refused as a directory first
        assert code_of(caught) is ExitCode.OUTSIDE_DIRECTORY


@pytest.mark.parametrize(
    ("link", "target", "name"),
    [
        ("served/link", "../secret", "link"),
        ("served/link", "file", "link"),
        ("served/dir", "..", "dir/secret"),
        ("served/dir", "sub", "dir/x"),
    ],
)
def test_a_symbolic_link_is_not_followed(
    tree: Tree, tmp_path: Path, link: str, target: str, name: str
) -> None:
    (tmp_path / link).symlink_to(target)
    with pytest.raises(TransferError, match="symbolic link") as caught:
        tree.open_source(name)
    assert code_of(caught) is ExitCode.OUTSIDE_DIRECTORY
    with pytest.raises(TransferError, match="symbolic link"):
        tree.open_sink(name, 1, True)
    assert (tmp_path / "secret").read_bytes() == b"outside"


def test_a_link_in_the_place_of_a_part_file_is_not_written_through(
    tree: Tree, tmp_path: Path
) -> None:
    (tmp_path / "served" / "new.part").symlink_to("../secret")
    with pytest.raises(TransferError) as caught:
        tree.open_sink("new", 3, True)
    assert code_of(caught) is ExitCode.OUTSIDE_DIRECTORY
    assert (tmp_path / "secret").read_bytes() == b"outside"


def test_dots_and_double_slashes_are_as_in_any_path() -> None:
    assert split_name("a//b/./c/") == ["a", "b", "c"]
    assert split_name("") == []
    assert split_name("...") == ["..."]


@pytest.mark.parametrize("name", ["none", "sub/none", "none/none", "file/x"])
def test_a_name_that_is_not_there_is_no_such_file(tree: Tree, name: str) -> None:
    with pytest.raises(TransferError) as caught:
        tree.open_source(name)
    assert code_of(caught) is ExitCode.NO_SUCH_FILE


def test_a_fifo_is_refused_and_does_not_hang(tree: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "served" / "pipe")
    with pytest.raises(TransferError, match="regular"):
        tree.open_source("pipe")
    with pytest.raises(TransferError, match="regular"):
        open_local_source(tmp_path / "served" / "pipe")
    os.mkfifo(tmp_path / "served" / "new.part")
    with pytest.raises(TransferError, match="regular"):
        tree.open_sink("new", 1, True)


@pytest.mark.parametrize("name", ["pipe", "link-to-a-pipe"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, name: str) -> None:
    # A rename would replace it: for root, /dev/null by a file.
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link-to-a-pipe").symlink_to("pipe")
    with pytest.raises(TransferError, match="regular") as caught:
        open_local_sink(tmp_path / name, 1)
    assert code_of(caught) is ExitCode.FAILURE
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link-to-a-pipe", "pipe"]
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link-to-a-pipe").is_symlink()


def test_a_client_does_not_replace_a_fifo(tree: Tree, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "served" / "pipe")
    with pytest.raises(TransferError, match="regular"):
        tree.open_sink("pipe", 1, True)
    assert (tmp_path / "served" / "pipe").is_fifo()


def test_a_directory_is_no_file(tree: Tree, tmp_path: Path) -> None:
    for attempt in (
        lambda: tree.open_source("sub"),
        lambda: tree.open_source(""),
        lambda: tree.open_sink("sub", 1, True),
        lambda: tree.open_sink("new/", 1, True),
        lambda: open_local_source(tmp_path),
    ):
        with pytest.raises(TransferError, match="director"):
            attempt()


def test_entries_say_what_is_there_without_following(tree: Tree, tmp_path: Path) -> None:
    (tmp_path / "served" / "link").symlink_to("/etc")
    os.mkfifo(tmp_path / "served" / "pipe")
    found = {entry.name: entry for entry in tree.entries("")}
    kinds = {name: entry.type for name, entry in found.items()}
    assert kinds == {"file": "file", "sub": "directory", "link": "symlink", "pipe": "other"}
    assert found["file"].size == 6
    assert [entry.name for entry in tree.entries("file")] == ["file"]
    assert list(tree.entries("sub/")) == []


# Sinks


def test_a_file_appears_whole_with_mode_and_time(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 5) as sink:
        fill(sink, b"hello")
        assert [p.name for p in tmp_path.iterdir()] == ["new.part"]
        sink.commit(0o640, 1_234_567_890_123_456_789)
    assert [p.name for p in tmp_path.iterdir()] == ["new"]
    status = (tmp_path / "new").stat()
    assert (tmp_path / "new").read_bytes() == b"hello"
    assert (status.st_mode & 0o7777, status.st_mtime_ns) == (0o640, 1_234_567_890_123_456_789)


def test_set_user_id_does_not_travel(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 0) as sink:
        sink.commit(0o6755, 0)
    assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o755


def test_a_sink_that_is_left_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with open_local_sink(tmp_path / "old", 5) as sink:
        fill(sink, b"newer")
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_bytes() == b"old"


def test_space_is_reserved_before_the_first_octet(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 1 << 20) as sink:
        assert sink.reserved
        assert os.fstat(sink.fd).st_blocks * 512 >= 1 << 20


def test_a_left_over_part_is_overwritten_in_place(tmp_path: Path) -> None:
    (tmp_path / "new.part").write_bytes(b"x" * 100)
    inode = (tmp_path / "new.part").stat().st_ino
    with open_local_sink(tmp_path / "new", 3) as sink:
        fill(sink, b"abc")
        sink.commit(0o600, 0)
    assert (tmp_path / "new").stat().st_ino == inode
    assert (tmp_path / "new").read_bytes() == b"abc"


def test_a_part_with_another_name_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    os.link(tmp_path / "precious", tmp_path / "new.part")
    with open_local_sink(tmp_path / "new", 3) as sink:
        fill(sink, b"abc")
        sink.commit(0o600, 0)
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "new").read_bytes() == b"abc"


def test_two_sinks_of_one_name_do_not_mix(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 3) as sink:
        with pytest.raises(TransferError) as caught:
            open_local_sink(tmp_path / "new", 3)
        assert code_of(caught) is ExitCode.BUSY
        fill(sink, b"abc")
        sink.commit(0o600, 0)
    assert (tmp_path / "new").read_bytes() == b"abc"


def test_a_file_called_part_does_not_replace_one_that_is_arriving(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 3) as sink:
        with open_local_sink(tmp_path / "new.part", 5) as other:
            fill(other, b"other")
            with pytest.raises(TransferError) as caught:
                other.commit(0o600, 0)
            assert code_of(caught) is ExitCode.BUSY
        fill(sink, b"abc")
        sink.commit(0o600, 0)
    assert (tmp_path / "new").read_bytes() == b"abc"


def test_a_part_that_was_moved_away_is_not_taken_for_ours(tmp_path: Path) -> None:
    with open_local_sink(tmp_path / "new", 3) as sink:
        (tmp_path / "new.part").rename(tmp_path / "stolen")
        (tmp_path / "new.part").write_bytes(b"planted")
        with pytest.raises(TransferError) as caught:
            sink.commit(0o600, 0)
    assert code_of(caught) is ExitCode.BUSY
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "new.part").read_bytes() == b"planted"


def test_without_replace_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    with pytest.raises(TransferError, match="exists"):
        open_local_sink(tmp_path / "old", 3, replace=False)
    with open_local_sink(tmp_path / "late", 3, replace=False) as sink:
        (tmp_path / "late").write_bytes(b"first")
        with pytest.raises(TransferError, match="exists"):
            sink.commit(0o600, 0)
    assert (tmp_path / "late").read_bytes() == b"first"
    assert (tmp_path / "old").read_bytes() == b"old"


def test_the_longest_name_has_a_part_too(tmp_path: Path) -> None:
    leaf = "n" * 255
    assert part_name("short") == "short.part"
    assert len(os.fsencode(part_name("é" * 127))) <= 255
    with open_local_sink(tmp_path / leaf, 1) as sink:
        fill(sink, b"x")
        sink.commit(0o600, 0)
    assert (tmp_path / leaf).read_bytes() == b"x"


# Sources


def test_a_source_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "live"
    path.write_bytes(b"12345")
    with open_local_source(path) as source:
        source.check_unchanged()
        path.write_bytes(b"123")
        with pytest.raises(TransferError, match="5 to 3 octets") as caught:
            source.check_unchanged()
        assert code_of(caught) is ExitCode.SOURCE_CHANGED
    with open_local_source(path) as source:
        os.utime(path, ns=(0, source.mtime_ns + 1))
        with pytest.raises(TransferError, match="written to"):
            source.check_unchanged()
