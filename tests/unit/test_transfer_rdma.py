"""The messages and the windows of the RDMA paths, against peers that keep to nothing."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from steertag import socket
from steertag.errors import WireError
from steertag.transfer import rdma
from steertag.transfer.errors import PathCode, PathFailed, TransferError
from steertag.transfer.paths import PathName
from steertag.transfer.rdma import SLOT, WINDOW, End, Job, Note, Step, Ticket
from steertag.transfer.report import Meter
from steertag.transfer.store import open_local_sink, open_local_source

PATIENCE = 30.0
RDMA = [PathName.RDMA_WRITE, PathName.RDMA_READ]

NOTES = st.builds(
    Note,
    st.sampled_from(Step),
    st.integers(0, WINDOW - 1),
    st.integers(0, SLOT),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**32 - 1),
)


@given(NOTES)
def test_parse_note_inverts_pack_note(note: Note) -> None:
    assert rdma.parse_note(rdma.pack_note(note)) == note


@given(st.binary(max_size=64) | st.binary(min_size=32, max_size=32))
def test_hostile_octets_are_a_wire_error_or_a_note_within_bounds(octets: bytes) -> None:
    try:
        note = rdma.parse_note(octets)
    except WireError:
        return
    assert note.slot < WINDOW
    assert note.length <= SLOT


@given(st.binary(min_size=1, max_size=60))
def test_a_ticket_that_is_none_is_a_wire_error(octets: bytes) -> None:
    ticket = Ticket(b"s" * 16, 7, b"b" * 16)
    assert Ticket.parse(ticket.pack()) == ticket
    for wrong in (octets, octets + ticket.pack(), ticket.pack()[:-1]):
        with pytest.raises(WireError):
            Ticket.parse(wrong)


@pytest.fixture
def ends() -> Iterator[tuple[End, End]]:
    """An RDMA connection: the active and the passive end."""
    one, other = socket.socketpair()
    with End(one) as active, End(other) as passive, ThreadPoolExecutor(1) as pool:
        connecting = pool.submit(active.connect, b"hello", PATIENCE)
        assert passive.request(PATIENCE) == b"hello"
        passive.accept()
        connecting.result(PATIENCE)
        yield active, passive


def job(path: PathName) -> Job:
    return Job(path, xxhash.xxh3_128(), Meter(), lambda count: None, PATIENCE, lambda: None)


@pytest.mark.parametrize("path", RDMA)
@pytest.mark.parametrize("size", [0, 1, SLOT, WINDOW * SLOT + 3, 3 * WINDOW * SLOT])
def test_both_digests_agree_whatever_the_size(
    ends: tuple[End, End], tmp_path: Path, path: PathName, size: int
) -> None:
    (tmp_path / "a").write_bytes(bytes(range(256)) * (size // 256) + bytes(size % 256))
    sending, receiving = job(path), job(path)
    with (
        open_local_source(tmp_path / "a") as source,
        open_local_sink(tmp_path / "b", size) as sink,
        ThreadPoolExecutor(1) as pool,
    ):
        sent = pool.submit(rdma.send, ends[0], source, sending)
        rdma.receive(ends[1], sink, receiving)
        sent.result(PATIENCE)
        sink.commit(0o600, 0)
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    assert sending.hasher.digest() == receiving.hasher.digest()
    assert receiving.meter.syscalls > 0


OUT_OF_TURN: list[list[Note]] = [
    [Note(Step.ACK, offset=SLOT)],
    [Note(Step.CHUNK, 0, 1)],
    [Note(Step.OPEN), Note(Step.OPEN)],
]


@pytest.mark.parametrize("notes", OUT_OF_TURN)
@pytest.mark.parametrize("path", RDMA)
def test_a_sender_gives_up_a_path_whose_receiver_speaks_out_of_turn(
    ends: tuple[End, End], tmp_path: Path, path: PathName, notes: list[Note]
) -> None:
    active, passive = ends
    (tmp_path / "a").write_bytes(bytes(SLOT // 2))
    for note in notes:
        active.send(note)
    with open_local_source(tmp_path / "a") as source, pytest.raises(PathFailed) as caught:
        rdma.send(passive, source, job(path))
    assert caught.value.code is PathCode.GARBLED


CHUNKS = {
    "before OPEN": [Note(Step.CHUNK, 0, 10)],
    "a gap": [Note(Step.OPEN), Note(Step.CHUNK, 0, 10, offset=1)],
    "nothing": [Note(Step.OPEN), Note(Step.CHUNK, 0, 0)],
    "beyond the end": [Note(Step.OPEN), Note(Step.CHUNK, 0, SLOT)],
    "an ACK": [Note(Step.OPEN), Note(Step.ACK)],
    "OPEN twice": [Note(Step.OPEN), Note(Step.OPEN)],
}


@pytest.mark.parametrize("notes", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("path", RDMA)
def test_a_receiver_gives_up_a_path_whose_sender_speaks_out_of_turn(
    ends: tuple[End, End], tmp_path: Path, path: PathName, notes: list[Note]
) -> None:
    active, passive = ends
    for note in notes:
        active.send(note)
    with open_local_sink(tmp_path / "b", 100) as sink, pytest.raises(PathFailed) as caught:
        rdma.receive(passive, sink, job(path))
    assert caught.value.code is PathCode.GARBLED
    assert list(tmp_path.iterdir()) == []


def drive(end: End) -> None:
    """Move `end`'s octets until its connection is over."""
    while True:
        end.completions(PATIENCE, lambda: None)


def test_a_chunk_that_cannot_be_read_ends_the_path_only(
    ends: tuple[End, End], tmp_path: Path
) -> None:
    """An RDMA Read of memory that nobody registered is refused by the peer's RNIC."""
    active, passive = ends
    active.send(Note(Step.OPEN))
    active.send(Note(Step.CHUNK, 0, 100, address=4096, rkey=12345))
    with open_local_sink(tmp_path / "b", 100) as sink, ThreadPoolExecutor(2) as pool:
        receiving = pool.submit(rdma.receive, passive, sink, job(PathName.RDMA_READ))
        driving = pool.submit(drive, active)
        with pytest.raises(PathFailed) as caught:
            receiving.result(PATIENCE)
        assert isinstance(driving.exception(PATIENCE), PathFailed)
    assert caught.value.code is PathCode.LOST


def test_a_quiet_connection_is_stalled_and_the_control_connection_is_asked(
    ends: tuple[End, End], tmp_path: Path
) -> None:
    asked = []
    quiet = Job(
        PathName.RDMA_READ,
        xxhash.xxh3_128(),
        Meter(),
        lambda count: None,
        0.3,
        lambda: asked.append(1),
    )
    with open_local_sink(tmp_path / "b", 100) as sink, pytest.raises(PathFailed) as caught:
        rdma.receive(ends[1], sink, quiet)
    assert caught.value.code is PathCode.STALLED
    assert asked


def test_a_source_that_shrank_is_not_a_matter_of_the_path(
    ends: tuple[End, End], tmp_path: Path
) -> None:
    active, passive = ends
    (tmp_path / "a").write_bytes(bytes(1000))
    active.send(Note(Step.OPEN))
    with open_local_source(tmp_path / "a") as source:
        os.truncate(tmp_path / "a", 10)
        with pytest.raises(TransferError, match="shrank"):
            rdma.send(passive, source, job(PathName.RDMA_READ))


def test_prefaulting_asks_for_every_page_once_and_counts() -> None:
    class Mapped:
        asked: list[tuple[int, int]] = []  # noqa: RUF012 - one test's own

        def madvise(self, option: int, start: int, length: int) -> None:
            self.asked.append((start, length))

    mapped, meter, size = Mapped(), Meter(), 40 * SLOT + 5
    prefault = rdma.Prefault(mapped, size, meter)  # type: ignore[arg-type]
    for end in range(0, size + WINDOW * SLOT, SLOT):
        prefault.reach(end)
    covered = 0
    for begin, length in mapped.asked:
        assert begin == covered
        assert begin % mmap.PAGESIZE == 0
        covered += length
    assert covered == size
    assert meter.syscalls == len(mapped.asked) < 15
