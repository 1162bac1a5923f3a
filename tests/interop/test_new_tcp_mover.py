"""The mover and the fabric's commands over AF_INET_NEW_TCP, the host's TCP at the other end.

Commands run in a namespace, as the pages show them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.namespace import Namespace, Running, require_tun
from tests.processes import PATIENCE
from tests.transfer.harness import PATHS, STAG, make_file

SIZE: Final = 5 * 1024 * 1024 + 17
OURS: Final = "10.9.0.2"
HOSTS: Final = "10.9.0.1"
DEVICE: Final = f"tun:stag0,{OURS}/24,host={HOSTS}/24,via={HOSTS}"
SECOND: Final = "tun:stag1,10.9.1.2/24,host=10.9.1.1/24,via=10.9.1.1"
POWERLESS: Final = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
FAULTS: Final = "loss=1%,duplicate=1%,corrupt=1%,reorder=1%,delay=1ms,seed=5"


@pytest.fixture
def network() -> Iterator[Namespace]:
    require_tun()
    with Namespace() as namespace:
        yield namespace


def over(spec: str) -> tuple[str, ...]:
    return ("--family", "new_tcp", "--device", spec)


def serve(network: Namespace, directory: Path, *options: str) -> tuple[Running, str]:
    """`stag serve`, and the URL of what it serves."""
    command = ("serve", directory, "--writable", "--no-auth", "--json", *options)
    running = network.start(*STAG, *command)
    return running, running.object()["url"]


def stag(network: Namespace, *arguments: str | Path) -> dict[str, Any]:
    """A command's report; it has to end well."""
    said = network.run(*STAG, *map(str, arguments), "--json")
    report = json.loads(said.splitlines()[-1])
    assert isinstance(report, dict)
    return report


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path]:
    """The server's, and the client's."""
    for name in ("served", "here"):
        (tmp_path / name).mkdir()
    return tmp_path / "served", tmp_path / "here"


def assert_there_and_back(
    network: Namespace, url: str, directories: tuple[Path, Path], path: str, *options: str
) -> None:
    served, here = directories
    data = make_file(here / "file", SIZE)
    for arguments in (("put", here / "file", url), ("get", f"{url}file", here / "back")):
        report = stag(network, *arguments, "--path", path, *options)
        assert (report["path"], report["fallback"]) == (path, None)
        assert report["digest"]["ok"] is True
    assert (served / "file").read_bytes() == (here / "back").read_bytes() == data


@pytest.mark.parametrize("path", PATHS)
def test_our_server_and_a_client_over_the_host_s_tcp(
    network: Namespace, directories: tuple[Path, Path], path: str
) -> None:
    _, url = serve(network, directories[0], *over(DEVICE))
    assert url == f"stag://{OURS}:7824/"
    assert_there_and_back(network, url, directories, path)


@pytest.mark.parametrize("path", PATHS)
def test_our_client_and_a_server_over_the_host_s_tcp(
    network: Namespace, directories: tuple[Path, Path], path: str
) -> None:
    serve(network, directories[0], "--bind", "0.0.0.0")
    url = f"stag://{HOSTS}/"
    assert_there_and_back(network, url, directories, path, *over(DEVICE))


@pytest.mark.parametrize("path", PATHS)
def test_both_ends_in_user_space_over_a_faulty_link(
    network: Namespace, directories: tuple[Path, Path], path: str
) -> None:
    network.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
    _, url = serve(network, directories[0], *over(DEVICE))
    more = ("--rdma-timeout", "30")
    assert_there_and_back(network, url, directories, path, *over(f"{SECOND},{FAULTS}"), *more)


def test_ipv6_in_brackets(network: Namespace, directories: tuple[Path, Path]) -> None:
    spec = "tun:stag0,fd00:9::2/64,host=fd00:9::1/64"
    _, url = serve(network, directories[0], *over(spec), "--bind", "[fd00:9::2]:7000")
    assert url == "stag://[fd00:9::2]:7000/"
    assert_there_and_back(network, url, directories, "rdma-write")


def test_a_fallback_is_told(network: Namespace, directories: tuple[Path, Path]) -> None:
    served, here = directories
    make_file(served / "file", SIZE)
    _, url = serve(network, served, *over(DEVICE), "--no-rdma")
    report = stag(network, "get", f"{url}file", here, "--path", "rdma-read")
    assert report["path"] == "tcp-sendfile"
    assert "no RDMA" in report["fallback"]["reason"]


def test_a_server_with_an_address_asks_for_a_token(
    network: Namespace, directories: tuple[Path, Path], tmp_path: Path
) -> None:
    env = {"HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path / "state")}
    command = ("serve", directories[0], "--json", *over(DEVICE))
    running = network.start(*STAG, *map(str, command), **env)
    assert running.object()["token_file"].startswith(str(tmp_path))


# --- the fabric's commands and the benchmark ----------------------------------------------------


def test_rping_pings_both_ways(network: Namespace) -> None:
    ours = network.start(*STAG, "rping", "-s", "-p", "7174", *over(DEVICE), "--json")
    wait_listening(ours)
    report = stag(network, "rping", "-c", "-a", OURS, "-C", "5", "-V")
    assert report["pings"] == 5
    ours.wait()
    hosts = network.start(*STAG, "rping", "-s", "-p", "7175", "--json")
    wait_listening(hosts)
    client = ("rping", "-c", "-a", HOSTS, "-p", "7175", "-C", "5", "-V")
    assert stag(network, *client, *over(DEVICE))["pings"] == 5


def test_ucmatose_connects_by_the_dozen(network: Namespace) -> None:
    ours = network.start(*STAG, "ucmatose", *over(DEVICE), "-c", "12", "--json")
    wait_listening(ours)
    report = stag(network, "ucmatose", "-s", OURS, "-c", "12")
    assert report["received"] == 120


def wait_listening(running: Running) -> None:
    """Until a command says that it listens, on standard error."""
    assert running.process.stderr is not None
    for line in running.process.stderr:
        if "listening" in line:
            return
    raise AssertionError(running.stop())


def test_the_benchmark_measures_over_it(network: Namespace) -> None:
    report = stag(network, "bench", "write", "-s", "64K", "-n", "50", "-r", "1", *over(DEVICE))
    assert report["rdma"]["gb_per_s"] > 0
    assert report["raw"]["gb_per_s"] > 0
    assert report["staged_bytes"] < 64 * 1024


# --- programs, and what the environment says ----------------------------------------------------


def test_the_environment_gives_a_program_its_devices(network: Namespace) -> None:
    program = (
        "from steertag import socket, default_stack\n"
        "from steertag.inet import AF_INET_NEW_TCP\n"
        "print(sorted(default_stack().devices))\n"
        "socket.socket(AF_INET_NEW_TCP).close()\n"
        "print(sorted(default_stack().devices))\n"
    )
    running = network.start(sys.executable, "-c", program, device=f"{DEVICE};{SECOND}")
    assert running.line() == "[]\n"
    assert running.line() == "['lo', 'stag0', 'stag1']\n"
    running.wait()


def test_a_device_that_can_t_be_had_is_told_each_time(network: Namespace) -> None:
    program = (
        "from steertag import socket, default_stack\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        socket.socket(46)\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    network.ip("tuntap", "add", "dev", "stag0", "mode", "tap")
    running = network.start(sys.executable, "-c", program, device=DEVICE)
    for _ in range(2):
        assert "stag0" in running.line()
    running.wait()


def test_a_description_in_the_environment_that_is_none_is_told(network: Namespace) -> None:
    program = "from steertag import socket\nsocket.socket(46)"
    running = network.start(sys.executable, "-c", program, device="tun:stag0")
    _, err = running.process.communicate(timeout=PATIENCE)
    assert "STEERTAG_DEVICE" in err.splitlines()[-1]
    assert "no address" in err.splitlines()[-1]


def test_an_interface_that_was_there_before_is_used_without_any_right_and_stays(
    network: Namespace, directories: tuple[Path, Path]
) -> None:
    """What a page has root do once, and a user from then on."""
    served, here = directories
    data = make_file(served / "file", 100)
    network.ip("tuntap", "add", "dev", "stag0", "mode", "tun", "user", "root", "vnet_hdr")
    network.ip("address", "add", f"{HOSTS}/24", "dev", "stag0")
    network.ip("link", "set", "stag0", "up", "mtu", "4000")
    options = ("--no-auth", "--json", *over(f"tun:stag0,{OURS}/24,via={HOSTS}"))
    running = network.start(*POWERLESS, *STAG, "serve", served, *options)
    url = running.object()["url"]
    stag(network, "get", f"{url}file", here)
    assert (here / "file").read_bytes() == data
    running.stop()
    assert "mtu 4000" in network.ip("link", "show", "stag0")


# --- a network without root ---------------------------------------------------------------------


def test_outside_of_a_namespace_one_line_says_what_is_missing(tmp_path: Path) -> None:
    """As somebody without rights, in the machine's own network: nothing is changed there."""
    if os.geteuid() != 0:
        pytest.skip("not possible here: it takes root to be somebody else")
    command = [*POWERLESS, *STAG, "serve", str(tmp_path), *over(DEVICE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 1, done
    assert len(done.stderr.splitlines()) == 1
    assert "CAP_NET_ADMIN" in done.stderr
    assert "unshare -Urn" in done.stderr


def test_a_namespace_of_anybody_s_own_will_do(directories: tuple[Path, Path]) -> None:
    """The recipe of the page, in one command: `unshare -Urn`, and everything in there."""
    require_tun()
    served, here = directories
    data = make_file(served / "file", SIZE)
    stag_words = " ".join(STAG)
    said = directories[0].parent / "said"
    os.mkfifo(said)
    script = (
        f"ip link set lo up; {stag_words} serve {served} --no-auth"
        f" --family new_tcp --device {DEVICE} >{said} & read line <{said};"
        f" {stag_words} get -q stag://{OURS}/file {here}/file; kill $!"
    )
    done = subprocess.run(
        ["unshare", "-Urn", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    if "unshare failed" in done.stderr or "/dev/net/tun may not" in done.stderr:
        pytest.skip(f"not possible here: {done.stderr.splitlines()[0]}")
    assert (here / "file").read_bytes() == data, done
