"""Memory windows, regions that are registered anew, and what invalidates a key."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable

import pytest

from steertag.verbs import (
    MR,
    MW,
    PD,
    Context,
    MWBind,
    MWBindInfo,
    SendWR,
    inc_rkey,
)
from steertag.verbs import WcStatus as Status
from steertag.verbs import enums as e
from tests.sim.local import Player, players

LOCAL, WRITE, READ = (
    e.IBV_ACCESS_LOCAL_WRITE,
    e.IBV_ACCESS_REMOTE_WRITE,
    e.IBV_ACCESS_REMOTE_READ,
)


def info(player: Player, access: int = WRITE, offset: int = 0, length: int = 100) -> MWBindInfo:
    return MWBindInfo(player.mr, player.mr.buf + offset, length, access)


def bind_1(player: Player, window: MW, what: MWBindInfo) -> None:
    player.qp.bind_mw(window, MWBind(what, wr_id=5))
    wc = player.complete()
    assert (wc.wr_id, wc.opcode, wc.status) == (5, e.IBV_WC_BIND_MW, Status.SUCCESS)


def bind_2(player: Player, window: MW, what: MWBindInfo) -> int:
    wr = SendWR(opcode=e.IBV_WR_BIND_MW)
    wr.set_bind_wr(window, what)
    assert player.do(wr).status == Status.SUCCESS
    assert window.rkey == wr.rkey
    return wr.rkey


def through(player: Player, opcode: int, rkey: int, address: int, length: int = 10) -> Status:
    """What becomes of a request on the peer's memory under a key."""
    wr = player.request(opcode, length)
    wr.set_wr_rdma(rkey, address)
    status = player.do(wr).status
    assert isinstance(status, Status)
    return status


@pytest.mark.parametrize("kind", [e.IBV_MW_TYPE_1, e.IBV_MW_TYPE_2])
def test_a_window_grants_its_own_rights_on_its_own_octets(kind: int) -> None:
    for access, opcode, offset, expected in [
        (WRITE, e.IBV_WR_RDMA_WRITE, 20, Status.SUCCESS),
        (WRITE, e.IBV_WR_RDMA_WRITE, 119, Status.SUCCESS),
        (WRITE, e.IBV_WR_RDMA_WRITE, 19, Status.REM_ACCESS_ERR),
        (WRITE, e.IBV_WR_RDMA_WRITE, 120, Status.REM_ACCESS_ERR),
        (WRITE, e.IBV_WR_RDMA_READ, 20, Status.REM_ACCESS_ERR),
        (READ, e.IBV_WR_RDMA_READ, 20, Status.SUCCESS),
        (READ | LOCAL, e.IBV_WR_RDMA_WRITE, 20, Status.REM_ACCESS_ERR),
    ]:
        with players() as (here, there), MW(there.pd, kind) as window:
            (bind_1 if kind == e.IBV_MW_TYPE_1 else bind_2)(there, window, info(there, access, 20))
            at = there.mr.buf + offset
            assert through(here, opcode, window.rkey, at, 1) == expected


def test_a_zero_based_window_begins_at_0() -> None:
    with players() as (here, there):
        rkey = bind_2(there, MW(there.pd, 2), info(there, WRITE | e.IBV_ACCESS_ZERO_BASED, 64))
        here.memory[:4] = b"zero"
        assert through(here, e.IBV_WR_RDMA_WRITE, rkey, 0, 4) == Status.SUCCESS
        assert there.memory[64:68] == b"zero"


def test_binding_a_window_of_type_1_again_ends_its_old_key() -> None:
    with players() as (here, there):
        window = MW(there.pd, e.IBV_MW_TYPE_1)
        bind_1(there, window, info(there))
        old = window.rkey
        bind_1(there, window, info(there))
        assert window.rkey != old
        buf = there.mr.buf
        assert through(here, e.IBV_WR_RDMA_WRITE, window.rkey, buf) == Status.SUCCESS
        assert through(here, e.IBV_WR_RDMA_WRITE, old, buf) == Status.REM_ACCESS_ERR


def unbind_by_no_octets(here: Player, there: Player, window: MW) -> None:
    bind_1(there, window, info(there, 0, 0, 0))


def invalidate_locally(here: Player, there: Player, window: MW) -> None:
    wr = SendWR(opcode=e.IBV_WR_LOCAL_INV, invalidate_rkey=window.rkey)
    assert there.do(wr).opcode == e.IBV_WC_LOCAL_INV


def invalidate_remotely(here: Player, there: Player, window: MW) -> None:
    there.receive(3)
    wr = here.request(e.IBV_WR_SEND_WITH_INV, 4)
    wr.invalidate_rkey = window.rkey
    assert here.do(wr).status == Status.SUCCESS
    wc = there.complete()
    assert (wc.wr_id, wc.byte_len, wc.wc_flags) == (3, 4, e.IBV_WC_WITH_INV)
    assert wc.invalidated_rkey == window.rkey


def close(here: Player, there: Player, window: MW) -> None:
    window.close()


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        (1, unbind_by_no_octets),
        (1, close),
        (2, invalidate_locally),
        (2, invalidate_remotely),
        (2, close),
    ],
)
def test_a_window_that_was_ended_lets_nobody_in(
    kind: int, end: Callable[[Player, Player, MW], None]
) -> None:
    with players() as (here, there):
        window = MW(there.pd, kind)
        (bind_1 if kind == 1 else bind_2)(there, window, info(there))
        rkey, at = window.rkey, there.mr.buf
        assert through(here, e.IBV_WR_RDMA_WRITE, rkey, at) == Status.SUCCESS
        end(here, there, window)
        assert through(here, e.IBV_WR_RDMA_WRITE, rkey, at) == Status.REM_ACCESS_ERR


def test_a_window_of_type_2_can_be_bound_again_once_it_was_invalidated() -> None:
    with players() as (here, there):
        window = MW(there.pd, e.IBV_MW_TYPE_2)
        first = bind_2(there, window, info(there))
        invalidate_locally(here, there, window)
        second = bind_2(there, window, info(there))
        assert second == inc_rkey(first)
        status = through(here, e.IBV_WR_RDMA_WRITE, second, there.mr.buf)
        assert status == Status.SUCCESS


def test_what_can_not_be_bound_is_a_bind_error() -> None:
    with players() as (here, there):
        wr = SendWR(1, opcode=e.IBV_WR_BIND_MW)
        wr.set_bind_wr(MW(there.pd, 2), info(there, WRITE, 0, there.mr.length + 1))
        there.qp.post_send([wr, there.request(e.IBV_WR_RDMA_WRITE, 1, here)])
        assert [there.complete().status for _ in range(2)] == [
            Status.MW_BIND_ERR,
            Status.WR_FLUSH_ERR,
        ]


def test_a_region_without_the_right_takes_no_window() -> None:
    with players() as (_, there):
        plain = MR(there.pd, bytearray(100), LOCAL | WRITE)
        wr = SendWR(opcode=e.IBV_WR_BIND_MW)
        wr.set_bind_wr(MW(there.pd, 2), MWBindInfo(plain, plain.buf, 10, WRITE))
        assert there.do(wr).status == Status.MW_BIND_ERR


def test_bind_mw_takes_windows_of_type_1_of_its_own_domain() -> None:
    with players() as (_, there):
        for window in (MW(there.pd, 2), MW(PD(there.context), 1)):
            with pytest.raises(OSError, match="type 1") as caught:
                there.qp.bind_mw(window, MWBind(info(there)))
            assert caught.value.errno == errno.EINVAL


def test_a_window_of_another_type_is_einval() -> None:
    with Context() as context, pytest.raises(OSError, match="type 3") as caught:
        MW(PD(context), 3)
    assert caught.value.errno == errno.EINVAL


def test_a_region_is_busy_while_windows_are_bound_to_it() -> None:
    with players() as (_, there):
        window = MW(there.pd, 2)
        bind_2(there, window, info(there))
        with pytest.raises(OSError, match="windows") as caught:
            there.mr.close()
        assert caught.value.errno == errno.EBUSY
        window.close()
        there.mr.close()


def test_the_next_key_has_the_same_index() -> None:
    assert inc_rkey(0x12345601) == 0x12345602
    assert inc_rkey(0x123456FF) == 0x12345600


# -- regions -----------------------------------------------------------------------------------


def test_new_rights_hold_under_the_old_key() -> None:
    with players() as (here, there):
        there.mr.rereg(e.IBV_REREG_MR_CHANGE_ACCESS, access=LOCAL | READ)
        assert there.mr.access == LOCAL | READ
        buf, rkey = there.mr.buf, there.mr.rkey
        assert through(here, e.IBV_WR_RDMA_READ, rkey, buf) == Status.SUCCESS
        assert through(here, e.IBV_WR_RDMA_WRITE, rkey, buf) == Status.REM_ACCESS_ERR


def test_a_region_goes_over_to_another_domain() -> None:
    with players() as (here, there):
        other = PD(there.context)
        there.mr.rereg(e.IBV_REREG_MR_CHANGE_PD, pd=other)
        assert there.mr.pd is other
        there.receive()
        wc = here.do(here.request(e.IBV_WR_SEND, 4))
        assert wc.status == Status.REM_OP_ERR
        assert there.complete().status == Status.LOC_PROT_ERR
        there.qp.close()
        there.pd.close()  # the region is not its own any more
        assert there.mr.read(1) == b"\0"


def test_a_region_gets_other_memory_of_this_process() -> None:
    memory = ctypes.create_string_buffer(64)
    with players() as (here, there):
        address = ctypes.addressof(memory)
        there.mr.rereg(e.IBV_REREG_MR_CHANGE_TRANSLATION, addr=address, length=64)
        assert (there.mr.buf, there.mr.length) == (address, 64)
        there.memory.append(1)  # the old buffer is let go
        here.memory[:5] = b"moved"
        assert through(here, e.IBV_WR_RDMA_WRITE, there.mr.rkey, address, 5) == Status.SUCCESS
        assert memory.raw[:5] == b"moved"


@pytest.mark.parametrize(
    ("flags", "arguments", "number"),
    [
        (0, {}, errno.EINVAL),
        (8, {}, errno.EINVAL),
        (e.IBV_REREG_MR_CHANGE_PD, {}, errno.EINVAL),
        (e.IBV_REREG_MR_CHANGE_TRANSLATION, {"addr": 0, "length": 8}, errno.EINVAL),
        (e.IBV_REREG_MR_CHANGE_ACCESS, {"access": WRITE}, errno.EINVAL),
    ],
)
def test_a_change_that_can_not_be_leaves_the_region_as_it_was(
    flags: int, arguments: dict[str, int], number: int
) -> None:
    with Context() as context:
        mr = MR(PD(context), bytearray(b"kept"), LOCAL)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            mr.rereg(flags, **arguments)
        assert caught.value.errno == number
        assert (mr.read(4), mr.access) == (b"kept", LOCAL)


def test_memory_at_an_address_has_that_address_for_the_peer() -> None:
    memory = ctypes.create_string_buffer(b"by address", 32)
    with Context() as context:
        mr = MR(PD(context), 32, READ, address=ctypes.addressof(memory))
        assert mr.buf == mr.addr == ctypes.addressof(memory)
        assert mr.read(10) == b"by address"


def test_a_zero_based_region_begins_at_0() -> None:
    with Context() as context:
        assert MR(PD(context), 10, LOCAL | e.IBV_ACCESS_ZERO_BASED).buf == 0


def test_there_are_no_implicit_regions() -> None:
    with Context() as context, pytest.raises(OSError, match="implicit") as caught:
        MR(PD(context), 0, LOCAL, implicit=True)
    assert caught.value.errno == errno.EOPNOTSUPP


def test_the_peer_ends_a_region_that_allows_it() -> None:
    with players() as (here, there):
        open_to_all = LOCAL | WRITE | e.IBV_ACCESS_REMOTE_INVALIDATE
        mr = MR(there.pd, bytearray(64), open_to_all)
        there.receive()
        wr = here.request(e.IBV_WR_SEND_WITH_INV, 0)
        wr.invalidate_rkey = mr.rkey
        assert here.do(wr).status == Status.SUCCESS
        assert there.complete().invalidated_rkey == mr.rkey
        status = through(here, e.IBV_WR_RDMA_WRITE, mr.rkey, mr.buf)
        assert status == Status.REM_ACCESS_ERR
