"""The verbs objects by themselves: what they refuse, what closes with what, what is left behind."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import threading

import pytest

from steertag.rdma.rnic import RnicLimits
from steertag.verbs import (
    CMID,
    CQ,
    MR,
    PD,
    QP,
    AddrInfo,
    CompChannel,
    Context,
    QPCap,
    QPInitAttr,
    get_device_list,
)
from steertag.verbs.enums import (
    IBV_ACCESS_LOCAL_WRITE,
    IBV_ACCESS_REMOTE_READ,
    IBV_QPT_RC,
    RAI_PASSIVE,
)
from tests.sim.verbs import ALL_ACCESS, TIMEOUT, connected, listening, towards


def descriptors() -> set[str]:
    gc.collect()
    return set(os.listdir("/proc/self/fd"))


def test_the_device_that_is_listed_can_be_opened() -> None:
    (device,) = get_device_list()
    with Context(device.name) as context:
        assert device.name in repr(context)
    assert "IWARP" in repr(device)


def test_another_device_is_enodev() -> None:
    with pytest.raises(OSError, match="mlx5_0") as caught:
        Context("mlx5_0")
    assert caught.value.errno == errno.ENODEV


def test_nothing_is_left_of_a_context_that_was_closed() -> None:
    before, threads = descriptors(), set(threading.enumerate())
    for progress in ("thread", "caller"):
        with Context(progress=progress) as context:  # type: ignore[arg-type]
            pd = PD(context)
            channel = CompChannel(context)
            cq = CQ(context, 10, None, channel)
            MR(pd, bytearray(10), ALL_ACCESS)
            QP(pd, QPInitAttr(scq=cq, rcq=cq))
            CMID(AddrInfo(src="127.0.0.1", flags=RAI_PASSIVE), pd=pd).listen()
            assert len(descriptors()) > len(before)
    assert descriptors() == before
    assert set(threading.enumerate()) <= threads


def test_nothing_is_left_of_connections_that_were_closed() -> None:
    before = descriptors()
    for progress in ("thread", "caller"):
        with connected(progress) as (client, server):  # type: ignore[arg-type]
            client.write(server, 100_000)
            assert client.cmid.get_send_comp(TIMEOUT).status == 0
    assert descriptors() == before


def test_a_cmid_with_a_context_of_its_own_closes_it() -> None:
    before = descriptors()
    with listening() as listener, towards(listener):
        pass
    assert descriptors() == before


def test_closing_twice_is_closing_once() -> None:
    with Context() as context:
        pd = PD(context)
        cq = CQ(context, 1)
        mr = MR(pd, bytearray(1), ALL_ACCESS)
        qp = QP(pd, QPInitAttr(scq=cq, rcq=cq))
        for thing in (qp, mr, cq, pd):
            thing.close()
            thing.close()
    context.close()


def test_closing_a_domain_closes_what_is_in_it() -> None:
    with Context() as context:
        buffer = bytearray(10)
        cq = CQ(context, 10)
        with PD(context) as pd:
            MR(pd, buffer, ALL_ACCESS)
            QP(pd, QPInitAttr(scq=cq, rcq=cq))
            with pytest.raises(BufferError):
                buffer.append(1)
        buffer.append(1)
        assert context.rnic.qps == {}
        assert context.rnic.pds == {}


def test_a_completion_queue_in_use_is_ebusy() -> None:
    with Context() as context:
        pd, cq = PD(context), CQ(context, 10)
        qp = QP(pd, QPInitAttr(scq=cq, rcq=cq))
        with pytest.raises(OSError, match="queue pairs") as caught:
            cq.close()
        assert caught.value.errno == errno.EBUSY
        qp.close()
        cq.close()


def test_a_completion_channel_in_use_is_ebusy() -> None:
    """Else its queues would write their events into whatever gets the descriptor next."""
    with Context() as context:
        channel = CompChannel(context)
        cq = CQ(context, 10, None, channel)
        with pytest.raises(OSError, match="completion queues") as caught:
            channel.close()
        assert caught.value.errno == errno.EBUSY
        cq.close()
        channel.close()


@pytest.mark.parametrize("entries", [0, -1, (1 << 20) + 1])
def test_a_completion_queue_of_an_impossible_size_is_einval(entries: int) -> None:
    with Context() as context, pytest.raises(OSError, match="entries") as caught:
        CQ(context, entries)
    assert caught.value.errno == errno.EINVAL


def test_there_is_only_one_completion_vector() -> None:
    with Context() as context, pytest.raises(OSError, match="vector"):
        CQ(context, 1, comp_vector=1)


def test_a_queue_pair_of_another_type_is_eopnotsupp() -> None:
    with Context() as context:
        pd, cq = PD(context), CQ(context, 1)
        with pytest.raises(OSError, match="RC only") as caught:
            QP(pd, QPInitAttr(qp_type=IBV_QPT_RC + 1, scq=cq, rcq=cq))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_queue_pair_without_completion_queues_is_einval() -> None:
    with Context() as context, pytest.raises(OSError, match="completion queue") as caught:
        QP(PD(context), QPInitAttr())
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize(
    "cap",
    [
        QPCap(max_send_wr=1 << 20),
        QPCap(max_recv_wr=-1),
        QPCap(max_send_sge=33),
        QPCap(max_recv_sge=33),
        QPCap(max_inline_data=1 << 20),
    ],
)
def test_capacities_that_the_device_does_not_have_are_einval(cap: QPCap) -> None:
    with Context() as context:
        cq = CQ(context, 1)
        with pytest.raises(OSError, match="capacities") as caught:
            QP(PD(context), QPInitAttr(scq=cq, rcq=cq, cap=cap))
    assert caught.value.errno == errno.EINVAL


def test_limits_of_the_device_are_enomem() -> None:
    with Context(limits=RnicLimits(max_qp=1, max_pd=1, max_mr=1)) as context:
        pd, cq = PD(context), CQ(context, 10)
        init = QPInitAttr(scq=cq, rcq=cq)
        MR(pd, bytearray(1), ALL_ACCESS)
        QP(pd, init)
        for make in (
            lambda: PD(context),
            lambda: MR(pd, bytearray(1), ALL_ACCESS),
            lambda: QP(pd, init),
        ):
            with pytest.raises(OSError, match=r"exist|registered") as caught:
                make()
            assert caught.value.errno == errno.ENOMEM


def test_a_region_of_a_size_is_memory_of_its_own() -> None:
    with Context() as context, MR(PD(context), 100, ALL_ACCESS) as mr:
        assert mr.read(100) == bytes(100)
        mr.write("héllo", 6, 3)
        assert mr.read(6, 3) == "héllo".encode()
        mr.write(b"abcdef", 2, 98)
        assert mr.read(2, 98) == b"ab"
        for offset, length in ((-1, 1), (0, 101), (100, 1), (50, -1)):
            with pytest.raises(ValueError, match="region"):
                mr.read(length, offset)
            with pytest.raises(ValueError, match="region"):
                mr.write(b"x" * 200, length, offset)


def test_a_region_of_an_impossible_size_is_refused() -> None:
    with Context() as context:
        pd = PD(context)
        for size in (0, -1):
            with pytest.raises(OSError, match="octets") as caught:
                MR(pd, size, ALL_ACCESS)
            assert caught.value.errno == errno.EINVAL


def test_keys_and_address_are_what_the_peer_is_told() -> None:
    with Context(randbits=lambda bits: 0x12345678 & ((1 << bits) - 1)) as context:
        mr = MR(PD(context), bytearray(10), ALL_ACCESS)
        assert mr.lkey == mr.rkey == 0x12345678
        assert mr.length == 10
        assert f"{mr.rkey:#010x}" in repr(mr)


def test_closing_a_region_frees_its_buffer_at_once() -> None:
    with Context() as context, mmap.mmap(-1, 4096) as mapped:
        mr = MR(PD(context), mapped, ALL_ACCESS)
        with pytest.raises(BufferError):
            mapped.close()
        mr.close()


def test_a_read_only_region_can_not_be_written_by_its_owner() -> None:
    with Context() as context:
        mr = MR(PD(context), b"constant", IBV_ACCESS_REMOTE_READ)
        with pytest.raises(TypeError):
            mr.write(b"x", 1)
        with pytest.raises(PermissionError):
            MR(PD(context), b"constant", IBV_ACCESS_LOCAL_WRITE)


def test_an_address_in_another_port_space_is_refused() -> None:
    with pytest.raises(OSError, match="port space") as caught:
        AddrInfo(port_space=0x0111)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_calls_that_need_what_a_cmid_does_not_have_say_so() -> None:
    with Context() as context, CMID(None, pd=PD(context)) as cmid:
        for call, number in (
            (lambda: cmid.connect(), errno.EINVAL),
            (lambda: cmid.listen(), errno.EINVAL),
            (lambda: cmid.getsockname(), errno.EINVAL),
            (lambda: cmid.get_request(), errno.EINVAL),
            (lambda: cmid.accept(), errno.ENOTCONN),
            (lambda: cmid.reject(), errno.ENOTCONN),
        ):
            with pytest.raises(OSError, match="CMID") as caught:
                call()
            assert caught.value.errno == number
        cmid.disconnect()
        assert cmid.disconnected
    with Context() as context, CMID(None, pd=PD(context)) as cmid:
        with pytest.raises(OSError, match="queue pair") as caught:
            cmid.get_send_comp(0)
        assert caught.value.errno == errno.ENOTCONN
