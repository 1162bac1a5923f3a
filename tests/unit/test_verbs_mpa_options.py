"""Peer-to-peer mode, markers and required CRC as a program asks for them, over real sockets."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from steertag.verbs import CMID, AddrInfo, ConnectError, ConnParam, WcStatus
from steertag.verbs.device import Progress
from steertag.wire import mpa
from tests.sim.ends import pattern, terminates
from tests.sim.verbs import HOST, MODES, TIMEOUT, Side, connected, plain_server

BOTH = pytest.mark.parametrize("progress", MODES)


def say(sender: Side, receiver: Side, length: int = 200_000) -> None:
    """One Write and one Send behind it, waited for at both ends."""
    assert sender.cmid.qp is not None
    assert receiver.cmid.qp is not None
    sender.memory[:length] = pattern(length)
    receiver.recv(100, local=500_000, id=1)
    sender.write(receiver, length, id=2)
    sender.send(100, id=3)
    done = [receiver.cmid.get_recv_comp(TIMEOUT)]
    done += [sender.cmid.get_send_comp(TIMEOUT) for _ in range(2)]
    assert [(wc.wr_id, wc.status) for wc in done] == [(n, WcStatus.SUCCESS) for n in (1, 2, 3)]
    assert receiver.memory[:length] == sender.memory[:length]


@BOTH
@pytest.mark.parametrize("kind", ["write", "read", "send"])
def test_the_accepting_program_is_the_first_to_send(progress: Progress, kind: str) -> None:
    offer = ConnParam(peer_to_peer=True, rtr=[kind])  # type: ignore[list-item]
    with connected(progress, offer) as (client, server):
        say(server, client)
        say(client, server)


@BOTH
@pytest.mark.parametrize("peer_to_peer", [False, True])
def test_markers_both_ways(progress: Progress, peer_to_peer: bool) -> None:
    offer = ConnParam(markers=True, peer_to_peer=peer_to_peer)
    with connected(progress, offer, ConnParam(markers=True)) as (client, server):
        say(client, server)
        say(server, client)
        client.read(server, 100_000, local=300_000, remote=100, id=4)
        assert client.cmid.qp is not None
        while not (done := client.cmid.qp.scq.poll(1)[1]):
            server.cmid.context.progress(0)  # which has to answer, if its program sees to that
        assert done[0].status is WcStatus.SUCCESS
        assert client.memory[300_000:400_000] == server.memory[100:100_100]
        client.cmid.disconnect()
        assert server.cmid.wait_disconnected(TIMEOUT)
        assert server.cmid.qp is not None
        assert server.cmid.qp.end_reason == "peer closed"


def test_required_crc_is_in_use_whatever_the_peer_says() -> None:
    offer = ConnParam(crc=False, crc_required=True)
    with connected("thread", offer, ConnParam(crc=False)) as (client, server):
        assert client.cmid.crc
        assert server.cmid.crc
        say(client, server)


def test_no_common_ready_to_receive_frame_is_an_error_at_both_ends() -> None:
    offer = ConnParam(peer_to_peer=True, rtr=["send"])
    with (
        pytest.raises(ConnectError) as caught,
        connected("thread", offer, ConnParam(rtr=["read", "write"])),
    ):
        pytest.fail("connected")
    assert caught.value.code == "rtr"


def test_a_peer_without_peer_to_peer_mode_is_told_and_left() -> None:
    """An enhanced Reply that doesn't take the mode up: as old RNICs may answer."""
    with plain_server() as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        with CMID(AddrInfo(dst=HOST, dst_service=port)) as client:
            under_way = pool.submit(client.connect, ConnParam(peer_to_peer=True), TIMEOUT)
            peer, _ = server.accept()
            with peer:
                peer.recv(1000)
                words = mpa.Enhanced(ird=4, ord=4).emit()
                peer.sendall(mpa.StartFrame(reply=True, enhanced=True, private_data=words).emit())
                with pytest.raises(ConnectError) as caught:
                    under_way.result(TIMEOUT)
                octets = b""
                while piece := peer.recv(1000):
                    octets += piece
    assert caught.value.code == "rtr"
    assert [said.code for said in terminates(octets)] == [mpa.E_NO_MATCHING_RTR]


def test_one_kind_of_first_message_may_stand_for_itself() -> None:
    assert ConnParam(rtr="write").rtr == ("write",)
    assert ConnParam(rtr=["send", "read"]).rtr == ("send", "read")
