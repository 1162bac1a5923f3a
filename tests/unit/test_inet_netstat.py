"""`stag netstat` and `stag sockets -i`: what a Stack with AF_INET_NEW_TCP shows of itself."""

from __future__ import annotations

import json
import os
import socket as std
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steertag.cli.main import cli
from steertag.family.stack import Stack
from steertag.inet.mib import GROUPS
from steertag.observe import netstat, sockets
from steertag.socket import default
from tests.inet.packets import SYN, Tcp, emit
from tests.unit.inet_sides import host, two_hosts
from tests.unit.inet_wire import wire
from tests.unit.inspected import Program

PROGRAM = """\
import os, socket as std, sys, threading
sys.path.append("examples")
from steertag import AF_INET_NEW_TCP, Stack, socket
from steertag.inet import inet_net, register
from tests.unit.test_driver import PipeDevice

shown = threading.Event()
stacks = [Stack(), Stack()]
# Behind what installed packages bring, which is called before.
stacks[1].observers.append(lambda _: stacks[1].observers.append(lambda _: shown.set()))
for number, end in enumerate(std.socketpair(std.AF_UNIX, std.SOCK_SEQPACKET)):
    register(stacks[number])
    device = PipeDevice(f"pipe{number}", end)
    inet_net(stacks[number]).add_device(device, (f"10.9.0.{number + 1}/24",))
socks = [socket.socket(AF_INET_NEW_TCP, std.SOCK_STREAM, stack=stack) for stack in stacks]
socks[0].bind(("10.9.0.1", 7000))
socks[0].listen()
socks[1].connect(("10.9.0.1", 7000))
accepted, _ = socks[0].accept()
socks[1].sendall(b"hello")
accepted.recv(5)
assert shown.wait(60)
print("ready", flush=True)
"""


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "steertag"
    monkeypatch.setenv("STEERTAG_INSPECT", str(path))
    return path


@pytest.fixture
def program(directory: Path) -> Iterator[Program]:
    with Program(PROGRAM, STEERTAG_INSPECT=str(directory)) as program:
        yield program


def stag(*args: str) -> Result:
    result = CliRunner().invoke(cli, args)
    assert "Traceback" not in result.output
    return result


def test_every_counter_has_its_group_and_name() -> None:
    near = host()
    found = netstat.groups(near.stack)
    assert {group: tuple(counters) for group, counters in found.items()} == GROUPS
    assert netstat.groups(Stack()) == {}


def test_what_happens_is_counted_under_the_kernel_s_names() -> None:
    with two_hosts() as (near, far):
        server, client = far.socket(), near.socket()
        server.bind(("", 5000))
        client.sendto(b"x", ("10.0.0.2", 5000))
        client.sendto(b"x", ("fd00::2", 5000))
        client.sendto(b"x", ("10.0.0.2", 5001))
        for _ in range(2):
            server.recv(9)
        ours = json.loads(json.dumps(netstat.as_json(netstat.owned(near.stack))))[0]["kernel"]
        theirs = netstat.groups(far.stack)
        assert (ours["UdpOutDatagrams"], ours["Udp6OutDatagrams"]) == (2, 1)
        assert (ours["IpOutRequests"], ours["IcmpInDestUnreachs"]) == (2, 1)
        assert "UdpNoPorts" not in ours
        assert (theirs["Udp"]["InDatagrams"], theirs["Udp6"]["InDatagrams"]) == (1, 1)
        assert (theirs["Udp"]["NoPorts"], theirs["Icmp"]["OutDestUnreachs"]) == (1, 1)


def test_the_table_leaves_zeros_out_unless_asked_for() -> None:
    near = host()
    found = netstat.owned(near.stack)
    assert "NoPorts" not in netstat.format(found)
    lines = netstat.format(found, zeros=True).splitlines()
    assert lines[0].endswith(f"(pid {os.getpid()})")
    assert len(lines) == 1 + len(GROUPS) + sum(map(len, GROUPS.values()))
    near.close()


def test_the_command_shows_its_own_stack_and_no_other_by_default(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process of the command's own has a default Stack that nothing was done with yet.
    monkeypatch.setattr(default, "_default", None)
    assert "no program with AF_INET_NEW_TCP" in stag("netstat", "-s").output
    result = stag("netstat", "-s", "--load", "--json", "-z")
    (own,) = json.loads(result.stdout)
    assert own["pid"] == os.getpid()
    assert own["kernel"]["TcpMaxConn"] == -1
    assert stag("netstat").exit_code == 2


def test_a_running_program_is_looked_into(program: Program) -> None:
    pid = str(program.pid)
    counted = json.loads(stag("netstat", "-s", "--json", "-p", pid).stdout)
    assert [one["pid"] for one in counted] == [program.pid] * 2
    active, passive = sorted(one["kernel"].get("TcpPassiveOpens", 0) for one in counted)
    assert (active, passive) == (0, 1)
    listed = json.loads(stag("sockets", "-a", "--json", "-p", pid).stdout)
    names = {(row["state"], row["local"], row["peer"].rpartition(":")[0]) for row in listed}
    assert ("LISTEN", "10.9.0.1:7000", "") in names
    assert ("ESTAB", "10.9.0.1:7000", "10.9.0.2") in names
    text = stag("sockets", "-i", "-p", pid).output
    assert "cubic wscale:" in text
    assert "bytes_received:5" in text


def test_a_listing_tells_of_streams_what_ss_does() -> None:
    with two_hosts() as (near, far):
        server, client = far.socket(std.SOCK_STREAM), near.socket(std.SOCK_STREAM)
        server.bind(("10.0.0.2", 80))
        server.listen()
        client.connect_ex(("10.0.0.2", 80))
        conn, _ = server.accept()
        client.sendall(bytes(5000))
        conn.recv(9999)
        (row,) = sockets.rows(near.stack)
        assert (row.netid, row.state, row.peer) == ("new-tcp", "ESTAB", "10.0.0.2:80")
        assert row.info["bytes_sent"] == 5000
        assert row.info["mss"] == 1448
        assert row.info["cong"] == "cubic"
        client.close()
        conn.close()
        (row,) = sockets.rows(near.stack)
        assert row.state == "TIME-WAIT"
        assert str(row.info["timer"]).startswith("(timewait,")
        text = sockets.format_owned([(row, 7, "me")], info=True)
        assert text.splitlines()[-1].startswith("\t timer:(timewait,")


def test_requests_and_timers_that_run_are_shown() -> None:
    with wire(4) as link:
        server, client = (link.host.socket(std.SOCK_STREAM) for _ in range(2))
        server.bind((link.near, 80))
        server.listen()
        syn = Tcp(flags=SYN, source=link.far, dest=link.near, sport=4000, dport=80, window=9000)
        link.inject(emit(syn))
        client.connect_ex((link.far, 22))
        link.host.clock.now += 0.25
        rows = {row.state: row for row in sockets.rows(link.host.stack)}
        assert rows["SYN-RECV"].peer == f"{link.far}:4000"
        assert rows["SYN-RECV"].info["timer"] == rows["SYN-SENT"].info["timer"] == "(on,750ms,0)"
        assert rows["LISTEN"].send_q == 128


def test_datagram_sockets_show_their_buffers_and_drops() -> None:
    near = host()
    server, client = near.socket(), near.socket()
    server.bind(("127.0.0.1", 5000))
    server.setsockopt(std.SOL_SOCKET, std.SO_RCVBUF, 2000)
    for _ in range(4):
        client.sendto(bytes(1500), ("127.0.0.1", 5000))
    rows = {row.local: row for row in sockets.rows(near.stack)}
    row = rows["127.0.0.1:5000"]
    assert (row.netid, row.state, row.recv_q) == ("new-udp", "UNCONN", 1500)
    waiting = int(row.info["rmem_alloc"]) // 1756
    assert row.info["drops"] == 4 - waiting
    assert row.info["rcvbuf"] == 4000
    near.close()
