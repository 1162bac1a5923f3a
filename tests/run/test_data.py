"""The data process: what it serves, how it starts and ends, and that a bug costs one socket."""

from __future__ import annotations

import errno
import os
import signal
import socket as std
import threading

import pytest

from steertag.family.stack import Stack
from steertag.run.channel import Channel
from steertag.run.data import Data, start
from steertag.run.families import family_number, open_stack
from steertag.run.launch import RunConfig
from steertag.run.poller import Poller
from steertag.run.sockaddr import emit, parse
from steertag.socket import default
from tests.run.support import Control, running

AF_EXAMPLE = 64


def talk(control: Control) -> None:
    """One connection, both ways, to its end."""
    listener, address = control.listen()
    client, program = control.connect(address)
    server, accepted = control.accept(listener)
    program.sendall(b"question")
    assert accepted.recv(100) == b"question"
    accepted.sendall(b"answer")
    assert program.recv(100) == b"answer"
    program.close()
    assert accepted.recv(1) == b""
    accepted.close()
    control.wait(lambda: {client, server} <= control.ended.keys())
    control.client.close(listener)


def test_sdp_carries_a_programs_connection() -> None:
    with running("sdp") as control:
        talk(control)


def test_large_transfers_over_sdp_arrive_unchanged() -> None:
    text = os.urandom(1 << 20) * 8
    got = bytearray()
    with running("sdp") as control:
        listener, address = control.listen()
        _, program = control.connect(address)
        _, accepted = control.accept(listener)

        def receive() -> None:
            while chunk := accepted.recv(1 << 16):
                got.extend(chunk)

        thread = threading.Thread(target=receive)
        thread.start()
        program.sendall(text)
        program.close()
        thread.join()
        accepted.close()
    assert got == text


@pytest.fixture
def nothing_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of the command's own has a default Stack that nothing was done with yet."""
    monkeypatch.setattr(default, "_default", None)


@pytest.mark.usefixtures("nothing_done")
def test_a_module_brings_a_family_of_its_own_number() -> None:
    config = RunConfig(family="host", modules=["tests.run.example_family"])
    control = Control(*start(config))
    server = next(control.ids)
    control.client.open(server, AF_EXAMPLE, AF_EXAMPLE, std.SOCK_STREAM, 0)
    address = control.ask(control.client.bind, server, emit(AF_EXAMPLE, ("10.0.0.1", 7)))
    assert parse(AF_EXAMPLE, address) == ("10.0.0.1", 7)
    control.ask(control.client.listen, server, 3)
    client = next(control.ids)
    control.client.open(client, AF_EXAMPLE, AF_EXAMPLE, std.SOCK_STREAM, 0)
    control.ask(control.client.connect, client, address)
    program = control.attach(client)
    _, accepted = control.accept(server)
    program.sendall(b"a protocol is a class" * 1000)
    program.shutdown(std.SHUT_WR)
    got = bytearray()
    while chunk := accepted.recv(4096):
        got += chunk
    assert got == b"a protocol is a class" * 1000
    for end in (program, accepted):
        end.close()
    assert control.finish() == 0


@pytest.mark.parametrize(
    ("name", "number"),
    [("host", 2), ("tcp", 2), ("new_tcp", 46), ("sdp", 27), ("both", 27), ("45", 45)],
)
def test_families_have_names(name: str, number: int) -> None:
    assert family_number(name, std.AF_INET) == number
    if name == "host":
        assert family_number(name, std.AF_INET6) == std.AF_INET6


@pytest.mark.usefixtures("nothing_done")
def test_a_device_that_describes_none_fails_the_start() -> None:
    with pytest.raises(OSError, match="STEERTAG_DEVICE") as caught:
        start(RunConfig(family="new_tcp", device="nonsense"))
    assert caught.value.errno == errno.EINVAL


def test_the_terminals_signals_leave_it_alone() -> None:
    with running("host") as control:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP):
            os.kill(control.pid, number)
        talk(control)


def test_it_ends_with_its_channel_though_programs_hold_their_sockets() -> None:
    control = Control(*start(RunConfig(family="host")))
    listener, address = control.listen()
    _, program = control.connect(address)
    _, accepted = control.accept(listener)
    control.stats()
    assert control.finish() == 0
    for end in (program, accepted):
        try:
            assert end.recv(1) == b""
        except ConnectionResetError:
            continue
        finally:
            end.close()


def test_a_bug_met_by_one_socket_costs_that_one_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poller = Poller(Stack(load_family=None))
    calls: list[str] = []

    class Broken:
        marked = False

        def run(self) -> None:
            raise RuntimeError("a bug")

    class Fine:
        marked = False

        def run(self) -> None:
            calls.append("fine")

    poller.again(Broken())
    poller.again(Fine())
    poller.turn(0.0)
    assert calls == ["fine"]
    assert "a bug in steertag" in caplog.text
    poller.close()


def test_timers_run_in_their_order() -> None:
    poller = Poller(Stack(load_family=None))
    calls: list[int] = []
    now = poller.clock()
    poller.call_at(now - 1, lambda: calls.append(2))
    poller.call_at(now - 2, lambda: calls.append(1))
    poller.call_at(now + 3600, lambda: calls.append(3))
    poller.turn(None)
    assert calls == [1, 2]
    poller.close()


def test_answers_that_find_no_room_wait_for_it() -> None:
    """A control process that does not read is told everything once it does."""
    ours, theirs = Channel.pair()
    data = Data(theirs, open_stack(RunConfig(family="host")))
    asked = 0
    while not theirs.wants_write:
        for _ in range(200):
            asked += 1
            ours.send((15, 0, asked))  # STATS
            ours.flush()
        data.poller.turn(0.0)
    answers: list[int] = []
    while len(answers) < asked:
        ours.flush()
        data.poller.turn(0.0)
        answers += [message[2] for message, _ in ours.receive()]
    assert answers == list(range(1, asked + 1))
    ours.close()
    data.poller.close()
    theirs.close()
