"""`stag rdma`, as rdma(8) has it, of a program that runs beside it."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from steertag import __version__
from steertag.cli.main import cli
from tests.unit.inspected import Program

# Keys that iproute2's rdma prints of a user's object on a device whose driver adds none, in order.
KEYS = {
    "qp": "ifindex ifname port lqpn rqpn type state rq-psn sq-psn path-mig-state pdn pid comm",
    "cm_id": "ifindex ifname port cm-idn lqpn qp-type state ps pid comm src-addr dst-addr",
    "cq": "ifindex ifname cqn cqe users ctxn pid comm",
    "mr": "ifindex ifname mrn rkey lkey iova mrlen pdn pid comm",
    "pd": "ifindex ifname pdn users ctxn pid comm",
    "ctx": "ifindex ifname ctxn pid comm",
    "srq": "ifindex ifname srqn type lqpn pdn pid comm",
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A second process: two queue pairs, a listener, a region and a shared receive queue."""
    directory = tmp_path_factory.mktemp("runtime") / "steertag"
    with pytest.MonkeyPatch.context() as patch, Program(STEERTAG_INSPECT=str(directory)) as program:
        patch.setenv("STEERTAG_INSPECT", str(directory))
        program.do("srq = v.SRQ(pd, v.SrqInitAttr(v.SrqAttr(max_wr=8))); cq = v.CQ(context, 9)")
        program.do("qp = v.QP(pd, v.QPInitAttr(scq=cq, rcq=cq, srq=srq))")
        yield program


def stag(*args: str) -> Result:
    result = CliRunner().invoke(cli, ["rdma", *args])
    assert "Traceback" not in result.output
    return result


def shown(*args: str) -> str:
    result = stag(*args)
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


def objects(*args: str) -> list[dict[str, object]]:
    listed = json.loads(shown("-j", *args))
    assert isinstance(listed, list)
    return listed


def row(kind: str, *filters: str) -> dict[str, object]:
    """The one object that is left."""
    (found,) = objects("resource", "show", kind, *filters)
    return found


# -- resource ------------------------------------------------------------------------------------


def test_the_summary_counts_every_kind_in_the_kernels_order(program: Program) -> None:
    text = shown("resource", "show")
    assert text == "0: steertag0: pd 1 cq 5 qp 3 cm_id 3 mr 1 ctx 1 srq 1\n"
    assert objects("res", "show", "steertag0") == [
        {"ifindex": 0, "ifname": "steertag0", "pd": 1, "cq": 5, "qp": 3, "cm_id": 3, "mr": 1,
         "ctx": 1, "srq": 1}
    ]  # fmt: skip


def test_a_queue_pair_is_printed_as_rdma_prints_it(program: Program) -> None:
    lines = shown("resource", "show", "qp", "link", "steertag0/1").splitlines()
    assert len(lines) == 3
    for line in lines:
        assert re.fullmatch(
            r"link steertag0/1 lqpn \d+ rqpn 0 type RC state (RTS|INIT|RESET) rq-psn 0 sq-psn 0"
            rf" path-mig-state MIGRATED pdn 1 pid {program.pid} comm \S+",
            line,
        ), line


@pytest.mark.parametrize(("kind", "keys"), KEYS.items())
def test_json_has_rdmas_keys(program: Program, kind: str, keys: str) -> None:
    found = objects("resource", "show", kind)
    whole = max(found, key=len)
    assert list(whole) == keys.split()
    assert all(set(other) <= set(whole) for other in found)
    assert whole["pid"] == program.pid


def test_a_region_has_its_keys_in_hexadecimal(program: Program) -> None:
    region = row("mr")
    assert region["mrlen"] == 4096
    assert region["rkey"] == region["lkey"]
    line = shown("resource", "show", "mr")
    assert f" rkey 0x{region['rkey']} lkey 0x{region['lkey']} iova 0x{region['iova']} " in line
    assert row("mr", "rkey", f"0x{region['rkey']}") == region
    assert objects("resource", "show", "mr", "rkey", "1") == []


def test_a_listener_and_both_ends_of_a_connection_are_cm_ids(program: Program) -> None:
    listener = row("cm_id", "state", "listen")
    assert listener["src-addr"] == f"127.0.0.1:{program.said}"
    passive = row("cm_id", "src-port", program.said, "state", "CONNECT")
    active = row("cm_id", "dst-port", program.said, "dst-addr", "127.0.0.1")
    assert (active["src-addr"], active["dst-addr"]) == (passive["dst-addr"], passive["src-addr"])
    assert (active["ps"], active["qp-type"]) == ("TCP", "RC")
    queue_pairs = {qp["lqpn"] for qp in objects("resource", "show", "qp", "state", "rts")}
    assert queue_pairs == {active["lqpn"], passive["lqpn"]}


def test_a_peer_that_has_not_said_a_word_is_a_cm_id_too(program: Program) -> None:
    with socket.create_connection(("127.0.0.1", int(program.said))) as silent:
        port = silent.getsockname()[1]
        program.do("context.wait_for(lambda: len(context.loop.handlers()) == 4, 60)")
        found = json.loads(shown("-jd", "resource", "show", "cm_id", "dst-port", str(port)))
    assert [(row["state"], row["drv_mpa"]) for row in found] == [("CONNECT", "WAIT_REQUEST")]
    assert "lqpn" not in found[0]


def test_an_identifier_that_is_not_connected_yet_says_how_far_it_is(program: Program) -> None:
    program.do("idle = v.CMID(v.AddrInfo(dst='127.0.0.1', dst_service=9), pd=pd)")
    assert "lqpn" not in row("cm_id", "state", "route_resolved")
    program.do("idle.close()")
    assert objects("resource", "show", "cm_id", "state", "route_resolved") == []


def test_a_connection_that_has_ended_is_disconnected_and_its_queue_pair_too(
    program: Program,
) -> None:
    program.do("gone = v.CMID(v.AddrInfo(dst='127.0.0.1', dst_service=port), pd=pd)")
    program.do("thread = threading.Thread(target=accept); thread.start(); gone.connect()")
    program.do("thread.join(); gone.disconnect(); gone.wait_disconnected()")
    lqpn = {ended["lqpn"] for ended in objects("res", "show", "cm_id", "state", "disconnect")}
    ended = objects("-d", "res", "show", "qp", "state", "err")
    assert lqpn & {qp["lqpn"] for qp in ended}
    assert all(qp["drv_end"] for qp in ended)
    program.do("gone.close(); accepted.pop().close()")


def test_a_shared_receive_queue_names_its_queue_pairs(program: Program) -> None:
    idle = row("qp", "state", "reset,init")
    assert row("srq")["lqpn"] == [str(idle["lqpn"])]
    assert row("srq", "lqpn", str(idle["lqpn"]))["type"] == "BASIC"
    assert objects("resource", "show", "srq", "lqpn", "4000000000") == []


def test_details_show_what_only_this_rnic_knows(program: Program) -> None:
    plain = objects("resource", "show", "qp", "state", "rts")[0]
    detailed = objects("-d", "resource", "show", "qp", "state", "rts")[0]
    more = {key: value for key, value in detailed.items() if key not in plain}
    assert all(key.startswith("drv_") for key in more)
    assert (more["drv_state"], more["drv_crc"], more["drv_sq"]) == ("RTS", 1, "0/64")
    text = shown("res", "show", "cm_id", "state", "LISTEN", "-dd")
    assert text.splitlines()[1] == "    drv_requests 0/3 drv_refused 0"


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ((), 3),
        (("state", "rts"), 2),
        (("state", "RTS,INIT,RESET"), 3),
        (("sta", "sqd"), 0),
        (("type", "rc"), 3),
        (("type", "ud"), 0),
        (("lqpn", "0-4294967295"), 3),
        (("lqpn", "0"), 0),
        (("pdn", "1,3"), 3),
        (("pid", "1"), 0),
        (("link", "steertag0/1", "rqpn", "0"), 3),
        (("link", "steertag0/-"), 0),
        (("link", "steertag0"), 3),
        (("state", "rts", "pdn", "2"), 0),
    ],
)
def test_filters_leave_what_fits(program: Program, filters: tuple[str, ...], count: int) -> None:
    assert len(objects("resource", "show", "qp", *filters)) == count


def test_one_process_can_be_asked_alone(program: Program) -> None:
    assert shown("--pid", str(program.pid), "res") == shown("res")
    other = stag("--pid", "1", "resource", "show")
    assert other.exit_code == 1
    assert "process 1 has no inspection socket" in other.stderr


# -- statistic -----------------------------------------------------------------------------------


def test_statistics_have_a_line_a_counter(program: Program) -> None:
    lines = shown("statistic", "show", "link", "steertag0/1").splitlines()
    assert lines[0] == "link steertag0/1"
    assert all(re.fullmatch(r"    \w+ \d+", line) for line in lines[1:])
    (link,) = objects("statistic", "show")
    assert {"sent_pkts", "rcvd_pkts", "tx_bytes", "crc_errors", "refused"} <= set(link)


def test_every_queue_pair_has_counters_of_its_own(program: Program) -> None:
    program.do("inbox = active.reg_msgs(100); accepted[0].post_recv(inbox)")
    program.do("active.post_send(mr, length=100); accepted[0].get_recv_comp()")
    lqpn = row("cm_id", "dst-port", program.said)["lqpn"]
    (sender,) = objects("statistic", "qp", "show", "link", "steertag0/1", "lqpn", str(lqpn))
    assert (sender["sent_pkts"], sender["rcvd_pkts"]) == (1, 0)
    assert (sender["lqpn"], sender["qp-type"], sender["pid"]) == ([lqpn], "RC", program.pid)
    assert objects("statistic", "qp", "show", "cntn", str(lqpn)) == [sender]
    assert f"    LQPN: <{lqpn}>" in shown("statistic", "qp", "show").splitlines()
    program.do("inbox.close()")


def test_the_counters_of_a_link_are_the_sum(program: Program) -> None:
    (link,) = objects("stat")
    each = objects("stat", "qp", "show")
    assert link["tx_bytes"] == sum(int(str(qp["tx_bytes"])) for qp in each)
    assert int(str(link["tx_bytes"])) > 0


def test_there_are_no_optional_counters(program: Program) -> None:
    assert shown("statistic", "mode") == shown("statistic", "mode", "supported") == ""
    assert shown("statistic", "qp", "mode") == "link steertag0/1 mode qp auto off\n"


# -- dev, link, system ---------------------------------------------------------------------------


def test_the_device_says_what_it_is() -> None:
    (dev,) = objects("dev")
    keys = "ifindex ifname node_type protocol fw node_guid sys_image_guid"
    assert " ".join(dev) == keys
    assert (dev["node_type"], dev["protocol"], dev["fw"]) == ("rnic", "iw", __version__)
    assert shown("dev", "show", "steertag0") == (
        f"0: steertag0: node_type rnic protocol iw fw {__version__} node_guid {dev['node_guid']}"
        f" sys_image_guid {dev['sys_image_guid']}\n"
    )
    (detailed,) = objects("-d", "dev")
    assert "MEM_WINDOW" in str(detailed["caps"])


def test_the_link_is_up() -> None:
    line = "link steertag0/1 state ACTIVE physical_state LINK_UP\n"
    assert shown("link") == shown("link", "show", "steertag0/1") == line
    assert shown("link", "show", "steertag0/-") == ""


def test_the_system_keeps_every_device_in_its_programs_namespace() -> None:
    assert objects("system", "show") == [{"netns": "exclusive", "copy-on-fork": True}]
    assert shown("sys", "show", "netns") == "netns exclusive copy-on-fork on\n"


# -- the command line ----------------------------------------------------------------------------


def test_pretty_json_says_the_same(program: Program) -> None:
    pretty = shown("-jp", "resource", "show", "cq")
    assert json.loads(pretty) == objects("resource", "show", "cq")
    assert pretty.count("\n") > 10


@pytest.mark.parametrize(
    ("short", "full"),
    [
        ("r s q", "resource show qp"),
        ("res list qp", "resource show qp"),
        ("res show cm", "resource show cm_id"),
        ("st q s", "statistic qp show"),
        ("d", "dev show"),
        ("l", "link show"),
        ("s", "system show"),
        ("", "help"),
    ],
)
def test_words_may_be_abbreviated_as_rdma_lets_them(
    program: Program, short: str, full: str
) -> None:
    assert shown(*short.split()) == shown(*full.split())


@pytest.mark.parametrize("topic", ["", "dev", "link", "resource", "system", "statistic"])
def test_help_of_every_object_is_its_usage(topic: str) -> None:
    assert shown(*topic.split(), "help").startswith(f"Usage: stag rdma {topic}".rstrip())


@pytest.mark.parametrize(
    "line",
    [
        "dev set steertag0 name x",
        "dev add smi0 type smi",
        "dev delete steertag0",
        "link add x type siw netdev eth0",
        "link delete x",
        "resource set frmr_pools",
        "system set netns shared",
        "statistic set link steertag0/1 optional-counters x",
        "statistic unset link steertag0/1 optional-counters",
        "statistic qp set link steertag0/1 auto type on",
        "statistic qp bind link steertag0/1 lqpn 1",
        "statistic qp unbind link steertag0/1 cntn 1",
        "statistic show mr",
    ],
)
def test_what_would_change_something_is_refused_with_a_reason(line: str) -> None:
    result = stag(*line.split())
    assert (result.exit_code, result.stdout) == (1, "")
    assert re.fullmatch(r"stag rdma: [\w ]+: .+\n", result.stderr)


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("foo", 2, "unknown object 'foo'; there is help, dev, link"),
        ("resource foo", 2, "unknown resource command 'foo'"),
        ("resource show foo", 2, "unknown kind of resource 'foo'; there is qp, cm_id"),
        ("resource show qp foo 1", 2, "no filter 'foo' here; there is lqpn, rqpn"),
        ("resource show qp lqpn", 2, "'lqpn' of qp wants a value"),
        ("resource show qp lqpn x", 2, "lqpn takes numbers: 7 or 1,3 or 2-6; not 'x'"),
        ("resource show qp lqpn 1-", 2, "not '1-'"),
        ("resource show qp link mlx5_0", 1, "no device 'mlx5_0'; there is steertag0"),
        ("resource show qp link steertag0/0", 1, "steertag0 has no port 0; it has 1"),
        ("resource show cq dev steertag0/1", 1, "no device 'steertag0/1'"),
        ("dev show mlx5_0", 1, "no device 'mlx5_0'"),
        ("dev show steertag0 more", 2, "'more' is one word too many"),
        ("link show steertag0/2", 1, "steertag0 has no port 2"),
        ("system show foo", 2, "unknown parameter 'foo'"),
        ("statistic show foo", 2, "unknown parameter 'foo'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_an_exit_code(
    program: Program, line: str, code: int, message: str
) -> None:
    result = stag(*line.split())
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_without_a_program_there_is_nothing_to_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEERTAG_INSPECT", str(tmp_path / "none"))
    assert shown("resource") == "0: steertag0: pd 0 cq 0 qp 0 cm_id 0 mr 0 ctx 0 srq 0\n"
    assert shown("resource", "show", "qp") == ""
    assert shown("-j", "resource", "show", "qp") == "[]\n"
