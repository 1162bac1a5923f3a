"""What the device says of itself, addresses, and extended completion queues."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable

import pytest

from steertag import verbs
from steertag.rdma.rnic import RnicLimits
from steertag.verbs import (
    AH,
    CQ,
    CQEX,
    GID,
    PD,
    AHAttr,
    CompChannel,
    Context,
    CqInitAttrEx,
    GlobalRoute,
    PollCqAttr,
    QPAttr,
    QPInitAttr,
    get_device_list,
    wc_status_to_str,
)
from steertag.verbs import enums as e
from tests.sim.local import Player, players


def refusal(call: Callable[[], object]) -> int | None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call()
    return caught.value.errno


def test_the_device_is_an_rnic() -> None:
    (device,) = get_device_list()
    assert device.node_type == e.IBV_NODE_RNIC
    assert device.transport_type == e.IBV_TRANSPORT_IWARP
    assert device.guid != 0
    assert device.index == 0


def test_limits_are_the_attributes() -> None:
    limits = RnicLimits(max_qp=7, max_mr=9, max_mw=11, max_srq=3)
    with Context(limits=limits) as context:
        attr = context.query_device()
        assert (attr.max_qp, attr.max_mr, attr.max_mw, attr.max_srq) == (7, 9, 11, 3)
        assert attr.atomic_caps == e.IBV_ATOMIC_HCA
        assert attr.device_cap_flags & e.IBV_DEVICE_MEM_WINDOW_TYPE_2B
        assert not attr.device_cap_flags & e.IBV_DEVICE_XRC
        extended = context.query_device_ex()
        assert extended.orig_attr == attr
        assert (extended.odp_caps.general_caps, extended.max_dm_size) == (0, 0)


def test_the_port_is_up_and_has_one_gid() -> None:
    with Context() as context:
        port = context.query_port(1)
        assert (port.state, port.link_layer) == (e.IBV_PORT_ACTIVE, e.IBV_LINK_LAYER_ETHERNET)
        assert port.gid_tbl_len == 1
        gid = context.query_gid(1, 0)
        (entry,) = context.query_gid_table(port.gid_tbl_len)
        assert entry.gid_str() == gid.gid == str(gid)
        assert context.query_gid_ex(1, 0) == entry
        assert context.query_gid_type(1, 0) == e.IBV_GID_TYPE_SYSFS_IB_ROCE_V1
        assert context.get_pkey_index(1, context.query_pkey(1, 0)) == 0


def test_what_is_asked_of_another_port_or_index_is_einval() -> None:
    with Context() as context:
        for call in (
            lambda: context.query_port(2),
            lambda: context.query_gid(0, 0),
            lambda: context.query_gid(1, 1),
            lambda: context.query_gid_ex(1, 1),
            lambda: context.query_gid_type(1, 1),
            lambda: context.query_gid_table(0),
            lambda: context.query_pkey(1, 1),
            lambda: context.get_pkey_index(1, 1),
        ):
            assert refusal(call) == errno.EINVAL


def test_a_gid_is_eight_groups() -> None:
    gid = GID("fe80:0000:0000:0000:0001:0002:0003:00ff")
    assert gid.raw[-1] == 0xFF
    assert gid == GID(gid.gid)
    assert len({gid, GID(gid.gid), GID()}) == 2
    for text in ("", "fe80::1", "zzzz" + ":0000" * 7, "0" + ":0000" * 7):
        with pytest.raises(ValueError, match=r"GID|hexadecimal"):
            GID(text)


def test_an_address_handle_has_a_route() -> None:
    with Context() as context:
        pd = PD(context)
        good = AHAttr(is_global=1, gr=GlobalRoute(dgid=context.query_gid()))
        with AH(pd, good) as handle:
            assert handle.attr is good
        for attr in (
            None,
            AHAttr(),
            AHAttr(port_num=2, is_global=1, gr=good.gr),
            AHAttr(is_global=1, gr=GlobalRoute(dgid=GID(), sgid_index=1)),
        ):
            assert refusal(lambda attr=attr: AH(pd, attr)) == errno.EINVAL  # type: ignore[misc]
        assert refusal(lambda: AH(pd, grh=1)) == errno.EOPNOTSUPP
    with pytest.raises(ValueError, match="GlobalRoute"):
        AHAttr(is_global=1)


def test_statuses_have_libibverbs_words() -> None:
    assert wc_status_to_str(e.IBV_WC_SUCCESS) == "success"
    assert wc_status_to_str(e.IBV_WC_REM_ACCESS_ERR) == "remote access error"
    assert wc_status_to_str(e.IBV_WC_GENERAL_ERR) == "general error"
    assert wc_status_to_str(99) == "unknown (99)"


def test_every_name_of_the_package_is_there() -> None:
    assert [name for name in verbs.__all__ if not hasattr(verbs, name)] == []


# -- completion queues ---------------------------------------------------------------------------


def test_a_queue_is_resized_around_what_waits() -> None:
    with players() as (here, there):
        here.cq.resize(4)
        assert here.cq.cqe == 4
        for _ in range(3):
            here.do(here.request(e.IBV_WR_RDMA_WRITE, 1, there))
        here.qp.post_send([here.request(e.IBV_WR_RDMA_WRITE, 1, there)] * 3)
        assert here.context.wait_for(lambda: len(here.cq.queue.entries) == 3)
        for size in (2, 0, 1 << 30):
            assert refusal(lambda size=size: here.cq.resize(size)) == errno.EINVAL  # type: ignore[misc]
        here.cq.resize(3)
        assert len(here.cq.wait(8, 0)) == 3


def test_a_queue_is_read_field_by_field() -> None:
    with Context() as context, Context() as elsewhere:
        player, peer = Player(context), Player(elsewhere)
        cq = CQEX(elsewhere, CqInitAttrEx(cqe=8, wc_flags=e.IBV_WC_STANDARD_FLAGS))
        qp = verbs.QP(peer.pd, QPInitAttr(scq=cq, rcq=cq), QPAttr())
        player.qp.to_rts(player.towards(qp))
        qp.to_rts(peer.towards(player.qp))
        for n in range(2):
            qp.post_recv(verbs.RecvWR(n, sg=[peer.sge(64)]))
        assert cq.start_poll(PollCqAttr()) == errno.ENOENT
        player.do(player.request(e.IBV_WR_SEND, 9))
        player.do(verbs.SendWR(opcode=e.IBV_WR_SEND_WITH_IMM, imm_data=5))
        assert elsewhere.wait_for(lambda: len(cq.queue.entries) == 2)
        assert cq.start_poll() == 0
        assert (cq.wr_id, cq.status, cq.read_byte_len()) == (0, e.IBV_WC_SUCCESS, 9)
        assert (cq.read_opcode(), cq.read_qp_num()) == (e.IBV_WC_RECV, qp.qp_num)
        assert (cq.read_vendor_err(), cq.read_wc_flags()) == (0, 0)
        assert cq.next_poll() == 0
        assert cq.read_opcode() == e.IBV_WC_RECV_RDMA_WITH_IMM
        assert (cq.read_wc_flags(), cq.read_imm_data()) == (e.IBV_WC_WITH_IMM, 5)
        assert cq.read_src_qp() == cq.read_slid() == cq.read_sl() == cq.read_dlid_path_bits() == 0
        assert cq.poll_next() == errno.ENOENT
        cq.end_poll()
        assert refusal(cq.read_opcode) == errno.EINVAL


def test_fields_and_flags_that_there_are_none_of_are_eopnotsupp() -> None:
    with Context() as context:
        for attr in (
            CqInitAttrEx(wc_flags=e.IBV_WC_EX_WITH_CVLAN),
            CqInitAttrEx(flags=e.IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN),
        ):
            assert refusal(lambda attr=attr: CQEX(context, attr)) == errno.EOPNOTSUPP  # type: ignore[misc]
        cq = CQEX(context, CqInitAttrEx(flags=e.IBV_CREATE_CQ_ATTR_SINGLE_THREADED))
        assert refusal(lambda: cq.start_poll(PollCqAttr(comp_mask=1))) == errno.EINVAL


def test_a_channel_that_does_not_block_has_it_raise() -> None:
    with Context() as context:
        channel = CompChannel(context)
        CQ(context, 4, None, channel)
        flags = fcntl.fcntl(channel.fd, fcntl.F_GETFL)
        fcntl.fcntl(channel.fd, fcntl.F_SETFL, flags | os.O_NONBLOCK)
        with pytest.raises(BlockingIOError):
            channel.get_cq_event()
