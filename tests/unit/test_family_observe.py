"""`stag protocols`, `stag sockets`, `stag sysctl`, and the functions behind them."""

import json
import os
import socket as std
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from new_protocol import AF_EXAMPLE, register

from steertag import Stack, device, socket
from steertag.cli.main import cli
from steertag.observe import protocols, sockets, sysctl

KERNEL_COLUMNS = (
    "protocol size sockets memory press maxhdr slab module "
    "cl co di ac io in de sh ss gs se re bi br ha uh gp em"
)


@pytest.fixture
def stack() -> Stack:
    stack = Stack(load_family=None)
    register(stack, device.loopback(), "node")
    return stack


@pytest.fixture
def stag() -> Callable[..., Result]:
    return lambda *args: CliRunner().invoke(cli, args)


def test_protocols_prints_the_kernels_columns(stack: Stack) -> None:
    with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack):
        head, dgram, stream = protocols.format(stack).splitlines()
    assert " ".join(head.split()) == KERNEL_COLUMNS
    name, _, *rest = stream.split()
    assert [name, *rest[:6]] == ["EXSTREAM", "1", "0", "no", "42", "no", "example_stream"]
    assert "".join(rest[6:]) == "yyyyyynyyyyynnyyyn"
    assert dgram.split()[:1] + dgram.split()[2:5] == ["EXDGRAM", "0", "0", "NI"]


@pytest.mark.skipif(not os.path.exists("/proc/net/protocols"), reason="no /proc/net/protocols")
def test_the_columns_are_those_of_this_kernel_too(stack: Stack) -> None:
    with open("/proc/net/protocols") as file:
        kernel = file.readline().split()
    ours = protocols.format(stack).splitlines()[0].split()
    assert ours == [column for column in kernel if column != "sp"]  # sendpage went with Linux 6.5


def test_protocols_json_says_the_same(stack: Stack) -> None:
    listed = {row["protocol"]: row for row in protocols.as_json(stack)}
    assert listed["EXSTREAM"]["mem"] == [256, 384, 512]
    assert "get_port" in listed["EXDGRAM"]["members"]
    json.dumps(list(listed.values()))


def test_sockets_prints_what_ss_prints(stack: Stack) -> None:
    with (
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as server,
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as client,
        socket.socket(AF_EXAMPLE, std.SOCK_DGRAM, stack=stack),
    ):
        server.bind(("node", 7))
        server.listen(5)
        client.connect(("node", 7))
        port = client.getsockname()[1]
        lines = [line.split() for line in sockets.format(stack).splitlines()]
        assert " ".join(lines[0]) == (
            "Netid State Recv-Q Send-Q Local Address:Port Peer Address:Port"
        )
        assert ["exdgram", "UNCONN", "0", "0", "*:*", "*"] in lines
        assert ["exstream", "LISTEN", "1", "5", "node:7", "*"] in lines
        assert ["exstream", "ESTAB", "0", "0", f"node:{port}", "node:7"] in lines
        assert ["exstream", "ESTAB", "0", "0", "node:7", f"node:{port}"] in lines, "not accepted"
        conn, _ = server.accept()
        with conn:
            client.send(b"12345")
            rows = {(row.state, row.local): row for row in sockets.rows(stack)}
            assert rows["ESTAB", "node:7"].recv_q == 5
            assert [row.state for row in sockets.rows(stack, listening=True)] == ["LISTEN"]


def test_sockets_of_the_host_show_the_hosts_state() -> None:
    stack = Stack()
    with socket.create_server(("127.0.0.1", 0), backlog=7, stack=stack) as server:
        address = server.getsockname()
        with socket.create_connection(address, stack=stack) as client:
            client.getsockname()
            listed = {row.state: row for row in sockets.rows(stack)}
            assert (listed["LISTEN"].recv_q, listed["LISTEN"].send_q) == (1, 7)
            assert listed["ESTAB"].peer == f"127.0.0.1:{address[1]}"
    assert sockets.rows(stack) == []


def test_sysctl_lists_every_parameter(stack: Stack) -> None:
    assert "net.exstream.mem = 256\t384\t512" in sysctl.format(stack).splitlines()
    assert sysctl.as_json(stack, ["net/core/somaxconn"])["net.core.somaxconn"]["value"] == [4096]


def test_the_command_lists_protocols(stag: Callable[..., Result]) -> None:
    plain = stag("protocols", "--load")
    assert plain.exit_code == 0
    assert plain.output.split()[: len(KERNEL_COLUMNS.split())] == KERNEL_COLUMNS.split()
    names = {row["protocol"] for row in json.loads(stag("protocols", "--json").output)}
    assert names >= {"HOST-TCP", "HOST-UDP", "HOST-UNIX"}


def test_the_command_lists_sockets_of_an_imported_module(
    stag: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "opens_one.py").write_text(
        "from steertag import socket\nserver = socket.create_server(('127.0.0.1', 0))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    result = stag("sockets", "-l", "--json", "--import", "opens_one")
    import opens_one

    with opens_one.server as server:
        assert server.getsockname()[1] > 0
        local = f"127.0.0.1:{server.getsockname()[1]}"
        assert local in [row["local"] for row in json.loads(result.output)]
        assert local not in stag("sockets").output
        assert local in stag("sockets", "-a").output


def test_the_command_reads_and_sets_parameters(stag: Callable[..., Result]) -> None:
    before = stag("sysctl", "-n", "net.core.somaxconn").output.strip()
    try:
        assert stag("sysctl", "-w", "net.core.somaxconn=77").output == "net.core.somaxconn = 77\n"
        assert stag("sysctl", "net/core/somaxconn").output == "net.core.somaxconn = 77\n"
        listed = json.loads(stag("sysctl", "-a", "--json").output)
        assert listed["net.core.somaxconn"]["value"] == [77]
        assert stag("sysctl", "-a", "-n").output.count("\n") == len(listed)
    finally:
        stag("sysctl", f"net.core.somaxconn={before}")


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["sysctl", "net.core.nope"], 1, "no sysctl 'net.core.nope'; `stag sysctl -a` lists them"),
        (["sysctl", "net.core.rmem_max=x"], 1, "net.core.rmem_max: 'x' is not integers"),
        (["sysctl"], 2, "give names, or -a for all of them"),
        (["sysctl", "-w", "net.core.rmem_max"], 2, "with -w say NAME=VALUE"),
        (["protocols", "--import", "no_such"], 2, "No module named 'no_such'"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_code(
    stag: Callable[..., Result], args: list[str], code: int, message: str
) -> None:
    result = stag(*args)
    assert (result.exit_code, message in result.output) == (code, True)
    assert "Traceback" not in result.output
