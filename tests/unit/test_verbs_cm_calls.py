"""A CMID's calls: addresses and names, options, what may be called when, and what is posted."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from new_protocol import AF_EXAMPLE, register

from steertag import Stack
from steertag.device import memory_link
from steertag.runtime.driver import Tap
from steertag.runtime.stream import Stream
from steertag.verbs import (
    CMID,
    PD,
    AddrInfo,
    CMEventChannel,
    ConnParam,
    Context,
    QPCap,
    QPInitAttr,
)
from steertag.verbs.cm.state import TRANSITIONS, CmCall, CmState, step
from steertag.verbs.enums import (
    IBV_QP_TIMEOUT,
    RAI_FAMILY,
    RAI_NUMERICHOST,
    RAI_PASSIVE,
    RDMA_OPTION_ID,
)
from tests.sim.cm import (
    E,
    channel,
    connect_both,
    expect,
    listening_on,
    request_on,
    resolve,
    resolved,
)
from tests.sim.verbs import HOST, TIMEOUT, connected, listening, region, towards

TOS, REUSEADDR, AFONLY, ACK_TIMEOUT = range(4)
TCP_USER_TIMEOUT = 18


class Streams:
    """Sees every stream of a Context."""

    def __init__(self, context: Context) -> None:
        self.seen: list[Stream] = []
        context.tap_for = self.take

    def take(self, stream: Stream) -> Tap | None:
        self.seen.append(stream)
        return None

    def option(self, level: int, option: int) -> list[int]:
        return [stream.getsockopt(level, option) for stream in self.seen]  # type: ignore[attr-defined]


# -- names -----------------------------------------------------------------------------------------


def test_hosts_and_services_are_found_by_name_or_number() -> None:
    found = AddrInfo(dst="localhost", dst_service="http")
    assert found.dst_addr is not None
    assert found.dst_addr[0] in ("127.0.0.1", "::1")
    assert found.dst_addr[1] == 80
    assert AddrInfo(dst=HOST, dst_service="4791").dst_addr == (HOST, 4791)
    passive = AddrInfo(src_service=7471, flags=RAI_PASSIVE)
    assert passive.src_addr == ("0.0.0.0", 7471)
    assert (passive.family, passive.dst_addr) == (socket.AF_INET, None)
    both = AddrInfo("::1", "::1", 1, 2)
    assert both.source_for(socket.AF_INET6) == ("::1", 1, 0, 0)
    assert both.source_for(socket.AF_INET) is None
    assert both.family == socket.AF_INET6
    only = AddrInfo(dst="localhost", dst_service=1, flags=RAI_FAMILY, family=socket.AF_INET)
    assert {family for family, _ in only.destinations} == {socket.AF_INET}


def test_an_empty_address_can_be_filled_and_emptied() -> None:
    address = AddrInfo()
    assert (address.src_addr, address.dst_addr, address.family) == (None, None, socket.AF_UNSPEC)
    address.get_addrinfo(src=HOST, dst=HOST, dst_service="7471", port_space=0)
    assert (address.src_addr, address.dst_addr) == ((HOST, 0), (HOST, 7471))
    assert "7471" in repr(address)
    address.close()
    assert address.dst_addr is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: AddrInfo(dst="no-such-host.invalid", dst_service=1), "no-such-host.invalid"),
        (lambda: AddrInfo(dst=HOST, dst_service="no-such-service"), "no-such-service"),
        (lambda: AddrInfo(dst="localhost", flags=RAI_NUMERICHOST), "localhost"),
        (lambda: AddrInfo(dst="a" * 100 + ".b", dst_service=1), "aaa"),
        (lambda: AddrInfo(dst=HOST, flags=0x10), "flags 0x10"),
        (lambda: AddrInfo(dst=HOST, port_space=0x13F), "port space 0x13f"),
    ],
)
def test_what_is_no_address_is_said_in_one_line(call: Callable[[], object], says: str) -> None:
    with pytest.raises(OSError, match=says) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_peers_name_is_tried_at_each_of_its_addresses() -> None:
    with channel() as events, listening() as listener:
        address = AddrInfo(dst=HOST, dst_service=listener.get_src_port())
        address.destinations.insert(0, (int(socket.AF_INET), ("127.0.0.2", 1)))
        with ThreadPoolExecutor(1) as pool:
            accepting = pool.submit(listener.get_request, TIMEOUT)
            client = CMID(events)
            client.resolve_addr(address)
            expect(events, E.RDMA_CM_EVENT_ADDR_RESOLVED)
            client.resolve_route()
            expect(events, E.RDMA_CM_EVENT_ROUTE_RESOLVED)
            client.connect()
            server = accepting.result(TIMEOUT)
            server.accept()
            assert expect(events, E.RDMA_CM_EVENT_ESTABLISHED).id is client
            assert client.getpeername() == listener.getsockname()


def test_a_name_is_looked_up_beside_the_program() -> None:
    with channel() as events:
        cmid = CMID(events)
        with pytest.raises(OSError, match="no address") as caught:
            cmid.query_addrinfo()
        assert caught.value.errno == errno.ENODATA
        cmid.resolve_addrinfo(HOST, "7471")
        assert expect(events, E.RDMA_CM_EVENT_ADDRINFO_RESOLVED).id is cmid
        assert cmid.query_addrinfo().dst_addr == (HOST, 7471)
        cmid.resolve_addrinfo(HOST, flags=RAI_PASSIVE)
        expect(events, E.RDMA_CM_EVENT_ADDRINFO_RESOLVED)
        assert cmid.query_addrinfo().src_addr == (HOST, 0)
        cmid.resolve_addrinfo("no-such-host", flags=RAI_NUMERICHOST)
        event = expect(events, E.RDMA_CM_EVENT_ADDRINFO_ERROR)
        assert event.status == -errno.ENODATA
        assert "no-such-host" in str(event.error)
        cmid.migrate_id(None)
        cmid.resolve_addrinfo(HOST, 1)
        assert cmid.query_addrinfo().dst_addr == (HOST, 1)
        with pytest.raises(socket.gaierror):
            cmid.resolve_addrinfo("no-such-host", flags=RAI_NUMERICHOST)


# -- addresses of connections ----------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_both_ends_know_both_addresses(host: str) -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs, host=host)
        assert listener.getsockname() == (host, listener.get_src_port())
        client = resolved(ours, listener.get_src_port(), host=host)
        assert client.getsockname()[0] == host
        client.connect()
        server, _ = request_on(theirs)
        assert server.getsockname() == client.getpeername() == listener.getsockname()
        server.accept()
        expect(ours, E.RDMA_CM_EVENT_ESTABLISHED)
        assert client.get_local_addr() == server.get_peer_addr() == client.getsockname()
        assert client.get_src_port() == server.get_dst_port() > 0
        client.close()
        expect(theirs, E.RDMA_CM_EVENT_ESTABLISHED)
        expect(theirs, E.RDMA_CM_EVENT_DISCONNECTED)
        assert server.getpeername()[0] == host


def test_a_bound_port_is_what_a_connection_comes_from() -> None:
    with channel() as ours, channel() as theirs:
        listener = listening_on(theirs)
        client = CMID(ours)
        client.bind_addr(AddrInfo(src="127.0.0.7"))
        bound = client.getsockname()
        assert bound[0] == "127.0.0.7"
        assert bound[1]
        client.resolve_addr(AddrInfo(dst=HOST, dst_service=listener.get_src_port()))
        expect(ours, E.RDMA_CM_EVENT_ADDR_RESOLVED)
        client.resolve_route()
        expect(ours, E.RDMA_CM_EVENT_ROUTE_RESOLVED)
        client.connect()
        server, _ = request_on(theirs)
        assert server.getpeername() == bound == client.getsockname()


def test_an_address_in_use_is_refused_when_it_is_bound() -> None:
    with channel() as events:
        taken = listening_on(events)
        second = CMID(events)
        with pytest.raises(OSError, match=f"in use.*{taken.get_src_port()}") as caught:
            second.bind_addr(AddrInfo(src=HOST, src_service=taken.get_src_port()))
        assert caught.value.errno == errno.EADDRINUSE
        assert second.state is CmState.IDLE
        second.bind_addr(AddrInfo(src=HOST))
        assert second.state is CmState.ADDR_BOUND


def test_a_cmid_that_is_bound_to_nothing_listens_anywhere() -> None:
    with channel() as ours, channel() as theirs:
        listener = CMID(theirs)
        listener.listen()
        assert listener.getsockname()[0] == "0.0.0.0"
        connect_both(ours, theirs, listener)


# -- options ---------------------------------------------------------------------------------------


def test_options_reach_the_streams_of_both_sides() -> None:
    with Context() as here, Context() as there:
        ours, theirs = CMEventChannel(here), CMEventChannel(there)
        mine, its = Streams(here), Streams(there)
        listener = CMID(theirs)
        for cmid in (listener, client := CMID(ours)):
            cmid.set_option(RDMA_OPTION_ID, TOS, 0x28, 1)
            cmid.set_option(RDMA_OPTION_ID, ACK_TIMEOUT, 18, 1)
        listener.bind_addr(AddrInfo(src=HOST, flags=RAI_PASSIVE))
        listener.listen()
        client.resolve_addr(AddrInfo(dst=HOST, dst_service=listener.get_src_port()))
        expect(ours, E.RDMA_CM_EVENT_ADDR_RESOLVED)
        client.resolve_route()
        expect(ours, E.RDMA_CM_EVENT_ROUTE_RESOLVED)
        client.connect(ConnParam(retry=1))
        server, _ = request_on(theirs)
        server.accept()
        expect(ours, E.RDMA_CM_EVENT_ESTABLISHED)
        assert mine.option(socket.IPPROTO_IP, socket.IP_TOS) == [0x28]
        assert its.option(socket.IPPROTO_IP, socket.IP_TOS) == [0x28]
        # 4.096 us x 2^18 is 1.07 s; once more with retry=1, five times more by default.
        assert mine.option(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == [2147]
        assert its.option(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == [6442]
        server.set_option(RDMA_OPTION_ID, ACK_TIMEOUT, 0, 1)
        assert its.option(socket.IPPROTO_TCP, TCP_USER_TIMEOUT) == [0]
        assert server.query_qp(IBV_QP_TIMEOUT)[0].timeout == 0
        assert client.query_qp(IBV_QP_TIMEOUT)[0].timeout == 18
        assert mine.option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == [1]


def test_afonly_and_reuseaddr_are_what_the_socket_has() -> None:
    for only, reaches in ((0, True), (1, False)):
        with channel() as events:
            listener = CMID(events)
            listener.set_option(RDMA_OPTION_ID, AFONLY, only, 4)
            listener.bind_addr(AddrInfo(src="::", flags=RAI_PASSIVE))
            listener.listen()
            try:
                socket.create_connection((HOST, listener.get_src_port()), TIMEOUT).close()
            except ConnectionRefusedError:
                assert not reaches
            else:
                assert reaches
    with channel() as events:
        cmids = [CMID(events) for _ in range(2)]
        for cmid in cmids:
            cmid.set_option(RDMA_OPTION_ID, REUSEADDR, 0, 4)
        cmids[0].bind_addr(AddrInfo(src=HOST))
        with pytest.raises(OSError, match="in use"):
            cmids[1].bind_addr(AddrInfo(src=HOST, src_service=cmids[0].get_src_port()))


@pytest.mark.parametrize(
    ("level", "option", "value", "size", "number"),
    [
        (RDMA_OPTION_ID, 9, 1, 4, errno.ENOSYS),
        (1, TOS, 1, 1, errno.ENOSYS),
        (RDMA_OPTION_ID, TOS, 256, 1, errno.EINVAL),
        (RDMA_OPTION_ID, ACK_TIMEOUT, 32, 1, errno.EINVAL),
        (RDMA_OPTION_ID, ACK_TIMEOUT, -1, 1, errno.EINVAL),
        (RDMA_OPTION_ID, ACK_TIMEOUT, 1, 4, errno.EINVAL),
    ],
)
def test_options_that_do_not_exist_are_refused(
    level: int, option: int, value: int, size: int, number: int
) -> None:
    with Context() as context, CMID(None, pd=PD(context)) as cmid:
        with pytest.raises(OSError, match="option") as caught:
            cmid.set_option(level, option, value, size)
        assert caught.value.errno == number


def test_every_connection_asks_its_context_for_a_tap() -> None:
    with Context() as here, Context() as there:
        mine, its = Streams(here), Streams(there)
        ours, theirs = CMEventChannel(here), CMEventChannel(there)
        connect_both(ours, theirs, listening_on(theirs))
        assert (len(mine.seen), len(its.seen)) == (1, 1)


# -- what may be called when -----------------------------------------------------------------------


def test_the_table_of_calls_is_the_law() -> None:
    for state in CmState:
        for call in CmCall:
            if (state, call) in TRANSITIONS:
                assert step(state, call) is TRANSITIONS[state, call]
            else:
                with pytest.raises(OSError, match=state.name) as caught:
                    step(state, call)
                assert caught.value.errno == errno.EINVAL


def test_calls_out_of_turn_are_einval_and_change_nothing() -> None:
    there = AddrInfo(dst=HOST, dst_service=1)
    with channel() as events:
        cmid = CMID(events)
        out_of_turn: list[Callable[[], object]] = [
            cmid.resolve_route,
            cmid.connect,
            cmid.establish,
            cmid.get_request,
            cmid.getsockname,
            lambda: cmid.resolve_addr(AddrInfo()),
            lambda: cmid.bind_addr(AddrInfo()),
        ]
        for call in out_of_turn:
            with pytest.raises(OSError) as caught:  # noqa: PT011  # the number says it
                call()
            assert caught.value.errno == errno.EINVAL
            assert "\n" not in str(caught.value)
            assert cmid.state is CmState.IDLE
        with pytest.raises(OSError, match="no peer"):
            cmid.getpeername()
        assert (cmid.get_src_port(), cmid.get_dst_port(), cmid.qpn) == (0, 0, None)
        cmid.resolve_addr(there)
        expect(events, E.RDMA_CM_EVENT_ADDR_RESOLVED)
        for call in (cmid.listen, cmid.connect, lambda: cmid.bind_addr(AddrInfo(src=HOST))):
            with pytest.raises(OSError, match="ADDR_RESOLVED"):
                call()
        cmid.disconnect()  # of nothing


def test_a_connected_cmid_is_not_connected_again() -> None:
    with channel() as ours, channel() as theirs:
        client, server = connect_both(ours, theirs, listening_on(theirs))
        with socket.socket() as stream:
            for call in (client.connect, client.listen, lambda: client.adopt_active(stream)):
                with pytest.raises(OSError, match="state CONNECT"):
                    call()
        for cmid in (client, server):
            with pytest.raises(OSError, match="no request to reject") as caught:
                cmid.reject()
            assert caught.value.errno == errno.EINVAL
        with pytest.raises(OSError, match="queue pair already"):
            client.create_qp(QPInitAttr())
        assert client.create_qp() is client.qp
        client.disconnect()
        expect(ours, E.RDMA_CM_EVENT_DISCONNECTED)
        with pytest.raises(OSError, match="state DISCONNECT"):
            client.connect()


def test_what_is_no_creator_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="'here'"):
        CMID("here")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="port space") as caught:
        CMID(AddrInfo(), port_space=0x111)
    assert caught.value.errno == errno.EPROTONOSUPPORT


def test_destroying_the_queue_pair_ends_the_connection() -> None:
    with channel() as ours, channel() as theirs:
        client, server = connect_both(ours, theirs, listening_on(theirs))
        assert client.qpn is not None
        client.destroy_qp()
        assert client.qp is None
        assert client.qpn is None
        assert expect(theirs, E.RDMA_CM_EVENT_DISCONNECTED).id is server
        assert expect(ours, E.RDMA_CM_EVENT_DISCONNECTED).id is client
        client.destroy_qp()


def test_a_cmid_tells_the_device_and_the_channel_it_is_of() -> None:
    with channel() as events:
        cmid = CMID(events)
        assert (cmid.dev_name, cmid.port_num) == ("steertag0", 1)
        assert cmid.event_channel is events
        assert cmid.pd is events.pd
        assert cmid.pd.context is cmid.context


# -- parameters ------------------------------------------------------------------------------------


def test_parameters_have_pyverbs_shape_and_librdmacms_names() -> None:
    param = ConnParam(3, 4, 1, 2, 6, 1, 77, 5)
    assert (param.responder_resources, param.initiator_depth) == (3, 4)
    assert (param.flow_control, param.retry_count, param.rnr_retry_count) == (1, 2, 6)
    assert (param.srq, param.qp_num, param.qpn) == (1, 77, 77)
    param.qpn = 78
    param.set_private_data(b"0123456")
    assert (param.qp_num, param.private_data) == (78, b"01234")
    assert "qp_num=78" in repr(param)
    whole = ConnParam(responder_resources=9, initiator_depth=8)
    whole.set_private_data(b"all of it")
    assert (whole.responder_resources, whole.initiator_depth) == (9, 8)
    assert whole.offer().private_data == b"all of it"


# -- rdma_verbs.h ----------------------------------------------------------------------------------


def test_reads_and_writes_complete_visibly_only_where_that_is_asked_for() -> None:
    unsignalled = QPInitAttr(cap=QPCap(), sq_sig_all=False)
    with connected(client_init=lambda _: unsignalled) as (client, server):
        mr = client.cmid.reg_msgs(8)
        target = server.cmid.reg_write(8)
        client.cmid.post_write(mr, 8, target.buf, target.rkey)
        client.cmid.post_read(mr, 8, server.mr.buf, server.mr.rkey, flags=2)
        wc = client.cmid.get_send_comp(TIMEOUT)
        assert wc.opcode == 2
        with pytest.raises(TimeoutError):
            client.cmid.get_send_comp(0.001)


def test_messages_of_parts_of_regions_are_moved() -> None:
    with listening() as listener, towards(listener) as client, ThreadPoolExecutor(1) as pool:
        under_way = pool.submit(client.connect, None, TIMEOUT)
        with listener.get_request(TIMEOUT) as server:
            server.create_qp()
            inbox = server.reg_msgs(10)
            server.post_recv(inbox)
            server.post_recv(inbox, 4)
            server.accept()
            under_way.result(TIMEOUT)
            side = region(client, 10)
            side.memory[:] = b"0123456789"
            client.post_send(side.mr)
            assert server.get_recv_comp(TIMEOUT).byte_len == 10
            client.post_send(side.mr, length=3)
            assert server.get_recv_comp(TIMEOUT).byte_len == 3


# -- other families --------------------------------------------------------------------------------


def test_connections_go_over_a_family_of_the_stacks_own_without_waiting() -> None:
    """One thread for both Stacks: nothing may wait for anything but events."""
    left, right = Stack(), Stack()
    for stack, end, node in zip((left, right), memory_link(), ("left", "right"), strict=True):
        register(stack, end, node)
    with (
        Context(stack=left, progress="caller") as here,
        Context(stack=right, progress="caller") as there,
        CMEventChannel() as events,
    ):
        listener = CMID(events, pd=PD(there))
        listener.bind_addr(at("right", 7471, RAI_PASSIVE))
        listener.listen()
        client = CMID(events, pd=PD(here))
        resolve(client, events, at("right", 7471))
        client.connect()
        server, _ = request_on(events)
        server.accept()
        both = {expect(events, E.RDMA_CM_EVENT_ESTABLISHED).id for _ in range(2)}
        assert both == {client, server}
        assert client.getpeername() == ("right", 7471)
        client.disconnect()
        ends = {expect(events, E.RDMA_CM_EVENT_DISCONNECTED).id for _ in range(2)}
        assert ends == both
        nobody = CMID(events, pd=PD(here))
        resolve(nobody, events, at("right", 1))
        nobody.connect()
        assert expect(events, E.RDMA_CM_EVENT_REJECTED).status == -errno.ECONNREFUSED


def at(node: str, port: int, flags: int = 0) -> AddrInfo:
    """An address that no resolver knows."""
    address = AddrInfo(flags=flags)
    found = (AF_EXAMPLE, (node, port))
    address.sources, address.destinations = ([found], []) if flags else ([], [found])
    return address
