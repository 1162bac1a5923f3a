"""Registered memory: what registers, what an STag is, and what deregistering does."""

from __future__ import annotations

import array
import ctypes
import errno
import itertools
import mmap
import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from steertag.rdma.constants import (
    ACCESS_LOCAL_WRITE,
    ACCESS_REMOTE_READ,
    ACCESS_REMOTE_WRITE,
    SEND_SIGNALED,
    WcStatus,
)
from steertag.rdma.memory import Region, StagTable
from steertag.rdma.qp_state import QpState
from steertag.rdma.rnic import Rnic, RnicLimits
from steertag.rdma.wr import SGE, RecvWR, SendWR
from steertag.wire import ddp, rdmap
from tests.sim.ends import (
    ALL_ACCESS,
    SIZE,
    End,
    drain,
    feed,
    fpdus,
    ids,
    lone,
    pair,
    pattern,
    read_request_fpdu,
    send_fpdu,
    tagged,
    terminates,
    write_fpdu,
)

OK = WcStatus.SUCCESS
FLUSHED = WcStatus.WR_FLUSH_ERR
LARGE = 60_000


def bits(seed: int = 1) -> Callable[[int], int]:
    return random.Random(seed).getrandbits


def scripted(*values: int) -> Callable[[int], int]:
    """A source of "random" bits that gives these, the first for the offsets' base."""
    rest = list(values)
    return lambda count: rest.pop(0) & ((1 << count) - 1)


# -- what registers --------------------------------------------------------------------------------


class Pixel(ctypes.Structure):
    _fields_ = (("x", ctypes.c_uint16), ("y", ctypes.c_double))


WRITABLE: dict[str, Callable[[], object]] = {
    "bytearray": lambda: bytearray(64),
    "memoryview": lambda: memoryview(bytearray(100))[10:74],
    "array of doubles": lambda: array.array("d", [1.0] * 8),
    "array of unsigned octets": lambda: array.array("B", bytes(64)),
    "anonymous mmap": lambda: mmap.mmap(-1, 64),
    "numpy octets": lambda: np.zeros(64, np.uint8),
    "numpy matrix": lambda: np.zeros((4, 2, 2), np.float32),
    "numpy scalar array": lambda: np.zeros((), np.complex128),
    "numpy big-endian": lambda: np.zeros(8, ">i8"),
    "numpy records": lambda: np.zeros(4, [("a", "<u4"), ("b", "<f8")]),
    "numpy rows of a matrix": lambda: np.zeros((8, 16), np.uint8)[2:6],
    "ctypes octets": lambda: (ctypes.c_char * 64)(),
    "ctypes array": lambda: (ctypes.c_int32 * 16)(),
    "ctypes structures": lambda: (Pixel * 4)(),
    "ctypes integer": lambda: ctypes.c_uint64(),
}


@pytest.mark.parametrize("make", WRITABLE.values(), ids=WRITABLE.keys())
def test_a_contiguous_writable_buffer_registers_without_a_copy(make: Callable[[], object]) -> None:
    end = lone()
    buffer = make()
    size = memoryview(buffer).nbytes  # type: ignore[arg-type]
    region = end.rnic.register(end.pd, buffer, ALL_ACCESS)
    assert region.length == size
    data = pattern(size)
    feed(end, write_fpdu(region.stag, region.base, data))
    assert memoryview(buffer).tobytes() == data  # type: ignore[arg-type]
    feed(end, read_request_fpdu(rdmap.ReadRequest(1, 1, size, region.stag, region.base)))
    (segment,) = fpdus(drain(end))
    assert segment[ddp.TAGGED_LEN :] == data


def test_a_file_mapped_into_memory_is_written_by_the_peer(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100_000))
    end = lone()
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        region = end.rnic.register(end.pd, mapped, ALL_ACCESS)
        data = pattern(50_000)
        feed(end, write_fpdu(region.stag, region.base + 7, data))
        end.rnic.deregister(region)
    assert path.read_bytes() == bytes(7) + data + bytes(100_000 - 50_007)


READ_ONLY: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: bytes(64),
    "read-only memoryview": lambda path: memoryview(bytearray(64)).toreadonly(),
    "read-only numpy": lambda path: np.frombuffer(bytes(64), np.int32),
}


@pytest.mark.parametrize("make", READ_ONLY.values(), ids=READ_ONLY.keys())
def test_a_read_only_buffer_registers_for_reading_only(
    make: Callable[[Path], object], tmp_path: Path
) -> None:
    rnic = Rnic(bits())
    pd = rnic.alloc_pd()
    buffer = make(tmp_path)
    for access in (0, ACCESS_REMOTE_READ):
        assert rnic.register(pd, buffer, access).length == 64
    for access in (ACCESS_LOCAL_WRITE, ACCESS_LOCAL_WRITE | ACCESS_REMOTE_WRITE):
        with pytest.raises(PermissionError, match="read-only"):
            rnic.register(pd, buffer, access)


def test_a_file_mapped_read_only_registers_for_reading_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    end = lone()
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        with pytest.raises(PermissionError):
            end.rnic.register(end.pd, mapped, ALL_ACCESS)
        region = end.rnic.register(end.pd, mapped, ACCESS_REMOTE_READ)
        wr = SendWR(1, sg=[SGE(region.base + 2, 3, region.stag)], opcode=2)
        end.qp.post_send(wr)
        (segment,) = fpdus(drain(end))
        assert segment[ddp.UNTAGGED_LEN :] == b"234"
        end.rnic.deregister(region)


@pytest.mark.parametrize(
    "buffer",
    [
        np.zeros((4, 4))[:, 1],
        np.zeros((4, 4)).T[1:],
        np.asfortranarray(np.zeros((4, 4))),
        memoryview(bytearray(10))[::2],
        memoryview(bytearray(10))[::-1],
    ],
    ids=["a column", "a slice of a transpose", "Fortran order", "every other octet", "backwards"],
)
def test_a_buffer_that_is_not_contiguous_is_refused(buffer: object) -> None:
    with pytest.raises(ValueError, match="contiguous"):
        StagTable(bits()).register(1, buffer, 0)


@pytest.mark.parametrize("buffer", [b"", bytearray(), np.zeros((0, 4))])
def test_an_empty_buffer_is_refused(buffer: object) -> None:
    with pytest.raises(ValueError, match="empty"):
        StagTable(bits()).register(1, buffer, 0)


@pytest.mark.parametrize("thing", [None, "text", 5, [1, 2], object()])
def test_what_is_no_buffer_is_refused(thing: object) -> None:
    with pytest.raises(TypeError):
        StagTable(bits()).register(1, thing, 0)


@pytest.mark.parametrize("access", [8, 64, 1 << 19, 1 << 31, -1, ACCESS_REMOTE_WRITE])
def test_rights_that_make_no_sense_are_einval(access: int) -> None:
    with pytest.raises(OSError, match=r"access|local write") as caught:
        StagTable(bits()).register(1, bytearray(8), access)
    assert caught.value.errno == errno.EINVAL


def test_a_refused_registration_pins_nothing() -> None:
    rnic = Rnic(bits(), RnicLimits(max_mr=1))
    pd = rnic.alloc_pd()
    rnic.register(pd, bytearray(1), 0)
    buffer = bytearray(10)
    for access in (ACCESS_REMOTE_WRITE, 0):
        with pytest.raises(OSError, match=r"local write|registered"):
            rnic.register(pd, buffer, access)
    buffer.clear()


def test_an_rnic_has_a_limit_of_regions() -> None:
    rnic = Rnic(bits(), RnicLimits(max_mr=2))
    pd = rnic.alloc_pd()
    first = rnic.register(pd, bytearray(1), 0)
    rnic.register(pd, bytearray(1), 0)
    with pytest.raises(OSError, match="2 regions") as caught:
        rnic.register(pd, bytearray(1), 0)
    assert caught.value.errno == errno.ENOMEM
    rnic.deregister(first)
    rnic.register(pd, bytearray(1), 0)


def test_a_protection_domain_in_use_is_ebusy() -> None:
    rnic = Rnic(bits())
    pd = rnic.alloc_pd()
    region = rnic.register(pd, bytearray(1), 0)
    with pytest.raises(OSError, match="protection domain") as caught:
        rnic.dealloc_pd(pd)
    assert caught.value.errno == errno.EBUSY
    rnic.deregister(region)
    rnic.dealloc_pd(pd)


# -- STags -----------------------------------------------------------------------------------------


def test_an_stag_is_what_the_source_of_random_bits_says() -> None:
    table = StagTable(scripted(0, 0xDEADBEEF, 0x12345678))
    assert [table.register(1, bytearray(1), 0).stag for _ in range(2)] == [0xDEADBEEF, 0x12345678]


def test_index_0_and_those_in_use_are_not_given_out() -> None:
    """0 is what a forgotten field holds; 1 is that of siw's ready-to-receive frames."""
    table = StagTable(scripted(0, 0, 1, 0x7700, 0x7701, 0x7800))
    assert [table.register(1, bytearray(1), 0).stag for _ in range(2)] == [0x7700, 0x7800]


def test_the_stag_of_a_region_just_deregistered_is_not_given_out_again() -> None:
    """A peer that still has it would meet another region instead of an error."""
    table = StagTable(scripted(0, 0x7700, 0x7700, 0x7800, 0x7701, 0x7800, 0x7900))
    for stag in (0x7700, 0x7800, 0x7900):
        region = table.register(1, bytearray(1), 0)
        assert region.stag == stag
        table.deregister(region)


def test_an_index_that_is_used_again_has_another_key() -> None:
    others = [n << 8 for n in range(1, 65)]
    table = StagTable(scripted(0, 0x777755, *others, 0x777755))
    for stag in (0x777755, *others, 0x777756):
        region = table.register(1, bytearray(1), 0)
        assert region.stag == stag
        table.deregister(region)


def test_regions_lie_apart_in_the_space_of_tagged_offsets() -> None:
    table = StagTable(bits())
    regions = [table.register(1, bytearray(size), 0) for size in (1, 4096, 4097, 100_000)]
    for before, behind in itertools.pairwise(regions):
        assert before.base + before.length + 4095 <= behind.base
        assert behind.base % 4096 == 0


def test_the_offsets_of_an_rnic_begin_where_chance_says() -> None:
    bases = {StagTable(bits(seed)).register(1, bytearray(1), 0).base for seed in range(20)}
    assert len(bases) == 20


# -- pinned while registered -----------------------------------------------------------------------


def resize_bytearray(buffer: bytearray) -> None:
    buffer.append(0)


def clear_bytearray(buffer: bytearray) -> None:
    buffer.clear()


def extend_array(buffer: array.array[int]) -> None:
    buffer.append(1)


def close_mmap(buffer: mmap.mmap) -> None:
    buffer.close()


def resize_mmap(buffer: mmap.mmap) -> None:
    buffer.resize(8192)


PINNED: dict[str, tuple[Callable[[], object], Callable[..., None]]] = {
    "appending to a bytearray": (lambda: bytearray(4096), resize_bytearray),
    "clearing a bytearray": (lambda: bytearray(4096), clear_bytearray),
    "appending to an array": (lambda: array.array("I", bytes(4096)), extend_array),
    "closing an mmap": (lambda: mmap.mmap(-1, 4096), close_mmap),
    "resizing an mmap": (lambda: mmap.mmap(-1, 4096), resize_mmap),
}


@pytest.mark.parametrize(("make", "change"), PINNED.values(), ids=PINNED.keys())
def test_a_registered_buffer_can_not_be_resized_or_closed(
    make: Callable[[], object], change: Callable[..., None]
) -> None:
    rnic = Rnic(bits())
    buffer = make()
    region = rnic.register(rnic.alloc_pd(), buffer, ALL_ACCESS)
    with pytest.raises(BufferError):
        change(buffer)
    rnic.deregister(region)
    change(buffer)


def test_a_registered_numpy_array_can_not_be_resized() -> None:
    rnic = Rnic(bits())
    buffer = np.zeros(100, np.uint8)
    region = rnic.register(rnic.alloc_pd(), buffer, ALL_ACCESS)
    with pytest.raises(ValueError, match="resize"):
        buffer.resize(200)
    rnic.deregister(region)
    buffer.resize(200, refcheck=False)


# -- deregistration with work in flight ------------------------------------------------------------


def extra(end: End, size: int = SIZE) -> tuple[bytearray, Region]:
    """A second region of the end's, and its buffer."""
    memory = bytearray(pattern(size))
    return memory, end.rnic.register(end.pd, memory, ALL_ACCESS)


def test_deregistering_twice_is_deregistering_once() -> None:
    end = lone()
    end.rnic.deregister(end.region)
    end.rnic.deregister(end.region)
    assert end.rnic.table.regions == {}


def test_a_posted_request_that_has_not_begun_completes_with_a_protection_error() -> None:
    end = lone()
    memory, region = extra(end)
    wr = SendWR(1, sg=[SGE(region.base, 10, region.stag)], opcode=2)
    end.qp.post_send(wr)
    end.rnic.deregister(region)
    memory.clear()
    assert len(terminates(drain(end))) == 1
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]
    assert end.qp.state is QpState.ERROR


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("sent", [0, 1, 30_000])
def test_octets_that_are_framed_are_still_sent_as_they_were(sent: int, parts: int) -> None:
    end = lone()
    memory, region = extra(end)
    data = bytes(memory)
    sg = [SGE(region.base + part * LARGE, LARGE, region.stag) for part in range(parts)]
    end.qp.post_send(SendWR(1, sg=sg, opcode=2))
    end.engine.data_to_send()
    octets = b"".join(end.engine.data_to_send())
    if sent:
        end.engine.sent(sent)
    end.rnic.deregister(region)
    memory[:] = bytes(SIZE)
    memory.clear()
    octets = octets[:sent] + drain(end)
    assert end.qp.state is QpState.RTS
    assert b"".join(ulpdu[ddp.UNTAGGED_LEN :] for ulpdu in fpdus(octets)) == data[: parts * LARGE]
    assert ids(end.sent()) == [(1, OK)]


def test_a_message_that_is_half_framed_ends_the_connection() -> None:
    size = 3 << 20
    end = lone()
    memory, region = extra(end, size)
    data = bytes(memory)
    end.qp.post_send(SendWR(1, sg=[SGE(region.base, size, region.stag)], opcode=2))
    first = b"".join(end.engine.data_to_send())
    end.engine.sent(1000)
    end.rnic.deregister(region)
    memory.clear()
    octets = first[:1000] + drain(end)
    (terminate,) = terminates(octets)
    assert (terminate.layer, terminate.etype) == (0, 0)
    framed = b"".join(ulpdu[ddp.UNTAGGED_LEN :] for ulpdu in fpdus(octets)[:-1])
    assert framed == data[: len(framed)]
    assert ids(end.sent()) == [(1, WcStatus.LOC_PROT_ERR)]


def test_the_source_of_a_read_response_that_goes_away_ends_the_connection() -> None:
    end = lone()
    memory, region = extra(end)
    feed(end, read_request_fpdu(rdmap.ReadRequest(1, 1, 1000, region.stag, region.base)))
    end.rnic.deregister(region)
    memory.clear()
    assert len(terminates(drain(end))) == 1
    assert end.qp.state is QpState.ERROR


@pytest.mark.parametrize("placed", [0, 1, 20_000, LARGE])
def test_a_write_on_its_way_into_the_region_ends_the_connection(placed: int) -> None:
    end = lone()
    memory, region = extra(end)
    octets = write_fpdu(region.stag, region.base + 5, b"\xff" * LARGE)
    feed(end, octets[: 16 + placed])
    end.rnic.deregister(region)
    after = bytes(memory)
    memory.clear()
    assert end.qp.state is QpState.TERMINATE
    feed(end, octets[16 + placed :])
    (terminate,) = terminates(drain(end))
    assert (terminate.layer, terminate.etype, terminate.code) == (1, 1, ddp.T_INVALID_STAG)
    assert after[5 : 5 + placed] == b"\xff" * placed
    assert after[5 + placed :] == pattern(SIZE)[5 + placed :]


def test_a_send_on_its_way_into_the_region_ends_the_connection() -> None:
    end = lone()
    memory, region = extra(end)
    sg = [SGE(end.region.base, 10_000, end.region.stag), SGE(region.base, SIZE, region.stag)]
    end.qp.post_recv(RecvWR(4, sg=sg))
    octets = send_fpdu(b"\xff" * LARGE)
    feed(end, octets[:40_000])
    end.rnic.deregister(region)
    memory.clear()
    assert len(terminates(drain(end))) == 1
    assert ids(end.got()) == [(4, FLUSHED)]


def test_a_read_response_on_its_way_into_the_region_ends_the_connection() -> None:
    end = lone()
    memory, region = extra(end)
    wr = SendWR(6, sg=[SGE(region.base, LARGE, region.stag)], opcode=4)
    end.qp.post_send(wr)
    drain(end)
    feed(end, tagged(2, region.stag, region.base, b"\xff" * LARGE)[:30_000])
    end.rnic.deregister(region)
    memory.clear()
    assert len(terminates(drain(end))) == 1
    assert ids(end.sent()) == [(6, FLUSHED)]


def test_a_later_segment_for_the_region_ends_the_connection() -> None:
    end = lone()
    memory, region = extra(end)
    feed(end, write_fpdu(region.stag, region.base, b"\xff" * 10, last=False))
    end.rnic.deregister(region)
    memory.clear()
    assert end.qp.state is QpState.RTS
    feed(end, write_fpdu(region.stag, region.base + 10, b"\xff" * 10))
    assert len(terminates(drain(end))) == 1


def test_a_region_goes_without_a_trace_when_nothing_is_under_way() -> None:
    joined = pair()
    client, server = joined.client, joined.server
    memory, region = extra(server)
    client.memory[:] = pattern(SIZE, 9)
    client.write(region, 0, 0, SIZE)
    client.read(region, 0, 0, SIZE)
    joined.run()
    server.rnic.deregister(region)
    memory.clear()
    client.write(server.region, 0, 0, 100)
    joined.run()
    assert [wc.status for wc in client.sent()] == [OK] * 3
    assert client.qp.state is QpState.RTS


def test_another_region_over_the_same_buffer_is_not_touched() -> None:
    """Slices of one large buffer are registered one by one, and go one by one."""
    end = lone()
    whole = bytearray(2 * SIZE)
    kept = end.rnic.register(end.pd, memoryview(whole)[:SIZE], ALL_ACCESS)
    gone = end.rnic.register(end.pd, memoryview(whole)[SIZE:], ALL_ACCESS)
    twice = end.rnic.register(end.pd, whole, ALL_ACCESS)
    octets = write_fpdu(kept.stag, kept.base, b"\xff" * LARGE)
    feed(end, octets[:20_000])
    end.qp.post_send(SendWR(1, sg=[SGE(kept.base, LARGE, kept.stag)], opcode=2))
    end.engine.data_to_send()
    end.rnic.deregister(gone)
    end.rnic.deregister(twice)
    feed(end, octets[20_000:])
    assert end.qp.state is QpState.RTS
    assert whole[:LARGE] == b"\xff" * LARGE
    drain(end)
    assert ids(end.sent()) == [(1, OK)]
    end.rnic.deregister(kept)
    whole.clear()


def test_deregistering_reaches_every_queue_pair_of_the_domain() -> None:
    first = lone()
    qp = first.rnic.create_qp(first.pd, first.scq, first.rcq, first.qp.cap)
    qp.connected(crc=True, ird=1, ord=1, held=False, max_ulpdu=65534)
    wr = SendWR(1, sg=[first.sge(0, LARGE)], rkey=5, remote_addr=5, send_flags=SEND_SIGNALED)
    qp.post_send(wr)
    qp.data_to_send()
    feed(first, write_fpdu(first.region.stag, first.region.base, bytes(LARGE))[:20_000])
    first.rnic.deregister(first.region)
    first.memory.clear()
    assert first.qp.state is QpState.TERMINATE
    assert qp.state is QpState.RTS


def test_a_struct_packed_into_a_region_is_what_a_read_sees() -> None:
    end = lone()
    struct.pack_into("!QI", end.memory, 16, 1 << 40, 7)
    feed(end, read_request_fpdu(rdmap.ReadRequest(1, 1, 12, end.region.stag, end.region.base + 16)))
    (segment,) = fpdus(drain(end))
    assert struct.unpack("!QI", segment[ddp.TAGGED_LEN :]) == (1 << 40, 7)
