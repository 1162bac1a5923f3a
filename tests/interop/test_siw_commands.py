"""librdmacm's programs over Linux's siw, against their counterparts here, in both roles.

tshark looks at every connection: its CRCs are good where there are CRCs, and nothing is malformed.
"""

from __future__ import annotations

import pytest

from steertag.wire import mpa
from steertag.wire.rdmap import Opcode
from tests.fabric import Stag, stag
from tests.interop.guest.machine import ADDRESS, HOST, PORTS, Guest
from tests.interop.wire import Wire
from tests.wire.mpa_stream import Connection

PORT = PORTS[0]
CRC = pytest.mark.parametrize("crc", [True, False], ids=["crc", "plain"])
SIZES = pytest.mark.parametrize("size", [64, 1000, 5000, 60000])
ESTABLISHED_BY_WRITE, ESTABLISHED_BY_READ = 0x8000, 0x4000


def of_crc(crc: bool) -> str:
    return "--crc" if crc else "--no-crc"


# --- rping --------------------------------------------------------------------------------------


@SIZES
@CRC
def test_rping_of_siw_serves_our_client(guest: Guest, wire: Wire, crc: bool, size: int) -> None:
    server = guest.start(f"rping -s -a {ADDRESS} -p {PORT} -v -C 3 -S {size}", port=PORT)
    client = stag(
        *("rping", "-c", "-a", "127.0.0.1", "-p", guest.ports[PORT]),
        *("-C", 3, "-S", size, "-V", "--json", of_crc(crc)),
    )
    assert client.code == 0, client.err
    assert (client.report["pings"], client.report["crc"]) == (3, crc)
    assert "server ping data: rdma-ping-2: CDEF" in server.result().output
    (connection,) = wire.check(crc=crc)
    assert connection.client.count(Opcode.READ_RESPONSE) >= 3


@SIZES
@CRC
def test_rping_of_siw_pings_our_server(guest: Guest, wire: Wire, crc: bool, size: int) -> None:
    guest.set_siw(mpa_crc_required=crc)
    with Stag("rping", "-s", "-a", "127.0.0.1", "-p", 0, "-S", size, "--json") as server:
        port = server.wait_listening()
        said = guest.check(f"rping -c -a {HOST} -p {port} -v -V -C 3 -S {size}")
        served = server.wait()
    assert "ping data: rdma-ping-2: CDEF" in said
    assert "mismatch" not in said
    assert (served.code, served.report["pings"], served.report["crc"]) == (0, 3, crc), served.err
    wire.check(crc=crc)


def test_our_server_insists_on_crc_and_siw_uses_it(guest: Guest, wire: Wire) -> None:
    with Stag("rping", "-s", "-a", "127.0.0.1", "-p", 0, "--crc") as server:
        port = server.wait_listening()
        assert "rdma-ping-1" in guest.check(f"rping -c -a {HOST} -p {port} -v -V -C 2")
        assert server.wait().code == 0
    wire.check(crc=True)


def test_our_persistent_server_serves_several_of_siw_at_once(guest: Guest, wire: Wire) -> None:
    with Stag("rping", "-s", "-P", "-a", "127.0.0.1", "-p", 0) as server:
        port = server.wait_listening()
        clients = [
            guest.start(f"rping -c -a {HOST} -p {port} -v -V -C 4 -S {size}")
            for size in (100, 2000, 30000)
        ]
        for client in clients:
            assert "rdma-ping-3" in client.result().output
        server.process.terminate()
        assert server.wait().code == 0
    assert len(wire.check(crc=False)) == 3


# --- rdma_client, rdma_server -------------------------------------------------------------------


@CRC
def test_rdma_server_of_siw_answers_our_client(guest: Guest, wire: Wire, crc: bool) -> None:
    server = guest.start(f"rdma_server -p {PORT}", port=PORT)
    client = stag("rdma-client", "-p", guest.ports[PORT], of_crc(crc), "--json")
    assert (client.code, client.report["received"]) == (0, 16), client.err
    assert server.result().output.endswith("rdma_server: end 0\n")
    wire.check(crc=crc)


@CRC
def test_rdma_client_of_siw_is_answered_by_our_server(guest: Guest, wire: Wire, crc: bool) -> None:
    guest.set_siw(mpa_crc_required=crc)
    with Stag("rdma-server", "-s", "127.0.0.1", "-p", 0, "--json") as server:
        port = server.wait_listening()
        assert guest.check(f"rdma_client -s {HOST} -p {port}").endswith("rdma_client: end 0\n")
        served = server.wait()
    assert (served.code, served.report["received"], served.report["crc"]) == (0, 16, crc)
    wire.check(crc=crc)


# --- ucmatose -----------------------------------------------------------------------------------


@CRC
def test_ucmatose_of_siw_sends_to_our_client(guest: Guest, wire: Wire, crc: bool) -> None:
    server = guest.start(f"ucmatose -b {ADDRESS} -p {PORT} -c 3 -C 5 -S 3000", port=PORT)
    client = stag(
        *("ucmatose", "-s", "127.0.0.1", "-p", guest.ports[PORT]),
        *("-c", 3, "-C", 5, "-S", 3000, of_crc(crc), "--json"),
    )
    assert client.code == 0, client.err
    assert (client.report["received"], client.report["sent"]) == (15, 15)
    assert server.result() == (0, server.result().output)
    assert len(wire.check(crc=crc)) == 3


@CRC
def test_our_ucmatose_sends_to_siws_client(guest: Guest, wire: Wire, crc: bool) -> None:
    guest.set_siw(mpa_crc_required=crc, peer_to_peer=True)
    with Stag(
        *("ucmatose", "-b", "127.0.0.1", "-p", 0, "-c", 3, "-C", 5, "-S", 3000, "--json")
    ) as server:
        port = server.wait_listening()
        guest.check(f"ucmatose -s {HOST} -p {port} -c 3 -C 5 -S 3000")
        served = server.wait()
    assert served.code == 0, served.err
    assert (served.report["received"], served.report["sent"]) == (15, 15)
    assert len(wire.check(crc=crc)) == 3


def test_siws_client_that_asks_for_no_peer_to_peer_mode_is_told_from_one_that_does(
    guest: Guest,
) -> None:
    """What an unmodified siw does: its ucmatose would wait for a server that may not send."""
    with Stag("ucmatose", "-b", "127.0.0.1", "-p", 0) as server:
        port = server.wait_listening()
        client = guest.start(f"ucmatose -s {HOST} -p {port}")
        served = server.wait()
    assert served.code == 5
    assert "siw with its peer_to_peer set" in served.err
    guest.kill_all()
    client.result()


# --- MPA: revisions, peer-to-peer mode ----------------------------------------------------------


@CRC
def test_siw_speaks_revision_1_to_us(guest: Guest, wire: Wire, crc: bool) -> None:
    guest.set_siw(mpa_version=1, mpa_crc_required=crc)
    serve_rping_of(guest)
    (connection,) = wire.check(crc=crc)
    assert [side.start.revision for side in connection.directions] == [1, 1]


@CRC
def test_we_speak_revision_1_to_siw(guest: Guest, wire: Wire, crc: bool) -> None:
    """With Sends only: in revision 1 siw takes its side's ORD for 0, and rping's server reads."""
    server = guest.start(f"rdma_server -p {PORT}", port=PORT)
    client = stag("rdma-client", "-p", guest.ports[PORT], "--mpa-revision", 1, of_crc(crc))
    assert client.code == 0, client.err
    assert server.result().output.endswith("rdma_server: end 0\n")
    (connection,) = wire.check(crc=crc)
    assert [side.start.revision for side in connection.directions] == [1, 1]


def serve_rping_of(guest: Guest) -> None:
    """Three pings of siw's client with our server, which runs as it does unless told otherwise."""
    with Stag("rping", "-s", "-a", "127.0.0.1", "-p", 0) as server:
        port = server.wait_listening()
        assert "rdma-ping-2" in guest.check(f"rping -c -a {HOST} -p {port} -v -V -C 3")
        served = server.wait()
    assert served.code == 0, served.err


def words(start: mpa.StartFrame) -> mpa.Enhanced:
    return mpa.Enhanced.parse(start.private_data)


def first_opcode(connection: Connection) -> Opcode:
    return connection.client.segments[0].opcode


RTR = pytest.mark.parametrize(
    ("kind", "opcode"), [("write", Opcode.WRITE), ("read", Opcode.READ_REQUEST)]
)


@RTR
@CRC
def test_siw_says_ready_to_receive_to_us(
    guest: Guest, wire: Wire, crc: bool, kind: str, opcode: Opcode
) -> None:
    bits = ESTABLISHED_BY_WRITE if kind == "write" else ESTABLISHED_BY_READ
    guest.set_siw(mpa_crc_required=crc, peer_to_peer=True, rtr_bits=bits)
    serve_rping_of(guest)
    (connection,) = wire.check(crc=crc)
    agreed = words(connection.server.start)
    assert agreed.peer_to_peer
    assert (agreed.rtr_write, agreed.rtr_read) == (kind == "write", kind == "read")
    assert first_opcode(connection) is opcode


@RTR
@CRC
def test_we_say_ready_to_receive_to_siw(
    guest: Guest, wire: Wire, crc: bool, kind: str, opcode: Opcode
) -> None:
    server = guest.start(f"rping -s -a {ADDRESS} -p {PORT} -v -C 3", port=PORT)
    client = stag(
        *("rping", "-c", "-a", "127.0.0.1", "-p", guest.ports[PORT], "-C", 3, "-V"),
        *("--p2p", "--rtr", kind, of_crc(crc)),
    )
    assert client.code == 0, client.err
    assert "rdma-ping-2" in server.result().output
    (connection,) = wire.check(crc=crc)
    assert words(connection.server.start).peer_to_peer
    assert first_opcode(connection) is opcode


def test_siw_prefers_the_write_where_we_leave_it_the_choice(guest: Guest, wire: Wire) -> None:
    guest.start(f"rping -s -a {ADDRESS} -p {PORT} -C 1", port=PORT)
    client = stag(
        *("rping", "-c", "-a", "127.0.0.1", "-p", guest.ports[PORT], "-C", 1, "-V", "--p2p")
    )
    assert client.code == 0, client.err
    (connection,) = wire.check(crc=True)
    assert first_opcode(connection) is Opcode.WRITE
