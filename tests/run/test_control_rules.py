"""Who is served by which family: rules, --map, a family's own number, and what stays the host's."""

from __future__ import annotations

import socket as std
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from steertag.family.rules import Rules
from steertag.run.launch import RunConfig
from steertag.run.plan import NATIVE, UNDECIDED, Plan, host_and_port
from steertag.run.sockaddr import emit
from tests.run.programs import free_port, script, supervised

INET, INET6 = int(std.AF_INET), int(std.AF_INET6)
STREAM, DGRAM = int(std.SOCK_STREAM), int(std.SOCK_DGRAM)
SDP, NEW_TCP = 27, 46
RELAYED = ("--family", "host", "--relay")

NATIVES = """
import os
def native(sock):
    "Whether it is the host's own: /proc/net knows its inode."
    inode = str(os.fstat(sock.fileno()).st_ino)
    return any(inode in open("/proc/net/" + name).read().split() for name in ("tcp", "tcp6", "udp"))
"""


@contextmanager
def echo() -> Iterator[int]:
    """A server of the host's, natively: it answers one connection after the other."""
    with std.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    while data := sock.recv(1000):
                        sock.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(std.SHUT_RDWR)
        thread.join()


# -- the plan --------------------------------------------------------------------------------------


def test_without_rules_the_family_serves_streams_and_the_datagrams_it_has() -> None:
    assert Plan(RunConfig(family="sdp")).at_socket(INET, STREAM, "x")[0] == SDP
    assert Plan(RunConfig(family="sdp")).at_socket(INET, DGRAM, "x")[0] == NATIVE
    assert Plan(RunConfig(family="new_tcp")).at_socket(INET6, DGRAM, "x")[0] == NEW_TCP
    assert Plan(RunConfig(family="64")).at_socket(INET, STREAM, "x")[0] == 64
    assert Plan(RunConfig(family="host")).at_socket(INET, STREAM, "x")[0] == NATIVE
    assert Plan(RunConfig(family="host", relay=True)).at_socket(INET, STREAM, "x")[0] == INET


def test_a_familys_own_number_is_served_by_it_whatever_else_is() -> None:
    plan = Plan(RunConfig(family="64"))
    assert plan.at_socket(64, STREAM, "x")[0] == 64
    assert 64 in plan.sockets
    assert 64 not in Plan(RunConfig(family="sdp")).sockets
    assert Plan(RunConfig(family="host")).at_socket(SDP, STREAM, "x")[0] == SDP


def test_sockets_of_a_host_family_that_is_not_relayed_are_not_even_looked_at() -> None:
    plan = Plan(RunConfig(family="host"))
    assert INET not in plan.sockets
    assert INET6 not in plan.sockets
    assert not plan.datagrams


def test_only_a_family_with_datagrams_has_messages_looked_at() -> None:
    assert not Plan(RunConfig(family="sdp")).datagrams
    assert Plan(RunConfig(family="new_tcp")).datagrams
    assert Plan(RunConfig(family="sdp", rules=Rules.parse("use new_tcp * * *:53"))).datagrams


def test_a_rule_for_every_address_decides_when_the_socket_is_made() -> None:
    plan = Plan(RunConfig(family="sdp", rules=Rules.parse("use tcp * curl *:*")))
    assert plan.at_socket(INET, STREAM, "/usr/bin/curl")[0] == NATIVE
    assert plan.at_socket(INET, STREAM, "/usr/bin/wget")[0] == SDP


def test_a_rule_about_addresses_waits_for_one() -> None:
    rules = Rules.parse("use tcp client * 10.0.0.0/8:*\nuse both server * *:5001")
    plan = Plan(RunConfig(family="new_tcp", rules=rules))
    assert plan.at_socket(INET, STREAM, "x")[0] == UNDECIDED

    def at(role: str, host: str, port: int) -> tuple[int, str]:
        domain = INET6 if ":" in host else INET
        return plan.at_address(domain, STREAM, "x", role, emit(domain, (host, port)))

    assert at("client", "10.1.2.3", 80) == (NATIVE, "tcp")
    assert at("client", "::ffff:10.1.2.3", 80) == (NATIVE, "tcp")
    assert at("client", "11.1.2.3", 80) == (NEW_TCP, "new_tcp")
    assert at("server", "0.0.0.0", 5001) == (SDP, "both")


def test_a_rule_that_cannot_match_such_a_socket_does_not_hold_it_up() -> None:
    rules = Rules.parse("use tcp client ssh 10.0.0.0/8:22")
    plan = Plan(RunConfig(family="sdp", rules=rules))
    assert plan.at_socket(INET, STREAM, "/usr/bin/curl")[0] == SDP
    assert plan.at_socket(INET, STREAM, "/usr/bin/ssh")[0] == UNDECIDED


def test_with_modules_to_import_the_stack_is_asked_about_every_number_but_the_hosts() -> None:
    assert Plan(RunConfig(family="sdp")).others is None
    plan = Plan(RunConfig(family="sdp", modules=["own_family"]))
    assert plan.others is not None
    assert {int(std.AF_UNIX), INET, INET6} < set(plan.others)
    assert plan.at_socket(64, STREAM, "x")[0] == 64
    assert plan.datagrams


@pytest.mark.parametrize(
    ("asked", "before", "after", "becomes"),
    [
        (("10.0.0.1", 80), ("10.0.0.1", 80), ("127.0.0.1", 8080), ("127.0.0.1", 8080)),
        (("10.0.0.1", 81), ("10.0.0.1", 80), ("127.0.0.1", 8080), ("10.0.0.1", 81)),
        (("10.0.0.1", 81), ("10.0.0.1", 0), ("127.0.0.1", 0), ("127.0.0.1", 81)),
        (("10.0.0.1", 81), ("*", 81), ("*", 82), ("10.0.0.1", 82)),
        (("::ffff:10.0.0.1", 80), ("10.0.0.1", 80), ("127.0.0.1", 1), ("127.0.0.1", 1)),
        (("fd00::1", 80), ("fd00::1", 80), ("fd00::2", 81), ("fd00::2", 81)),
    ],
)
def test_an_address_is_replaced_as_asked(
    asked: tuple[str, int],
    before: tuple[str, int],
    after: tuple[str, int],
    becomes: tuple[str, int],
) -> None:
    domain = INET6 if ":" in asked[0] else INET
    plan = Plan(RunConfig(maps=[(before, after)]))
    assert host_and_port(plan.mapped(domain, emit(domain, asked))) == becomes


def test_what_is_no_internet_address_is_not_replaced() -> None:
    plan = Plan(RunConfig(maps=[(("*", 0), ("127.0.0.1", 1))]))
    assert plan.mapped(1, b"\1\0/run/socket") == b"\1\0/run/socket"
    assert plan.mapped(INET, b"\2\0") == b"\2\0"


# -- in a program ----------------------------------------------------------------------------------


def test_rules_leave_some_connections_to_the_host_and_relay_others(tmp_path: Path) -> None:
    with echo() as port, echo() as other:
        rules = tmp_path / "rules"
        rules.write_text(f"use 2 client * 127.0.0.1:{port}\n")
        text = f"""{NATIVES}
import socket
for port in ({port}, {other}):
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    copy = sock.dup()
    sock.connect(("127.0.0.1", port))
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    copy.sendall(b"over the copy")
    assert sock.recv(100) == b"over the copy"
    assert native(sock) == native(copy)
    print(native(sock))
"""
        options = ("--family", "host", "--rules", str(rules))
        assert script(text, options=options).split() == ["False", "True"]


def test_a_socket_that_rules_leave_to_the_host_stays_nonblocking(tmp_path: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("use 2 client * 10.0.0.0/8:*\n")
    text = f"""{NATIVES}
import socket
listener = socket.socket(); listener.setblocking(False)
listener.bind(("127.0.0.1", 0)); listener.listen(5)
assert native(listener)
try:
    listener.accept()
except BlockingIOError:
    print("would block")
"""
    options = ("--family", "host", "--rules", str(rules))
    assert script(text, options=options) == "would block\n"


@pytest.mark.parametrize("options", [(), ("--relay",)], ids=["the host's own", "relayed"])
@pytest.mark.parametrize("waits", ["True", "False"])
def test_an_address_is_mapped(options: tuple[str, ...], waits: str) -> None:
    text = f"""{NATIVES}
import select, socket
sock = socket.socket()
sock.setblocking({waits})
error = sock.connect_ex(("192.0.2.7", 7))
if error:
    assert select.select([], [sock], [], 30)[1]
    assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
sock.setblocking(True)
sock.sendall(b"mapped")
print(sock.recv(100).decode(), native(sock))
"""
    with echo() as port:
        mapped = ("--family", "host", "--map", f"192.0.2.7:7=127.0.0.1:{port}", *options)
        assert script(text, options=mapped) == f"mapped {not options}\n"


def test_a_refusal_reaches_a_program_whose_address_was_mapped() -> None:
    text = "import socket; print(socket.socket().connect_ex(('192.0.2.7', 7)))"
    options = ("--family", "host", "--map", f"192.0.2.7:7=127.0.0.1:{free_port()}")
    assert script(text, options=options) == "111\n"


def test_the_hosts_sockets_are_the_hosts_where_nothing_else_is_asked_for() -> None:
    text = f"""{NATIVES}
import socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
print(native(listener), native(client))
"""
    assert script(text, options=("--family", "host")) == "True True\n"


def test_a_family_that_is_not_there_is_one_line_and_125() -> None:
    done = supervised("true", options=("--import", "no.such.module"))
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1


BY_NUMBER = """
import ctypes, errno, os, struct
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    return result if result >= 0 else -ctypes.get_errno()
refused = call("socket", 64, 2, 0), call("socket", 64, 1, 9)
print(*[errno.errorcode.get(-error) for error in refused])
address = struct.pack("=H2x4B8x", 64, 127, 0, 0, 1)
listener = call("socket", 64, 1, 0)
assert call("bind", listener, address, 16) == 0
assert call("listen", listener, 5) == 0
name, size = ctypes.create_string_buffer(16), ctypes.c_int(16)
assert call("getsockname", listener, name, ctypes.byref(size)) == 0
client = call("socket", 64, 1, 0)
assert call("connect", client, struct.pack("=H", 2) + name.raw[2:], 16) == -errno.EAFNOSUPPORT
assert call("connect", client, name, 16) == 0
peer = ctypes.create_string_buffer(16)
server = call("accept", listener, peer, ctypes.byref(size))
assert server > 0 and peer.raw[:2] == name.raw[:2], (server, peer.raw)
os.write(client, b"by number")
print(os.read(server, 100).decode(), peer.raw[4:8] == bytes([127, 0, 0, 1]))
"""


@pytest.mark.parametrize(
    "family", [("--family", "64"), ("--family", "sdp"), ("--family", "host"), ()]
)
def test_a_third_partys_family_is_served_by_its_own_number(
    family: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    options = ("--import", "own_family", *family)
    said = script(BY_NUMBER, options=options).splitlines()
    assert said == ["ESOCKTNOSUPPORT EPROTONOSUPPORT", "by number True"]


def test_a_number_that_nobody_registered_is_the_kernels_to_refuse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    text = """
import errno, socket
for family, kind in ((65, socket.SOCK_STREAM), (socket.AF_NETLINK, socket.SOCK_RAW)):
    try:
        print(family, socket.socket(family, kind).family)
    except OSError as error:
        print(family, errno.errorcode[error.errno])
"""
    said = script(text, options=("--import", "own_family")).splitlines()
    assert said == ["65 EAFNOSUPPORT", "16 16"]


def test_a_program_of_the_hosts_families_goes_over_a_third_partys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    text = f"""{NATIVES}
import socket
listener = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(listener.getsockname())
server, _ = listener.accept()
client.sendall(b"over it")
print(server.recv(100).decode(), native(client))
"""
    options = ("--import", "own_family", "--family", "64")
    assert script(text, options=options) == "over it False\n"
