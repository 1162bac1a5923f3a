"""The pyverbs layer: programs run unchanged, names and numbers are pyverbs', errors too."""

from __future__ import annotations

import errno
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path

import pytest

from steertag.compat.pyverbs import MODULES
from steertag.compat.pyverbs import cm_enums as ce
from steertag.compat.pyverbs import enums as pe
from steertag.compat.pyverbs import libibverbs_enums as le
from steertag.compat.pyverbs.addr import AH, GID, AHAttr, GlobalRoute
from steertag.compat.pyverbs.base import PyverbsRDMAErrno, inc_rkey
from steertag.compat.pyverbs.cq import CQ, CQEX, WC, CompChannel, CqInitAttrEx
from steertag.compat.pyverbs.device import DM, AllocDmAttr, Context, get_device_list
from steertag.compat.pyverbs.mem_alloc import free, posix_memalign, read, write
from steertag.compat.pyverbs.mr import MR, MW
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import (
    PyverbsError,
    PyverbsRDMAError,
    PyverbsUserError,
)
from steertag.compat.pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr, QPInitAttrEx
from steertag.compat.pyverbs.srq import SRQ, SrqAttr, SrqInitAttr
from steertag.compat.pyverbs.wr import SGE, RecvWR, SendWR
from steertag.compat.pyverbs.xrcd import XRCD, XRCDInitAttr
from steertag.verbs import enums as ve
from tests.support import PROJECT

PROGRAMS = PROJECT / "examples" / "for_pyverbs"
TIMEOUT = 120
LOCAL = int(ve.IBV_ACCESS_LOCAL_WRITE)


def run(
    *arguments: str | Path, cwd: Path = PROJECT, **environment: str
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(PROJECT / "src")])
    return subprocess.run(
        [sys.executable, "-m", "steertag.compat.pyverbs", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("pingpong.py", ["2"], "pong 0 to ping 0\npong 1 to ping 1\n"),
        (
            "one_sided.py",
            [],
            "write 0 written\nread 0 to be read\nfetch and add 0 40 42\nbind 0\n"
            "read by the window 0 to be\nwrite by the window refused\n",
        ),
    ],
)
def test_a_program_for_pyverbs_runs_unchanged(
    program: str, arguments: list[str], said: str
) -> None:
    done = run(PROGRAMS / program, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, said, "")


def test_a_program_with_the_connection_manager_runs_unchanged() -> None:
    done = run(PROGRAMS / "rdma_cm.py", free_port())
    assert (done.returncode, done.stderr) == (0, "")
    assert "client: shout: HELLO OVER RDMA\n" in done.stdout
    assert "server: RDMA_CM_EVENT_DISCONNECTED\n" in done.stdout


def test_a_program_is_run_as_python_runs_it(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("NAME = 'found'\n")
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, neighbour, pyverbs.device, pyverbs.libibverbs_enums as e\n"
        "print(__name__, sys.argv[1:], neighbour.NAME, e.IBV_WC_RECV)\n"
        "print(pyverbs.device.get_device_list()[0])\n"
        "sys.exit(7)\n"
    )
    done = run("program.py", "a", "-b", cwd=tmp_path)
    first, second = done.stdout.splitlines()
    assert first == "__main__ ['a', '-b'] found 128"
    assert second.startswith("Device steertag0, node type RNIC, transport type IWARP")
    assert (done.returncode, done.stderr) == (7, "")
    assert run("-m", "program", cwd=tmp_path).returncode == 7


def test_a_directory_with_a_main_is_a_program(tmp_path: Path) -> None:
    (tmp_path / "__main__.py").write_text("import pyverbs.cq; print('ran')\n")
    assert run(tmp_path).stdout == "ran\n"


def test_processes_that_a_program_starts_find_pyverbs_too(tmp_path: Path) -> None:
    program = tmp_path / "parent.py"
    program.write_text(
        "import subprocess, sys\n"
        "code = 'from pyverbs.cmid import CMID; import pyverbs; print(pyverbs.__name__)'\n"
        "print(subprocess.check_output([sys.executable, '-c', code], text=True), end='')\n"
    )
    assert run(program).stdout == "steertag.compat.pyverbs\n"


def test_an_error_of_the_program_is_a_traceback_and_status_1(tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text("from pyverbs.device import Context\nContext(name='mlx5_0')\n")
    done = run(program)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("PyverbsRDMAError: Failed to find device mlx5_0")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing.py"], "can't open nothing.py: No such file or directory"),
        (["."], "can't open __main__.py: No such file or directory"),
        (["-m", "no.such.module"], "no module named no.such.module"),
        ([], "no program to run was named"),
        (["-m"], "no program to run was named"),
        (["-x"], "unknown option -x"),
    ],
)
def test_no_program_is_one_line_and_status_2(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert says in line


def test_help_says_how() -> None:
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m steertag.compat.pyverbs PROGRAM")


def test_every_module_can_be_imported(tmp_path: Path) -> None:
    program = tmp_path / "imports.py"
    program.write_text(
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    module = importlib.import_module('pyverbs.' + name)\n"
        "    assert module is sys.modules['pyverbs.' + name]\n"
        "import pyverbs.providers.mlx5.mlx5_enums as dve\n"
        "from pyverbs.providers.efa.efadv import EfaCQ\n"
        "from pyverbs.pyverbs_error import PyverbsRDMAError\n"
        "try:\n"
        "    EfaCQ(None)\n"
        "except PyverbsRDMAError as exc:\n"
        "    print(exc.error_code)\n"
        "print(hasattr(dve, 'MLX5DV_DCTYPE_DCT'))\n"
    )
    assert run(program, *MODULES).stdout == f"{errno.EOPNOTSUPP}\nFalse\n"


# -- names and numbers ---------------------------------------------------------------------------


def numbers(module: object) -> dict[str, int]:
    return {
        name: int(value)
        for name, value in vars(module).items()
        if name.startswith(("IBV_", "RDMA_", "RAI_")) and isinstance(value, int)
    }


def test_the_constants_are_those_of_the_verbs() -> None:
    theirs = {**numbers(pe), **numbers(ce)}
    ours = {name: value for name, value in numbers(ve).items() if name in theirs}
    assert len(ours) > 250
    assert {name: theirs[name] for name in ours} == ours


def test_older_and_newer_names_of_the_enumerations_are_the_same() -> None:
    assert numbers(pe) == numbers(le)
    assert issubclass(le.ibv_wc_status, IntEnum)
    assert le.ibv_wc_status(5).name == "IBV_WC_WR_FLUSH_ERR"
    assert pe.IBV_WC_WR_FLUSH_ERR is le.ibv_wc_status.IBV_WC_WR_FLUSH_ERR  # type: ignore[attr-defined]


# -- objects -------------------------------------------------------------------------------------


@pytest.fixture
def context() -> Iterator[Context]:
    with Context(name=get_device_list()[0].name.decode()) as opened:
        yield opened


def error_of(call: object, *arguments: object, **keywords: object) -> PyverbsRDMAError:
    with pytest.raises(PyverbsRDMAError) as caught:
        call(*arguments, **keywords)  # type: ignore[operator]
    return caught.value


def test_errors_have_the_errno_and_its_words(context: Context) -> None:
    error = error_of(context.query_port, 7)
    assert error.error_code == errno.EINVAL
    assert "Failed to query port 7" in str(error)
    assert "Invalid argument" in str(error)
    assert isinstance(error, PyverbsError)
    assert PyverbsRDMAErrno("again").error_code == errno.EINVAL
    assert error_of(context.query_gid_table, 0).error_code == -errno.EINVAL


def test_what_the_device_does_not_have_is_eopnotsupp(context: Context) -> None:
    pd = PD(context)
    cq = CQ(context, 8)
    datagrams = QPInitAttr(scq=cq, rcq=cq, cap=QPCap())
    for call, arguments in (
        (XRCD, (context, XRCDInitAttr(0, 0, 0))),
        (DM, (context, AllocDmAttr(64))),
        (QP, (pd, datagrams)),
        (CQEX, (context, CqInitAttrEx(wc_flags=pe.IBV_WC_EX_WITH_CVLAN))),  # type: ignore[attr-defined]
        (pd.advise_mr, (0, 0, [])),
    ):
        assert error_of(call, *arguments).error_code == errno.EOPNOTSUPP
    assert error_of(Context, cmd_fd=0).error_code == errno.EOPNOTSUPP


def test_the_programs_own_mistakes_are_user_errors(context: Context) -> None:
    for call in (
        lambda: Context(),
        lambda: GID("nonsense"),
        lambda: AHAttr(is_global=1),
        lambda: SendWR(),
        lambda: QPInitAttr(scq=7),
        lambda: PD("no context"),
        lambda: MR(PD(context), 10, LOCAL).read(11, 0),
        lambda: MR(PD(context), 10, LOCAL).read(1, -1),
        lambda: MR(PD(context), 10, LOCAL).write("", -1),
    ):
        with pytest.raises(PyverbsUserError):
            call()


def test_closing_closes_first_what_uses_it(context: Context) -> None:
    pd, channel = PD(context), CompChannel(context)
    cq = CQ(context, 8, None, channel)
    srq = SRQ(pd, SrqInitAttr(SrqAttr(8)))
    init = QPInitAttr(qp_type=2, scq=cq, rcq=cq, srq=srq, cap=QPCap())
    qp = QP(pd, init)
    MW(pd, 1)
    MR(pd, 64, LOCAL)
    number = qp.qp_num
    channel.close()  # its queue, and the queue pair of that
    assert number not in context.core.rnic.qps
    srq.close()
    context.close()
    context.close()
    assert context.core.closed


def test_what_nobody_holds_is_closed() -> None:
    gc.collect()
    threads = len(os.listdir("/proc/self/task"))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        held = PD(Context(name="steertag0"))
        CQ(held.ctx, 4)  # type: ignore[arg-type]
        MR(held, 4096, LOCAL)
        del held
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert len(os.listdir("/proc/self/task")) == threads


def test_a_region_is_at_its_address_in_this_process(context: Context) -> None:
    pd = PD(context)
    mr = MR(pd, 4096, LOCAL)
    mr.write("hello", 5, 10)
    assert read(mr.buf, 5, 10) == mr.read(5, 10) == b"hello"
    assert SGE(mr.buf, 64, mr.lkey).read(4, 11) == b"ello"
    write(mr.buf, b"!", 1, 15)
    assert mr.read(6, 10) == b"hello!"
    address = posix_memalign(128, 64)
    try:
        own = MR(pd, 128, LOCAL, address=address)
        assert own.buf == address
        assert own.buf % 64 == 0
        own.close()
    finally:
        free(address)


def test_a_queue_pairs_state_is_the_one_last_seen(context: Context) -> None:
    cq = CQ(context, 8)
    attr = QPInitAttrEx(qp_type=2, scq=cq, rcq=cq, cap=QPCap(), comp_mask=1, pd=PD(context))
    qp = QP(context, attr)
    assert qp.qp_state == 0
    found, init = qp.query(1)
    assert (found.qp_state, qp.qp_state) == (1, 1)
    assert init.cap.max_recv_wr == 10
    assert error_of(qp.to_rts, QPAttr()).error_code == errno.EINVAL


def test_the_request_that_was_refused_is_copied_to_bad_wr(context: Context) -> None:
    pd, cq = PD(context), CQ(context, 8)
    qp = QP(pd, QPInitAttr(qp_type=2, scq=cq, rcq=cq, cap=QPCap(max_recv_wr=1)), QPAttr())
    mr = MR(pd, 64, LOCAL)
    sge = SGE(mr.buf, 64, mr.lkey)
    second = RecvWR(22, 1, [sge])
    bad = RecvWR()
    error = error_of(qp.post_recv, RecvWR(11, 1, [sge], second), bad)
    assert (error.error_code, bad.wr_id) == (errno.ENOMEM, 22)
    bad_send = SendWR(opcode=7)
    error = error_of(qp.post_send, SendWR(33, 2, 1, sg=[sge]), bad_send)
    assert error.error_code == errno.EINVAL


def test_immediate_data_is_in_network_order_and_keys_are_not() -> None:
    from steertag.verbs import WC as CORE

    immediate = CORE(1, ve.IBV_WC_SUCCESS, ve.IBV_WC_RECV, 0, 3, 0, ve.IBV_WC_WITH_IMM, 0x01020304)
    assert WC.from_core(immediate).imm_data == socket.htonl(0x01020304)
    ended = CORE(1, ve.IBV_WC_SUCCESS, ve.IBV_WC_RECV, 0, 3, 0, ve.IBV_WC_WITH_INV, 0, 0x01020304)
    assert WC.from_core(ended).imm_data == 0x01020304


def test_an_address_prints_its_gid(context: Context) -> None:
    gid = context.query_gid(1, 0)
    attr = AHAttr(is_global=1, gr=GlobalRoute(dgid=gid))
    assert attr.dgid == gid.gid == str(gid)
    assert gid.gid in str(attr)
    assert AHAttr().dgid is None
    AH(PD(context), attr=attr).close()
    assert "Failed to create AH" in str(error_of(AH, PD(context), attr=AHAttr()))


def test_the_next_key_is_ibv_inc_rkeys() -> None:
    assert inc_rkey(0xABCDEFFF) == 0xABCDEF00
