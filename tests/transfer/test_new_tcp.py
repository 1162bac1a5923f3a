"""Files move over AF_INET_NEW_TCP: TCP/IP, and the RNIC on top of it, in the process."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from steertag import socket
from steertag import verbs as v
from steertag.family import Stack
from steertag.inet import AF_INET_NEW_TCP, register
from steertag.transfer.client import Client, Options, Request, connect
from steertag.transfer.errors import ExitCode, TransferError
from steertag.transfer.server import Server, ServerConfig
from tests.processes import PATIENCE
from tests.transfer.harness import PATHS, make_file, stag

SIZE = 3 * 1024 * 1024 + 17
LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}


@pytest.fixture
def stack() -> Stack:
    """A Stack with the family, whose only device is its loopback."""
    stack = Stack(load_family=None, load_observers=None)
    register(stack)
    return stack


@contextmanager
def pair(
    served: Path, stack: Stack, host: str, **options: object
) -> Iterator[tuple[Server, Client]]:
    """A writable server and a client of it, both in `stack`."""
    config = ServerConfig(
        served, host=host, port=0, writable=True, family=AF_INET_NEW_TCP, stack=stack
    )
    with ExitStack() as end:
        server = end.enter_context(Server(config))
        options = Options(family=AF_INET_NEW_TCP, stack=stack)
        yield server, end.enter_context(connect(host, server.port, None, options))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("version", LOOPBACK)
def test_a_file_goes_there_and_back_over_every_path(
    stack: Stack, served: Path, here: Path, version: str, path: str
) -> None:
    data = make_file(here / "file", SIZE)
    with pair(served, stack, LOOPBACK[version]) as (_, client):
        put = client.store(here / "file", "file", Request(path))
        got = client.fetch("file", here / "back", Request(path))
        assert [entry.name for entry in client.list()] == ["file"]
    assert (served / "file").read_bytes() == (here / "back").read_bytes() == data
    for report in (put, got):
        assert (report.path, report.fallback, report.bytes) == (path, None, SIZE)
        assert report.digest.ok


@pytest.mark.parametrize("path", ["rdma-write", "rdma-read"])
def test_of_an_rdma_transfer_only_the_messages_that_steer_it_are_staged(
    stack: Stack, served: Path, here: Path, path: str
) -> None:
    make_file(served / "file", SIZE)
    with pair(served, stack, "127.0.0.1") as (_, client):
        report = client.fetch("file", here / "file", Request(path))
    assert report.own.staged_bytes < 4096


def test_a_server_without_rdma_is_told_of_as_loudly_as_ever(
    stack: Stack, served: Path, here: Path
) -> None:
    data = make_file(served / "file", SIZE)
    config = ServerConfig(
        served, host="127.0.0.1", port=0, rdma=False, family=AF_INET_NEW_TCP, stack=stack
    )
    options = Options(family=AF_INET_NEW_TCP, stack=stack)
    with Server(config) as server, connect("127.0.0.1", server.port, None, options) as client:
        report = client.fetch("file", here / "file", Request("rdma-write"))
    assert (here / "file").read_bytes() == data
    assert report.path == "tcp-sendfile"
    assert report.fallback is not None
    assert "no RDMA" in report.fallback.reason


def test_nobody_there_is_cannot_connect(stack: Stack) -> None:
    options = Options(family=AF_INET_NEW_TCP, stack=stack)
    with pytest.raises(TransferError) as told:
        connect("127.0.0.1", 9, None, options)
    assert told.value.code is ExitCode.CANNOT_CONNECT
    assert "refused" in told.value.message


# --- the command's options ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--device", "tun:10.9.0.2/24"), ("--family new_tcp",)),
        (("--family", "new_tcp"), ("--device", "tun:")),
        (("--family", "new_tcp", "--device", "tun:stag0"), ("no address", "10.9.0.2/24")),
    ],
)
@pytest.mark.parametrize("command", ["serve", "ls"])
def test_a_device_that_is_none_is_a_usage_error(
    served: Path, command: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    what = {"serve": str(served), "ls": "stag://10.9.0.2/"}[command]
    done = stag(command, what, *arguments, STEERTAG_DEVICE="")
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert all(word in last for word in words), done.err


def test_the_environment_s_device_is_used_and_told_of(served: Path) -> None:
    done = stag("ls", "stag://10.9.0.2/", "--family", "new_tcp", STEERTAG_DEVICE="tun:nonsense")
    assert done.code == 2
    assert "tun:nonsense" in done.err


@pytest.mark.parametrize("command", ["rping", "ucmatose", "rdma-server", "bench"])
def test_the_fabric_s_commands_and_the_benchmark_take_a_device_too(command: str) -> None:
    more = {"rping": ["-s"], "bench": ["write"]}.get(command, [])
    done = stag(command, *more, "--family", "new_tcp", "--device", "tun:stag0")
    assert done.code == 2
    assert "no address" in done.err.splitlines()[-1]


# --- the connection manager ---------------------------------------------------------------------


def address_of(host: str | None, port: int, flags: int = 0) -> v.AddrInfo:
    """An address of the family."""
    flags |= v.RAI_FAMILY
    if flags & v.RAI_PASSIVE:
        return v.AddrInfo(src=host, src_service=port, flags=flags, family=AF_INET_NEW_TCP)
    return v.AddrInfo(dst=host, dst_service=port, flags=flags, family=AF_INET_NEW_TCP)


def test_the_connection_manager_finds_its_way_by_the_stack_s_routes(stack: Stack) -> None:
    with v.Context(stack=stack) as context, v.CMEventChannel(context) as events:
        cmid = v.CMID(events)
        there = address_of("127.0.0.1", 4791)
        assert there.destinations == [(AF_INET_NEW_TCP, ("127.0.0.1", 4791))]
        cmid.resolve_addr(there)
        with events.get_event(PATIENCE) as event:
            assert event.event_type == v.CMEventType.RDMA_CM_EVENT_ADDR_RESOLVED
        assert cmid.getsockname() == ("127.0.0.1", 0)
        other = v.CMID(events)
        other.resolve_addr(address_of("192.0.2.1", 4791))
        with events.get_event(PATIENCE) as event:
            assert event.event_type == v.CMEventType.RDMA_CM_EVENT_ADDR_ERROR
            assert event.status == -errno.ENETUNREACH


def test_a_listener_without_an_address_takes_both_versions_of_ip(stack: Stack) -> None:
    with v.Context(stack=stack) as context, v.PD(context) as pd, ExitStack() as end:
        listener = end.enter_context(v.CMID(address_of(None, 0, v.RAI_PASSIVE), pd=pd))
        listener.listen()
        port = listener.getsockname()[1]
        for address in LOOPBACK.values():
            with socket.socket(AF_INET_NEW_TCP, socket.SOCK_STREAM, stack=stack) as sock:
                sock.settimeout(PATIENCE)
                sock.connect((address, port))
