"""The policy file: what its lines mean, which one decides, and what is said of a wrong one."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest

from steertag.family.rules import CLIENT, SERVER, Rules

LIBSDP = """
# what libsdp's example has
log min-level 9 destination file libsdp.log
use tcp  server  sshd        *:*
use both server  *           *:5001-5009      # the benchmark's
use sdp  connect curl        10.0.0.0/8:*
use tcp  client  *           192.0.2.7:80
use sdp  *       /opt/db/*   *:*
use new_tcp client *         [2001:db8::]/32:443
use 45   client  *           [2001:db8:ffff::1]:443
"""


def choose(
    text: str, program: str, role: str, address: str, port: int, *, kind: int = socket.SOCK_STREAM
) -> str:
    return Rules.parse(text).choose(program, role, address, port, "host", kind=kind)


@pytest.mark.parametrize(
    ("program", "role", "address", "port", "chosen"),
    [
        ("/usr/sbin/sshd", SERVER, "0.0.0.0", 22, "tcp"),
        ("/usr/sbin/sshd", CLIENT, "0.0.0.0", 22, "host"),
        ("anything", SERVER, "", 5001, "both"),
        ("anything", SERVER, "", 5009, "both"),
        ("anything", SERVER, "", 5010, "host"),
        ("/usr/bin/curl", CLIENT, "10.200.3.4", 80, "sdp"),
        ("/usr/bin/curl", CLIENT, "11.0.0.1", 80, "host"),
        ("/usr/bin/curlew", CLIENT, "10.200.3.4", 80, "host"),
        ("x", CLIENT, "192.0.2.7", 80, "tcp"),
        ("x", CLIENT, "192.0.2.8", 80, "host"),
        ("x", CLIENT, "192.0.2.7", 81, "host"),
        ("/opt/db/bin/serve", SERVER, "", 1, "sdp"),
        ("/opt/web/bin/serve", SERVER, "", 1, "host"),
        ("x", CLIENT, "2001:db8::5", 443, "new_tcp"),
        ("x", CLIENT, "2001:db9::5", 443, "host"),
    ],
)
def test_a_line_of_libsdp_s_is_for_its_role_program_address_and_ports(
    program: str, role: str, address: str, port: int, chosen: str
) -> None:
    assert choose(LIBSDP, program, role, address, port) == chosen


def test_the_first_line_that_matches_decides() -> None:
    text = "use tcp client * 10.1.0.0/16:*\nuse sdp client * 10.0.0.0/8:*\n"
    assert choose(text, "x", CLIENT, "10.1.2.3", 1) == "tcp"
    assert choose(text, "x", CLIENT, "10.2.2.3", 1) == "sdp"
    # The narrower one comes later: it is never reached.
    assert choose(LIBSDP, "x", CLIENT, "2001:db8:ffff::1", 443) == "new_tcp"


def test_an_ipv4_address_in_ipv6_s_form_is_the_ipv4_address() -> None:
    assert choose(LIBSDP, "curl", CLIENT, "::ffff:10.1.2.3", 80) == "sdp"


def test_a_scope_is_no_part_of_the_address() -> None:
    assert choose("use sdp * * [fe80::]/10:*", "x", CLIENT, "fe80::1%eth0", 1) == "sdp"


def test_a_name_that_is_no_address_matches_rules_for_every_address_alone() -> None:
    assert choose("use sdp * * 0.0.0.0/0:*", "x", CLIENT, "example.org", 1) == "host"
    assert choose("use sdp * * *:*", "x", CLIENT, "example.org", 1) == "sdp"


def test_a_wildcard_bind_is_not_in_a_network() -> None:
    assert choose("use sdp server * 10.0.0.0/8:*", "x", SERVER, "", 1) == "host"


@pytest.mark.parametrize(
    ("program", "pattern"),
    [
        ("/srv/tools/fetch.py", "fetch"),
        ("/srv/tools/fetch.py", "fetch.py"),
        ("/srv/tools/fetch.py", "f*"),
        ("/srv/tools/fetch.py", "/srv/*"),
        ("/usr/lib/python3/http/server.py", "*/http/server.py"),
        ("/usr/lib/python3/pip/__main__.py", "pip"),
    ],
)
def test_a_program_goes_by_its_path_its_name_and_its_name_without_py(
    program: str, pattern: str
) -> None:
    assert choose(f"use sdp * {pattern} *:*", program, CLIENT, "", 1) == "sdp"


@pytest.mark.parametrize(
    ("line", "address", "kind", "chosen"),
    [
        ("iperf * * *", "10.0.0.1", socket.SOCK_STREAM, "both"),
        ("other * * *", "10.0.0.1", socket.SOCK_STREAM, "host"),
        ("* INET STREAM TCP", "10.0.0.1", socket.SOCK_STREAM, "both"),
        ("* INET STREAM *", "2001:db8::1", socket.SOCK_STREAM, "host"),
        ("* INET6 STREAM *", "2001:db8::1", socket.SOCK_STREAM, "both"),
        ("* * DGRAM *", "10.0.0.1", socket.SOCK_STREAM, "host"),
        ("* * * UDP", "10.0.0.1", socket.SOCK_STREAM, "host"),
        ("* * * UDP", "10.0.0.1", socket.SOCK_DGRAM, "both"),
    ],
)
def test_a_line_of_librspreload_s_is_for_its_program_domain_type_and_protocol(
    line: str, address: str, kind: int, chosen: str
) -> None:
    assert choose(line, "/usr/bin/iperf", CLIENT, address, 5001, kind=kind) == chosen


def test_a_number_is_a_family_and_loses_its_zeros() -> None:
    assert choose("use 045 * * *:*", "x", CLIENT, "", 1) == "45"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("use", "0 words after 'use', expected four"),
        ("use sdp server *", "3 words after 'use', expected four"),
        ("use sdp server * *:1 more", "5 words after 'use', expected four"),
        ("use rds server * *:*", "'rds' is no family: expected sdp, tcp, both, host, new_tcp"),
        ("use 4711 server * *:*", "'4711' is no family"),
        ("use sdp peer * *:*", "'peer' is not a role: expected server, listen, client"),
        ("use sdp server * *", "'*' is no ADDRESS:PORTS"),
        ("use sdp server * fe80::1:80", "is no ADDRESS:PORTS"),
        ("use sdp server * 10.0.0.300:*", "'10.0.0.300' is no IPv4 address"),
        ("use sdp server * 10.0.0.0/33:*", "'10.0.0.0/33' is no IPv4 address"),
        ("use sdp server * [10.0.0.1]:*", "'10.0.0.1' is no IPv6 address"),
        ("use sdp server * example.org:*", "'example.org' is no IPv4 address"),
        ("use sdp server * *:http", "'http' are no ports"),
        ("use sdp server * *:9-3", "'9-3' are no ports"),
        ("use sdp server * *:1-99999", "expected 0 <= FIRST <= LAST <= 65535"),
        ("log", "'log' says nothing"),
        ("log min-level", "min-level '' is no level"),
        ("log min-level 10", "min-level '10' is no level: expected 1 (all) .. 9 (errors)"),
        ("log destination", "destination '' is none"),
        ("log destination file", "destination 'file' is none"),
        ("log loudly", "'loudly' after 'log'"),
        ("prefer sdp", "'prefer' begins no line"),
        ("iperf STREAM INET TCP", "'iperf' begins no line"),
        ("iperf INET SEQPACKET *", "'SEQPACKET' is not a type: expected *, STREAM, DGRAM"),
        ("iperf INET STREAM SCTP", "'SCTP' is not a protocol: expected *, TCP, UDP"),
        ("iperf INET STREAM UDP", "no socket of type STREAM has the protocol UDP"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong_and_what_is_expected(
    line: str, said: str
) -> None:
    with pytest.raises(ValueError, match=r"^policy\.conf:3: ") as caught:
        Rules.parse(f"# the first line\n\n{line}\n", "policy.conf")
    message = str(caught.value)
    assert said in message
    assert "\n" not in message


def test_a_file_that_is_no_text_is_said_to_be_none(tmp_path: Path) -> None:
    path = tmp_path / "policy.conf"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"policy\.conf:1: not text in UTF-8"):
        Rules.load(path)


def test_the_environment_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.conf"
    path.write_text("use sdp * * *:*\n")
    rules = Rules.from_environment({"SDP_CONFIG": str(path)})
    assert rules is not None
    assert rules.name == str(path)
    assert rules.choose("x", CLIENT, "10.0.0.1", 1, "tcp") == "sdp"
    assert Rules.from_environment({}) is None
    with pytest.raises(FileNotFoundError):
        Rules.from_environment({"SDP_CONFIG": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("number", "level"),
    [(9, logging.ERROR), (8, logging.WARNING), (7, logging.INFO), (1, logging.DEBUG)],
)
def test_a_log_line_says_how_much_and_where(number: int, level: int) -> None:
    log = Rules.parse(f"log destination syslog min-level {number}").log
    assert log is not None
    assert (log.level, log.destination) == (level, "syslog")


def test_a_log_goes_to_its_file_from_its_level_on(tmp_path: Path) -> None:
    path = tmp_path / "sdp.log"
    log = Rules.parse(f"log min-level 8 destination file {path}").log
    assert log is not None
    logger = logging.getLogger("steertag")
    before = logger.level
    handler = log.open()
    try:
        logger.getChild("sdp").warning("this one")
        logger.getChild("sdp").info("not this one")
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
    assert path.read_text() == "steertag.sdp: this one\n"
