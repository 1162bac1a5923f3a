"""A running guest: boot it, run scripts in it, move files, end it.

The guest has two network cards on QEMU's user networking. Everything RDMA goes over eth0, where
siw0 sits: 10.0.2.15, with the host's loopback at 10.0.2.2, and `PORTS` forwarded from the host's
loopback. QEMU records eth0's packets itself, which costs the guest nothing. The agent listens on
eth1.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from tests.interop.guest.build import Image
from tests.support import require_tool

ADDRESS: Final = "10.0.2.15"
"""The guest's address, for programs in it. Its rdma_cm takes 127.0.0.1 for any address."""
HOST: Final = "10.0.2.2"
"""The host's loopback, seen from the guest."""
PORTS: Final = tuple(range(7174, 7182))
"""The guest's ports that the host reaches."""
SIW_DEFAULTS: Final = {
    "mpa_crc_required": "N",
    "mpa_crc_strict": "N",
    "mpa_version": "2",
    "peer_to_peer": "N",
    "rtr_bits": str(0xC000),
    "zcopy_tx": "Y",
}
BOOT_TIMEOUT: Final = 240.0
"""Seconds; it takes 10 on an idle machine."""
PATIENCE: Final = 60.0
"""Seconds for anything else in the guest, whose processor is emulated."""
_GRACE: Final = 20.0
_PEER: Final = Path(__file__).with_name("peer.py").read_text() + "\n"
_READY: Final = b"agent: ready"
_QEMU: Final = "qemu-system-x86_64"
_AGENT_PORT: Final = 7173
_ATTEMPTS: Final = 3
_FILE_HEADER: Final = 24
_RECORD: Final = struct.Struct("<IIII")  # seconds, fraction, octets captured, octets on the wire


class Result(NamedTuple):
    """What became of a script: its exit status and what it printed on either stream."""

    status: int
    output: str


class Ended(Exception):
    """QEMU ended, or the guest did not come up; says what the console had last."""


class Guest:
    """A guest that is up.

    Args:
        image: what to boot.
        directory: for the capture of eth0, and for whatever else it leaves.
        tap: the descriptor of a TAP interface, which becomes the guest's eth2.

    Attributes:
        ports: the host's port for each of `PORTS`.
        capture_file: the packets on eth0 since the boot.

    Raises:
        Ended: it did not come up.
    """

    def __init__(self, image: Image, directory: Path, *, tap: int | None = None) -> None:
        self._tap = tap
        self.capture_file = directory / "eth0.pcap"
        self._console = bytearray()
        self._ready = threading.Event()
        self._pool = ThreadPoolExecutor()
        for attempt in range(_ATTEMPTS):
            self.ports = dict(zip(PORTS, _free_ports(len(PORTS)), strict=True))
            (self._agent_port,) = _free_ports(1)
            self._start(image)
            if self._ready.wait(BOOT_TIMEOUT) and not self._gone:
                return
            # A port may have been taken between the choice and QEMU.
            taken = b"host forwarding" in self._console
            self.close()
            if not taken or attempt == _ATTEMPTS - 1:
                break
            self._ready.clear()
        raise Ended(self._last_words())

    def _start(self, image: Image) -> None:
        self._gone = False
        self._console.clear()
        forwards = "".join(
            f",hostfwd=tcp:127.0.0.1:{host}-{ADDRESS}:{port}" for port, host in self.ports.items()
        )
        control = f",hostfwd=tcp:127.0.0.1:{self._agent_port}-10.0.3.15:{_AGENT_PORT}"
        # fmt: off
        command = [
            # Whoever starts a guest and dies takes it along.
            require_tool("setpriv"), "--pdeathsig", "KILL", require_tool(_QEMU),
            "-nodefaults", "-no-user-config", "-no-reboot", "-nographic",
            # Time that goes by with the instructions executed: however busy the host is, what
            # init asks of the network's latency holds.
            "-machine", "pc", "-accel", "tcg,thread=single", "-icount", "shift=2",
            "-cpu", "max,la57=off", "-m", "640",
            "-kernel", str(image.kernel), "-initrd", str(image.root),
            "-append", "console=ttyS0 quiet loglevel=4 mitigations=off nokaslr"
            # A kernel that has hit a bug ends QEMU, and with it everything that waits.
            " random.trust_cpu=on panic=-1 oops=panic",
            "-netdev", f"user,id=rdma,ipv6=off,net=10.0.2.0/24{forwards}",
            "-device", "virtio-net-pci,netdev=rdma,romfile=",
            "-object", f"filter-dump,id=dump,netdev=rdma,file={self.capture_file}",
            "-netdev", f"user,id=control,ipv6=off,net=10.0.3.0/24,restrict=on{control}",
            "-device", "virtio-net-pci,netdev=control,romfile=",
            "-device", "virtio-rng-pci",
            "-serial", "stdio", "-monitor", "none",
        ]
        # fmt: on
        kept = []
        if self._tap is not None:
            kept = [self._tap]
            command += ["-netdev", f"tap,id=direct,fd={self._tap}"]
            command += ["-device", "virtio-net-pci,netdev=direct,romfile="]
        self._qemu = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=kept,
        )
        self._reader = threading.Thread(target=self._read_console)
        self._reader.start()

    def _read_console(self) -> None:
        assert self._qemu.stdout is not None
        for line in self._qemu.stdout:
            self._console += line
            if _READY in line:
                self._ready.set()
        self._gone = True
        self._ready.set()

    def _last_words(self) -> str:
        return self._console.decode(errors="replace")[-2000:] or "the console stayed silent"

    @property
    def pid(self) -> int:
        return self._qemu.pid

    @property
    def console(self) -> str:
        """What the kernel has said."""
        return self._console.decode(errors="replace")

    def close(self) -> None:
        """End QEMU."""
        self._qemu.terminate()
        self._qemu.wait()
        self._reader.join()
        assert self._qemu.stdout is not None
        self._qemu.stdout.close()
        self._pool.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- the agent -----------------------------------------------------------------------------

    def shell(self, script: str, *, timeout: float = PATIENCE) -> Result:
        """Run a shell script as root; one that takes longer is killed, with status 124."""
        return self._script("shell", script, timeout)

    def python(self, script: str, *, timeout: float = PATIENCE) -> Result:
        """Run a Python script that begins with what `peer.py` has; pyverbs is imported already."""
        return self._script("python", _PEER + script, timeout)

    def start(
        self, script: str, *, port: int | None = None, timeout: float = PATIENCE
    ) -> Future[Result]:
        """Begin to run a shell script; with `port`, wait until something listens on it."""
        return self._start_script("shell", script, port, timeout)

    def start_python(
        self, script: str, *, port: int | None = None, timeout: float = PATIENCE
    ) -> Future[Result]:
        """`start` for a Python script."""
        return self._start_script("python", _PEER + script, port, timeout)

    def _start_script(
        self, op: str, script: str, port: int | None, timeout: float
    ) -> Future[Result]:
        future = self._pool.submit(self._script, op, script, timeout)
        if port is not None:
            self.wait_listening(port, future)
        return future

    def put(self, octets: bytes, path: str) -> None:
        """Write a file in the guest."""
        status, answer = self._ask({"op": "put", "path": path, "size": len(octets)}, octets)
        if status:
            raise OSError(answer.decode())

    def get(self, path: str) -> bytes:
        """Read a file of the guest."""
        status, answer = self._ask({"op": "get", "path": path})
        if status:
            raise OSError(answer.decode())
        return answer

    def check(self, script: str, *, timeout: float = PATIENCE) -> str:
        """Run a shell script that has to succeed; gives what it printed."""
        result = self.shell(script, timeout=timeout)
        if result.status:
            raise AssertionError(f"{script}: status {result.status}: {result.output}")
        return result.output

    def wait_listening(self, port: int, server: Future[Result] | None = None) -> None:
        """Wait until the guest listens on `port`; fail if its server ended before."""
        listening = f":{port:04X} 00000000:0000 0A"
        result = self.shell(
            f"i=0; until grep -q '{listening}' /proc/net/tcp; do"
            " i=$((i + 1)); [ $i -lt 600 ] || exit 1; usleep 50000; done"
        )
        if result.status:
            said = server.result(0).output if server is not None and server.done() else "nothing"
            raise AssertionError(f"nobody listens on {port}; the server said: {said}")

    @contextlib.contextmanager
    def capturing(self, target: Path) -> Iterator[None]:
        """Write what passes eth0 meanwhile to `target`, a capture of its own."""
        begin = self.capture_file.stat().st_size
        try:
            yield
        finally:
            self.shell("true")  # what it sent before this has been recorded when the answer is here
            octets = self.capture_file.read_bytes()
            target.write_bytes(octets[:_FILE_HEADER] + octets[begin : _whole_records(octets)])

    def kill_all(self) -> None:
        """End what a test may have left behind."""
        programs = "rping rdma_client rdma_server ucmatose script"
        self.shell(f"killall -q -9 {programs}")

    def set_siw(self, **parameters: str | int | bool) -> None:
        """Set siw's parameters; those not named get siw's own values."""
        chosen = SIW_DEFAULTS | {
            name: ("Y" if value else "N") if isinstance(value, bool) else str(value)
            for name, value in parameters.items()
        }
        directory = "/sys/module/siw/parameters"
        self.check("; ".join(f"echo {value} >{directory}/{name}" for name, value in chosen.items()))

    def _script(self, op: str, text: str, timeout: float) -> Result:
        request = {"op": op, "text": text, "timeout": timeout}
        status, output = self._ask(request, timeout=timeout + _GRACE)
        return Result(status, output.decode(errors="replace"))

    def _ask(
        self, request: dict[str, Any], octets: bytes = b"", *, timeout: float = PATIENCE
    ) -> tuple[int, bytes]:
        if self._gone:
            raise Ended(self._last_words())
        address = ("127.0.0.1", self._agent_port)
        with (
            socket.create_connection(address, timeout) as connection,
            connection.makefile("rwb") as stream,
        ):
            stream.write(json.dumps(request).encode() + b"\n" + octets)
            stream.flush()
            head = stream.readline()
            if not head:
                raise Ended(self._last_words())
            answer = json.loads(head)
            return answer["status"], stream.read(answer["size"])


def _whole_records(octets: bytes) -> int:
    """Where the last record of a capture ends that is there completely."""
    at = _FILE_HEADER
    while at + _RECORD.size <= len(octets):
        end = at + _RECORD.size + _RECORD.unpack_from(octets, at)[2]
        if end > len(octets):
            break
        at = end
    return at


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in sockets]
