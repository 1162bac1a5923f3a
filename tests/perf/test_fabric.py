"""`stag rping`, `ucmatose`, `rdma-client` and `rdma-server` with themselves at the other end."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGTERM

import pytest

from steertag import verbs
from steertag.perf.fabric.errors import FabricError
from steertag.perf.fabric.link import LinkOptions, max_ulpdu
from steertag.perf.fabric.rping import Outcome, RpingOptions, ping_text, run_client
from steertag.wire import mpa
from tests.fabric import Stag, stag
from tests.interop.tshark import judge
from tests.processes import PATIENCE

HERE = ("-a", "127.0.0.1")


def rping_server(*more: str | int) -> Stag:
    return Stag("rping", "-s", *HERE, "-p", 0, *more)


def ucmatose_server(*more: str | int) -> Stag:
    return Stag("ucmatose", "-b", "127.0.0.1", "-p", 0, *more)


# --- rping --------------------------------------------------------------------------------------


def test_rping_pings_and_both_sides_say_so() -> None:
    with rping_server("-v", "--json") as server:
        port = server.wait_listening()
        client = stag("rping", "-c", *HERE, "-p", port, "-C", 3, "-v", "-V")
        served = server.wait()
    assert client.code == served.code == 0
    lines = client.out.splitlines()
    assert lines[2] == (
        "ping data: rdma-ping-2: CDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrst"
    )
    assert lines[3].startswith("3 pings, 384 octets, CRC32C on; min/median/max ")
    assert served.report["pings"] == 3
    assert "server ping data: rdma-ping-2: CDEF" in served.err


@pytest.mark.parametrize("size", [26, 1000, 65535, 3_000_000])
def test_what_comes_back_is_what_was_sent(size: int) -> None:
    with rping_server("-S", size) as server:
        port = server.wait_listening()
        client = stag("rping", "-c", *HERE, "-p", port, "-C", 2, "-V", "-S", size, "--json")
        assert server.wait().code == 0
    assert (client.code, client.report["pings"], client.report["octets"]) == (0, 2, 4 * size)


def test_the_text_is_rpings() -> None:
    assert ping_text(0, 26) == b"rdma-ping-0: ABCDEFGHIJKL\0"
    assert ping_text(57, 30) == b"rdma-ping-57: zABCDEFGHIJKLMN\0"
    assert ping_text(58, 30) == b"rdma-ping-58: ABCDEFGHIJKLMNO\0"


@pytest.mark.parametrize(
    ("server_says", "client_says", "expected"),
    [
        ((), (), True),
        ((), ("--no-crc",), False),
        (("--crc",), ("--no-crc",), True),
        (("--no-crc",), (), True),
    ],
)
def test_crc_is_in_use_when_one_side_asks(
    server_says: tuple[str, ...], client_says: tuple[str, ...], expected: bool
) -> None:
    with rping_server("--json", *server_says) as server:
        port = server.wait_listening()
        client = stag("rping", "-c", *HERE, "-p", port, "-C", 1, "--json", *client_says)
        assert (client.report["crc"], server.wait().report["crc"]) == (expected, expected)


@pytest.mark.parametrize("kind", ["write", "read", "send"])
def test_peer_to_peer_mode_begins_with_a_frame_of_the_kind_asked_for(
    kind: str, tmp_path: Path
) -> None:
    capture = tmp_path / "p2p.pcap"
    with rping_server() as server:
        port = server.wait_listening()
        client = stag(
            *("rping", "-c", *HERE, "-p", port, "-C", 1, "-V", "--p2p", "--rtr", kind),
            *("--pcap", str(capture)),
        )
        assert (client.code, server.wait().code) == (0, 0)
    verdict = judge(capture)
    assert (verdict.bad, verdict.malformed) == (0, 0)
    assert f"OpCode: {kind.capitalize()}" in verdict.text.partition("Rep frame")[2][:6000]


def test_revision_1_of_mpa_does_too() -> None:
    with rping_server() as server:
        port = server.wait_listening()
        client = stag("rping", "-c", *HERE, "-p", port, "-C", 2, "-V", "--mpa-revision", 1)
        assert (client.code, server.wait().code) == (0, 0)


def test_no_fpdu_is_longer_than_was_said(tmp_path: Path) -> None:
    capture = tmp_path / "short.pcap"
    with rping_server("--max-fpdu", 1000) as server:
        port = server.wait_listening()
        client = stag(
            *("rping", "-c", *HERE, "-p", port, "-C", 1, "-V", "-S", 5000),
            *("--max-fpdu", 1000, "--pcap", str(capture)),
        )
        assert (client.code, server.wait().code) == (0, 0)
    from tests.wire.mpa_stream import connections

    (connection,) = connections(capture.read_bytes())
    for side in connection.directions:
        longest = max(len(segment.octets) for segment in side.segments)
        assert 900 < longest <= 1000


@pytest.mark.parametrize("octets", [136, 137, 1000, 1448, 16384, 65544])
def test_an_fpdu_of_the_longest_ulpdu_fits(octets: int) -> None:
    ulpdu = max_ulpdu(octets)
    fpdu = (2 + ulpdu + 3) // 4 * 4 + 4
    assert fpdu <= octets
    assert octets - fpdu < 8 or ulpdu == mpa.MAX_ULPDU - 1


def test_a_persistent_server_serves_several_and_ends_with_ctrl_c() -> None:
    with rping_server("-P", "--json") as server:
        port = server.wait_listening()
        first = Stag("rping", "-c", *HERE, "-p", port, "-C", 20, "-V")
        second = Stag("rping", "-c", *HERE, "-p", port, "-C", 20, "-V", "--no-crc")
        with first, second:
            assert (first.wait().code, second.wait().code) == (0, 0)
        served = server.interrupt(SIGINT)
    assert (served.code, served.report["pings"]) == (0, 40)


def test_a_persistent_server_survives_a_client_that_is_killed() -> None:
    with rping_server("-P") as server:
        port = server.wait_listening()
        with Stag("rping", "-c", *HERE, "-p", port, "-d") as endless:
            endless.read_until("RDMA addr")
            endless.process.kill()
        assert stag("rping", "-c", *HERE, "-p", port, "-C", 1, "-V").code == 0
        assert server.interrupt(SIGTERM).code == 0


def test_a_client_that_is_interrupted_ends_with_130_and_its_server_with_0() -> None:
    with rping_server() as server:
        port = server.wait_listening()
        with Stag("rping", "-c", *HERE, "-p", port, "-d") as endless:
            endless.read_until("RDMA addr")
            done = endless.interrupt(SIGINT)
        served = server.wait()
    assert (done.code, done.err.splitlines()[-1]) == (130, "stag: interrupted")
    assert "Traceback" not in done.err + served.err


def test_a_server_says_where_more_room_is_to_be_had() -> None:
    with rping_server() as server:
        port = server.wait_listening()
        client = stag("rping", "-c", *HERE, "-p", port, "-C", 1, "-S", 70000)
        served = server.wait()
    assert served.code == 1
    assert "start it with -S 70000" in served.err
    assert (client.code, client.err.count("\n")) == (8, 1)


# --- what is refused, and what can't be had -----------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("rping",), "one of -s (server) and -c (client)"),
        (("rping", "-s", "-c"), "one of -s (server) and -c (client)"),
        (("rping", "-c"), "needs -a ADDR"),
        (("rping", "-c", *HERE, "-P"), "-P is for a server"),
        (("rping", "-c", *HERE, "-S", "25"), "-S is 26 to"),
        (("rping", "-s", "-q"), "-q: the connection manager makes the queue pairs"),
        (("rping", "-s", "--p2p"), "the client's"),
        (("rping", "-c", *HERE, "--p2p", "--mpa-revision", "1"), "needs MPA revision 2"),
        (("rping", "-c", *HERE, "--rtr", "read"), "add --p2p"),
        (("ucmatose", "-P", "ib"), "-P ib: iWARP has the TCP port space only"),
        (("ucmatose", "-f", "gid", "-s", "x"), "-f gid"),
        (("ucmatose", "-f", "ip", "-s", "localhost"), "localhost is no IP address"),
        (("ucmatose", "-f", "ipv6", "-s", "127.0.0.1"), "127.0.0.1 is no IPv6 address"),
    ],
)
def test_what_makes_no_sense_is_a_line_and_exit_code_2(
    arguments: tuple[str, ...], words: str
) -> None:
    done = stag(*arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "client",
    [("rping", "-c", *HERE), ("ucmatose", "-s", "127.0.0.1"), ("rdma-client",)],
    ids=lambda client: client[0],
)
def test_where_nobody_listens_is_exit_code_5(client: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = stag(*client, "-p", port, "--json")
    assert (done.code, done.report["code"]) == (5, 5)
    assert "is a server running there?" in done.err


def test_a_port_that_is_taken_is_a_line_and_exit_code_1() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = stag("rdma-server", "-s", "127.0.0.1", "-p", taken.getsockname()[1])
    assert done.code == 1
    assert "cannot listen on 127.0.0.1" in done.err.splitlines()[-1]


def answering(answer: bytes) -> Callable[[socket.socket], None]:
    def serve(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as stream:
            stream.recv(4096)
            stream.sendall(answer)

    return serve


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 6, "does not speak iWARP"),
        (b"", 6, "does it speak iWARP?"),
        (
            mpa.StartFrame(
                reply=True, reject=True, enhanced=True, revision=2, private_data=bytes(4)
            ).emit(),
            5,
            "rejected by the peer",
        ),
    ],
    ids=["http", "nothing", "rejected"],
)
def test_who_is_no_counterpart_is_told_apart(answer: bytes, code: int, words: str) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    thread = threading.Thread(target=answering(answer), args=(listener,))
    thread.start()
    done = stag("rping", "-c", *HERE, "-p", port, "-C", 1)
    thread.join(PATIENCE)
    assert done.code == code, done.err
    assert words in done.err
    assert done.err.count("\n") == 1


def test_who_says_nothing_speaks_no_iwarp() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        done = stag("rping", "-c", *HERE, "-p", port, "-C", 1, "--timeout", 1)
    assert done.code == 6, done.err
    assert "no MPA Reply" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [("rping", "-c", "-C", 1, "-a"), ("ucmatose", "-s"), ("rdma-client", "-s")],
    ids=lambda command: command[0],
)
def test_a_name_that_is_not_known_is_nobody_to_connect_to(command: tuple[str | int, ...]) -> None:
    done = stag(*command, "nobody.invalid")
    assert done.code == 5, done.err
    assert "cannot connect to nobody.invalid:" in done.err


class StrangeServer:
    """A server of one connection that answers each message with `answer`."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        address = verbs.AddrInfo(src="127.0.0.1", src_service=0, flags=verbs.RAI_PASSIVE)
        self._listener = verbs.CMID(address, verbs.QPInitAttr())
        self._listener.listen()
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._listener, self._listener.get_request(PATIENCE) as request:
            region = verbs.MR(request.pd, 64, verbs.IBV_ACCESS_LOCAL_WRITE)
            request.create_qp()
            for _ in range(4):
                request.post_recv(region)
            request.accept()
            for _ in range(2):
                wc = request.get_recv_comp(PATIENCE)
                if wc.status != verbs.WcStatus.SUCCESS:
                    break
                region.write(self._answer, len(self._answer))
                request.post_send(region, length=len(self._answer))
            request.wait_disconnected(PATIENCE)

    def join(self) -> None:
        self._thread.join(PATIENCE)


def run_against(server: StrangeServer) -> str:
    link = LinkOptions(address="127.0.0.1", port=server.port)
    options = RpingOptions(link=link, count=1, validate=True)
    with pytest.raises(FabricError) as caught:
        run_client(options, Outcome(), print, print)
    server.join()
    return f"{caught.value.code.name}: {caught.value}"


def test_an_echo_that_never_came_is_a_mismatch() -> None:
    found = run_against(StrangeServer(bytes(16)))
    assert found == "DATA_MISMATCH: ping 0 came back changed, from octet 0 on"


def test_a_message_of_another_size_is_not_rpings() -> None:
    found = run_against(StrangeServer(struct.pack("!I", 7)))
    assert found.startswith("CONNECTION_LOST: 127.0.0.1:")
    assert "a message of 4 octets where rping's have 16" in found


# --- ucmatose, rdma_client, rdma_server ---------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        (),
        ("-m", "-c", "2"),
        ("-t", "16", "-a", "14"),
        ("-c", "3", "-C", "5", "-S", "70000"),
        ("-C", "0"),
        ("-S", "0", "-c", "2"),
    ],
)
def test_ucmatose_connects_and_sends_both_ways(sizes: tuple[str, ...]) -> None:
    with ucmatose_server("--json", *sizes) as server:
        port = server.wait_listening()
        client = stag("ucmatose", "-s", "127.0.0.1", "-p", port, "--json", *sizes)
        served = server.wait()
    assert (client.code, served.code) == (0, 0), client.err + served.err
    assert client.report["sent"] == served.report["received"]
    assert client.report["received"] == served.report["sent"]
    assert served.err.splitlines()[-1] == "test complete"


def test_ucmatose_does_what_its_defaults_say() -> None:
    with ucmatose_server() as server:
        port = server.wait_listening()
        client = stag("ucmatose", "-s", "127.0.0.1", "-p", port)
        served = server.wait()
    assert client.out.splitlines() == [
        "cmatose: starting client",
        "cmatose: connecting",
        "receiving data transfers",
        "sending replies",
        "data transfers complete",
        "test complete",
        "return status 0",
    ]
    assert served.out.splitlines()[-2:] == ["test complete", "return status 0"]


def test_a_client_without_peer_to_peer_mode_is_told_why_its_server_may_not_send() -> None:
    with ucmatose_server() as server:
        port = server.wait_listening()
        client = stag("ucmatose", "-s", "127.0.0.1", "-p", port, "--no-p2p")
        served = server.wait()
    assert (served.code, client.code) == (5, 8)
    assert "the client did not ask for peer-to-peer mode" in served.err
    assert client.err.splitlines()[-1].endswith("closed the connection")


def test_ucmatose_that_only_connects_needs_no_peer_to_peer_mode() -> None:
    with ucmatose_server("-C", 0) as server:
        port = server.wait_listening()
        assert stag("ucmatose", "-s", "127.0.0.1", "-p", port, "-C", 0, "--no-p2p").code == 0
        assert server.wait().code == 0


def test_messages_of_different_sizes_are_told() -> None:
    with ucmatose_server("-S", 50) as server:
        port = server.wait_listening()
        client = stag("ucmatose", "-s", "127.0.0.1", "-p", port)
        assert server.wait().code != 0
    assert client.code == 10
    assert "a message of 50 octets, not 100; give both sides the same -S" in client.err


def test_rdma_client_and_server_exchange_16_octets() -> None:
    with Stag("rdma-server", "-s", "127.0.0.1", "-p", 0) as server:
        port = server.wait_listening()
        client = stag("rdma-client", "-p", port, "--json")
        served = server.wait()
    assert (client.code, client.report["received"]) == (0, 16)
    assert (served.code, served.out) == (0, "rdma_server: start\nrdma_server: end 0\n")


def test_over_ipv6_too() -> None:
    with Stag("rdma-server", "-s", "::1", "-p", 0) as server:
        port = server.wait_listening()
        assert stag("rdma-client", "-s", "::1", "-p", port).code == 0
        assert server.wait().code == 0
