"""What the relay passes on: octets, their ends, resets, room; over the host and in this process."""

from __future__ import annotations

import errno
import os
import random
import select
import socket as std
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from steertag.run.delayed import DelayedRelay
from steertag.run.ends import Counters, unread
from steertag.run.poller import Poller
from steertag.run.relay import Relay
from steertag.run.sockaddr import emit, parse
from steertag.socket.default import default_stack
from tests.run.support import LOCAL, Control, Refused, running

FAMILIES = ["host", "new_tcp"]
CHUNK = bytes(1 << 16)
"""What a relay receives at a time: behind as much there may be more."""
LINGER_0 = struct.pack("@ii", 1, 0)


@pytest.fixture(scope="module", params=FAMILIES)
def control(request: pytest.FixtureRequest) -> Iterator[Control]:
    with running(request.param) as control:
        yield control


@pytest.fixture(scope="module")
def host() -> Iterator[Control]:
    with running("host") as control:
        yield control


class Pair:
    """A client's and a server's end, both relayed, and the sockets' numbers."""

    def __init__(self, control: Control) -> None:
        self.control = control
        self.listener, self.address = control.listen()
        self.client_id, self.client = control.connect(self.address)
        self.server_id, self.server = control.accept(self.listener)

    def close(self) -> None:
        self.client.close()
        self.server.close()
        for number in (self.client_id, self.server_id, self.listener):
            self.control.client.close(number)


@pytest.fixture
def pair(control: Control) -> Iterator[Pair]:
    pair = Pair(control)
    yield pair
    pair.close()


def poke(program: std.socket) -> None:
    """What control does for a reset: an octet into the program's end, in its name."""
    program.send(b"!", std.MSG_DONTWAIT)


def reset_of(control: Control, number: int, program: std.socket) -> None:
    """Wait until the data process says that the program is to find a reset, and have it so."""
    control.wait(lambda: number in control.ended or number in [each[0] for each in control.resets])
    if number not in control.ended:
        poke(program)
        control.client.close(number)
        control.stats()  # it has served what came before


def send_all(end: std.socket, data: bytes) -> None:
    end.sendall(data)
    end.close()


def receive_all(end: std.socket, count: int = 1 << 62) -> bytes:
    """Up to the end of the stream, or so many octets."""
    got = bytearray()
    while len(got) < count and (chunk := end.recv(min(1 << 16, count - len(got)))):
        got += chunk
    return bytes(got)


def test_octets_arrive_unchanged_both_ways_at_once(pair: Pair) -> None:
    rng = random.Random(7)
    texts = [rng.randbytes(3_000_000), rng.randbytes(2_000_000)]
    got: list[bytes] = [b"", b""]

    def send(end: std.socket, text: bytes, seed: int) -> None:
        sizes = random.Random(seed)
        at = 0
        while at < len(text):
            count = sizes.choice((1, 10, 1000, 100_000, 400_000))
            end.sendall(text[at : at + count])
            at += count
        end.shutdown(std.SHUT_WR)

    def receive(end: std.socket, index: int) -> None:
        got[index] = receive_all(end)

    threads = [
        threading.Thread(target=send, args=(pair.client, texts[0], 1)),
        threading.Thread(target=send, args=(pair.server, texts[1], 2)),
        threading.Thread(target=receive, args=(pair.server, 0)),
        threading.Thread(target=receive, args=(pair.client, 1)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == texts


def test_the_server_may_speak_first(pair: Pair) -> None:
    pair.server.sendall(b"220 ready")
    assert pair.client.recv(100) == b"220 ready"


def test_half_closes_arrive_in_order_and_end_it_together(pair: Pair) -> None:
    pair.client.sendall(b"question")
    pair.client.shutdown(std.SHUT_WR)
    assert receive_all(pair.server) == b"question"
    pair.server.sendall(b"answer")
    assert pair.client.recv(100) == b"answer"
    pair.server.shutdown(std.SHUT_WR)
    assert pair.client.recv(1) == b""
    pair.control.wait(lambda: {pair.client_id, pair.server_id} <= pair.control.ended.keys())
    assert pair.control.ended[pair.client_id] == pair.control.ended[pair.server_id] == 0


def test_what_was_sent_before_the_close_is_delivered(pair: Pair) -> None:
    text = random.Random(3).randbytes(1_500_000)
    thread = threading.Thread(target=send_all, args=(pair.client, text))
    thread.start()
    assert receive_all(pair.server) == text
    thread.join()


def test_a_reader_who_waits_makes_the_sender_wait_and_loses_nothing(pair: Pair) -> None:
    pair.client.setblocking(False)
    sent = 0
    chunk = bytes(range(256)) * 256
    poll = select.poll()
    poll.register(pair.client, select.POLLOUT)
    while poll.poll(1000):
        try:
            sent += pair.client.send(chunk[sent % 256 :])
        except BlockingIOError:
            continue
        assert sent < 64 << 20, "nothing holds the sender back"
    pair.client.shutdown(std.SHUT_WR)
    got = receive_all(pair.server)
    assert len(got) == sent
    assert got == (chunk * (sent // len(chunk) + 2))[:sent]


def test_a_program_that_closes_with_octets_unread_resets_its_peer(pair: Pair) -> None:
    pair.server.sendall(b"never read")
    assert select.select([pair.client], [], [], 30)[0]
    pair.client.close()
    reset_of(pair.control, pair.server_id, pair.server)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)
    assert pair.server.recv(1) == b""


def fill(end: std.socket, quiet: int = 500) -> int:
    """Send until there has been no room for so many milliseconds; how many octets."""
    end.setblocking(False)
    poll = select.poll()
    poll.register(end, select.POLLOUT)
    sent = 0
    while poll.poll(quiet):
        try:
            sent += end.send(CHUNK)
        except BlockingIOError:
            continue
        assert sent < 64 << 20, "nothing holds the sender back"
    return sent


def ended_by(end: std.socket) -> bool:
    """Send what there is room for, now; whether it ends with EPIPE."""
    try:
        while True:
            end.send(CHUNK, std.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except BrokenPipeError:
        return True


@pytest.mark.parametrize("rtt", [0.0, 0.002], ids=["near", "away"])
@pytest.mark.parametrize("unread_octets", [True, False], ids=["unread", "all read"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_peer_that_writes_and_never_reads_finds_that_the_program_has_left(
    family: str, unread_octets: bool, rtt: float
) -> None:
    """What the program sent last never gets through, and is nothing to wait for."""
    with running(family, rtt) as control:
        pair = Pair(control)
        if unread_octets:
            pair.server.sendall(b"never read")
            assert select.select([pair.client], [], [], 30)[0]
        fill(pair.client)
        pair.client.close()
        control.wait(lambda: ended_by(pair.server))
        control.wait(lambda: pair.client_id in control.ended)
        with pytest.raises(ConnectionResetError):
            receive_all(pair.server)
        pair.close()


@pytest.mark.parametrize("rtt", [0.0, 0.002], ids=["near", "away"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_peer_that_reads_late_gets_all_that_a_program_sent_before_it_left(
    family: str, rtt: float
) -> None:
    with running(family, rtt) as control:
        pair = Pair(control)
        pair.server.sendall(b"question")
        assert pair.client.recv(100) == b"question"
        sent = fill(pair.client)
        pair.client.close()
        assert len(receive_all(pair.server)) == sent
        pair.close()


def test_a_linger_of_zero_resets_the_peer(pair: Pair) -> None:
    control = pair.control
    control.ask(control.client.setsockopt, pair.client_id, std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    pair.client.close()
    reset_of(control, pair.server_id, pair.server)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)


def test_a_reset_finds_what_the_program_has_not_been_read_yet_unread(pair: Pair) -> None:
    """Its own unread octets are what makes our end's close a reset: nobody has to put one there."""
    control = pair.control
    control.ask(control.client.setsockopt, pair.client_id, std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    pair.client.sendall(b"last words")
    assert pair.server.recv(100) == b"last words"
    pair.client.close()
    reset_of(control, pair.server_id, pair.server)
    with pytest.raises(ConnectionResetError):
        pair.server.recv(1)


def test_writing_to_a_closed_peer_ends_in_a_plain_error(pair: Pair) -> None:
    pair.server.close()
    assert pair.client.recv(1) == b""
    pair.client.sendall(b"x")
    reset_of(pair.control, pair.client_id, pair.client)
    with pytest.raises(BrokenPipeError):
        pair.client.send(b"x")
    assert pair.client.recv(1) == b""


def test_shutting_down_for_receiving_does_not_stop_sending(pair: Pair) -> None:
    pair.client.shutdown(std.SHUT_RD)
    pair.server.sendall(b"for nobody")
    pair.client.sendall(b"still here")
    assert pair.server.recv(100) == b"still here"


def test_names_are_the_familys(pair: Pair) -> None:
    control = pair.control
    client = parse(std.AF_INET, control.ask(control.client.getsockname, pair.client_id))
    peer = parse(std.AF_INET, control.ask(control.client.getpeername, pair.server_id))
    assert client == peer
    assert control.ask(control.client.getpeername, pair.client_id) == pair.address


def test_a_refused_connection_says_so_and_can_be_tried_again(control: Control) -> None:
    listener, address = control.listen()
    control.client.close(listener)
    number = control.socket()
    with pytest.raises(Refused) as caught:
        control.ask(control.client.connect, number, address)
    assert caught.value.errno == errno.ECONNREFUSED
    again = control.socket()
    control.ask(control.client.bind, again, address)
    control.ask(control.client.listen, again, 5)
    control.ask(control.client.connect, number, address)
    for each in (number, again):
        control.client.close(each)


def test_connections_that_nobody_accepts_are_reset_with_the_listener(control: Control) -> None:
    listener, address = control.listen()
    number, program = control.connect(address)
    control.wait(lambda: [each for each in control.pendings if each[0] == listener])
    control.client.close(listener)
    reset_of(control, number, program)
    with pytest.raises(ConnectionResetError):
        program.recv(1)
    program.close()
    control.pendings.clear()


def test_a_pending_connection_can_be_given_up(control: Control) -> None:
    listener, address = control.listen()
    number, program = control.connect(address)
    control.wait(lambda: [each for each in control.pendings if each[0] == listener])
    [(_, token, _, peer)] = [each for each in control.pendings if each[0] == listener]
    assert peer == control.ask(control.client.getsockname, number)
    control.client.abort(listener, token)
    reset_of(control, number, program)
    with pytest.raises(ConnectionResetError):
        program.recv(1)
    program.close()
    control.pendings.clear()
    control.client.close(listener)


def test_a_token_that_is_gone_ends_the_new_socket(control: Control) -> None:
    listener, _ = control.listen()
    program, ours = control.pair()
    control.client.accept(listener, 10**9, 10**9, ours)
    control.wait(lambda: 10**9 in control.ended)
    assert program.recv(1) == b""
    program.close()
    control.client.close(listener)


def test_a_connection_ends_with_its_socket_whoever_still_holds_it(pair: Pair) -> None:
    pair.control.client.close(pair.client_id)
    assert pair.client.recv(1) == b""
    assert receive_all(pair.server) == b""


def test_two_connects_at_once_are_refused(host: Control) -> None:
    listener, address = host.listen()
    number = host.socket()
    answers: list[int] = []
    for _ in range(2):
        host.client.connect(number, address, lambda error, _: answers.append(error))
    host.wait(lambda: len(answers) == 2)
    assert sorted(answers) in ([0, errno.EALREADY], [0, errno.EISCONN])
    for each in (listener, number):
        host.client.close(each)


def native_peer(host: Control) -> tuple[int, std.socket, std.socket]:
    """A relayed client of a server that is not: its number, its end, the server's socket."""
    with std.create_server(("127.0.0.1", 0)) as server:
        number, program = host.connect(emit(std.AF_INET, server.getsockname()))
        peer, _ = server.accept()
    peer.settimeout(30)
    return number, program, peer


def test_a_reset_of_the_hosts_comes_behind_what_was_sent_before(host: Control) -> None:
    number, program, peer = native_peer(host)
    peer.sendall(b"first")
    assert select.select([program], [], [], 30)[0]
    peer.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
    peer.close()
    reset_of(host, number, program)
    assert program.recv(100) == b"first"
    with pytest.raises(ConnectionResetError):
        program.recv(1)
    program.close()


def test_a_program_that_closes_with_octets_unread_resets_the_hosts_peer(host: Control) -> None:
    _, program, peer = native_peer(host)
    peer.sendall(b"never read")
    assert select.select([program], [], [], 30)[0]
    program.close()
    with pytest.raises(ConnectionResetError):
        peer.recv(1)
    peer.close()


def test_urgent_data_keeps_its_place_both_ways(host: Control) -> None:
    number, program, peer = native_peer(host)
    for end in (program, peer):
        end.settimeout(None)  # with one, Python waits for data that is not urgent first
    try:
        program.send(b"x", std.MSG_OOB)
    except OSError as error:
        pytest.skip(f"this kernel's AF_UNIX has no urgent data: {error}")
    assert select.select([], [], [peer], 30)[2]
    assert peer.recv(1, std.MSG_OOB) == b"x"
    program.sendall(b"after")
    assert peer.recv(5, std.MSG_WAITALL) == b"after"
    peer.sendall(b"before")
    assert program.recv(6, std.MSG_WAITALL) == b"before"
    peer.send(b"y", std.MSG_OOB)
    assert select.select([], [], [program], 30)[2]
    assert program.recv(1, std.MSG_OOB) == b"y"
    peer.sendall(b"end")
    assert program.recv(3, std.MSG_WAITALL) == b"end"
    program.close()
    peer.close()
    host.wait(lambda: number in host.ended)


class Sudden(std.socket):
    """A socket to which something comes at the last moment before it is received from.

    Attributes:
        suddenly: what is done then, call by call.
    """

    suddenly: list[Callable[[], object]]

    def recv_into(self, *args: Any) -> int:  # noqa: ANN401 - the socket's
        if self.suddenly:
            self.suddenly.pop(0)()
        return super().recv_into(*args)


def nothing() -> None:
    """No news this time."""


class Ended:
    """Owner of a relay whose end matters to nobody."""

    def relay_reset(self, error: int) -> None:
        """Nobody asks."""

    def relay_ended(self, error: int) -> None:
        """Nobody asks."""


@pytest.fixture
def between() -> Iterator[tuple[Poller, std.socket, Sudden, std.socket, Sudden]]:
    """A relay in this process: its poller; program, our end, the host's socket, peer."""
    stack = default_stack()
    poller = Poller(stack)
    program, end = std.socketpair()
    with std.create_server(("127.0.0.1", 0)) as listener:
        sock = stack.sock_create(std.AF_INET, std.SOCK_STREAM, 0)
        assert sock.ops.passthrough is not None
        end_of_host = sock.ops.passthrough(sock)
        assert end_of_host is not None
        end_of_host.connect(listener.getsockname())
        peer, _ = listener.accept()
    ours, native = (Sudden(fileno=os.dup(each.fileno())) for each in (end, end_of_host))
    end.close()
    for each in (ours, native):
        each.suddenly = []
        each.setblocking(False)
    relay = Relay(poller, ours, sock, native, Ended(), Counters())
    relay.start()
    yield poller, program, ours, peer, native
    relay.close_both()
    for end in (program, peer, native, ours):
        end.close()
    poller.close()


def test_urgent_data_of_the_peers_that_comes_while_the_relay_reads_is_not_lost(
    between: tuple[Poller, std.socket, Sudden, std.socket, Sudden],
) -> None:
    poller, program, _, peer, native = between

    def urgent() -> None:
        peer.send(b"y", std.MSG_OOB)
        assert select.select([], [], [native], 30)[2]

    for _ in range(2):  # also once the connection is known to have urgent data
        native.suddenly = [nothing, urgent]
        peer.sendall(CHUNK)
        while unread(native) < len(CHUNK):
            select.select([native], [], [], 30)
        while unread(program) < len(CHUNK):
            poller.turn(30)
        poller.turn(0)
        if native.suddenly:
            native.suddenly = []
            urgent()
        program.settimeout(None)
        assert program.recv(len(CHUNK), std.MSG_WAITALL) == CHUNK
        while not select.select([], [], [program], 0)[2]:
            poller.turn(30)
        assert program.recv(1, std.MSG_OOB) == b"y"


def test_urgent_data_of_the_programs_that_comes_while_the_relay_reads_is_not_lost(
    between: tuple[Poller, std.socket, Sudden, std.socket, Sudden],
) -> None:
    poller, program, ours, peer, _ = between
    try:
        program.send(b"x", std.MSG_OOB)
    except OSError as error:
        pytest.skip(f"this kernel's AF_UNIX has no urgent data: {error}")
    while not select.select([], [], [peer], 0)[2]:
        poller.turn(30)
    assert peer.recv(1, std.MSG_OOB) == b"x"
    ours.suddenly = [nothing, lambda: program.send(b"y", std.MSG_OOB)]
    program.sendall(CHUNK)
    got = b""
    while len(got) < len(CHUNK):
        poller.turn(0)
        if select.select([peer], [], [], 0)[0]:
            got += peer.recv(len(CHUNK))
    poller.turn(0)
    if ours.suddenly:
        ours.suddenly = []
        program.send(b"y", std.MSG_OOB)
    while not select.select([], [], [peer], 0)[2]:
        poller.turn(30)
    assert peer.recv(1, std.MSG_OOB) == b"y"


def test_a_delayed_relay_reads_on_when_all_that_it_held_has_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was left in the source since too much was held already, no news tell of."""
    monkeypatch.setattr(DelayedRelay, "LIMIT", 1000)
    text = random.Random(9).randbytes(300_000)
    with running("host", 0.002) as control:
        pair = Pair(control)
        for one, other in ((pair.client, pair.server), (pair.server, pair.client)):
            thread = threading.Thread(target=one.sendall, args=(text,))
            thread.start()
            assert receive_all(other, len(text)) == text
            thread.join()
        pair.close()


def test_urgent_data_crosses_two_relays(pair: Pair) -> None:
    for end in (pair.client, pair.server):
        end.settimeout(None)
    try:
        pair.client.send(b"abc", std.MSG_DONTWAIT)
        pair.client.send(b"!", std.MSG_OOB)
    except OSError as error:
        pytest.skip(f"this kernel's AF_UNIX has no urgent data: {error}")
    assert select.select([], [], [pair.server], 30)[2]
    assert pair.server.recv(3, std.MSG_WAITALL) == b"abc"
    assert pair.server.recv(1, std.MSG_OOB) == b"!"
    pair.client.sendall(b"def")
    assert pair.server.recv(3, std.MSG_WAITALL) == b"def"


def test_many_connections_leave_nothing_behind(control: Control) -> None:
    count = 150
    before = control.stats()
    listener, address = control.listen(200)
    fds = f"/proc/{control.pid}/fd"
    held = len(os.listdir(fds))
    made = [control.connect(address) for _ in range(count)]
    accepted = [control.accept(listener) for _ in range(count)]
    for number, program in made:
        program.sendall(str(number).encode())
        program.shutdown(std.SHUT_WR)
    said = sorted(int(receive_all(program)) for _, program in accepted)
    assert said == sorted(number for number, _ in made)
    for _, program in made + accepted:
        program.close()
    numbers = {number for number, _ in made + accepted}
    control.wait(lambda: numbers <= control.ended.keys())
    after = control.stats()
    assert after["relays"] == before["relays"] == 0
    assert after["sockets"] == before["sockets"] + 1
    assert len(os.listdir(fds)) == held
    control.client.close(listener)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_program_sent_before_it_ended_survives_the_end_of_control(family: str) -> None:
    text = random.Random(5).randbytes(400_000)
    got: list[bytes] = []
    with running(family) as control:
        pair = Pair(control)
        thread = threading.Thread(target=lambda: got.append(receive_all(pair.server)))
        thread.start()
        pair.client.sendall(text)
        pair.client.close()
        thread.join()
    assert got == [text]
    pair.server.close()


def test_the_hosts_peer_gets_all_of_it_after_control_has_gone() -> None:
    text = random.Random(6).randbytes(8_000_000)
    with running("host") as control:
        _, program, peer = native_peer(control)
        sender = threading.Thread(target=send_all, args=(program, text))
        sender.start()
        first = peer.recv(1)
        rest: list[bytes] = []
        reader = threading.Thread(target=lambda: rest.append(receive_all(peer)))
        # The program has ended once it has nothing more to send.
        reader.start()
        sender.join()
    reader.join()
    assert first + rest[0] == text
    peer.close()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_simulated_round_trip_changes_no_octet_and_no_end(family: str) -> None:
    text = random.Random(9).randbytes(300_000)
    with running(family, rtt=0.005) as control:
        pair = Pair(control)
        thread = threading.Thread(target=pair.client.sendall, args=(text,))
        thread.start()
        assert receive_all(pair.server, len(text)) == text
        thread.join()
        pair.client.shutdown(std.SHUT_WR)
        assert pair.server.recv(1) == b""
        pair.server.sendall(b"done")
        pair.server.close()
        assert receive_all(pair.client) == b"done"
        pair.client.close()
        control.wait(lambda: {pair.client_id, pair.server_id} <= control.ended.keys())


def test_a_simulated_round_trip_keeps_resets() -> None:
    with running("host", rtt=0.002) as control:
        number, program, peer = native_peer(control)
        peer.sendall(b"first")
        assert program.recv(5) == b"first"
        peer.setsockopt(std.SOL_SOCKET, std.SO_LINGER, LINGER_0)
        peer.close()
        reset_of(control, number, program)
        with pytest.raises(ConnectionResetError):
            program.recv(1)
        program.close()


def test_ipv6_programs_are_served_too(host: Control) -> None:
    if not std.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    number = host.socket(domain=std.AF_INET6)
    host.ask(host.client.bind, number, emit(std.AF_INET6, ("::1", 0)))
    address = host.ask(host.client.listen, number, 5)
    assert parse(std.AF_INET6, address)[0] == "::1"  # type: ignore[index]
    client = host.socket(domain=std.AF_INET6)
    host.ask(host.client.connect, client, address)
    for each in (number, client):
        host.client.close(each)


def test_binding_twice_to_one_port_is_refused(control: Control) -> None:
    listener, address = control.listen()
    number = control.socket()
    with pytest.raises(Refused) as caught:
        control.ask(control.client.bind, number, address)
    assert caught.value.errno == errno.EADDRINUSE
    other = control.socket()
    control.ask(control.client.bind, other, LOCAL)
    for each in (listener, number, other):
        control.client.close(each)
