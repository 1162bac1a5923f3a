"""The host kernel's TCP behind a TUN that a test holds the far end of.

A helper process in a network namespace of its own makes the TUN and the sockets and hands their
descriptors over, so that the test's own process stays where it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from tests.support import require_tool

OURS: Final = ("192.0.2.2", "2001:db8::2")
THEIRS: Final = ("192.0.2.1", "2001:db8::1")
PATIENCE: Final = 20.0

_HELPER: Final = r"""
import fcntl, json, os, socket, struct, subprocess, sys
ours = socket.socket(fileno=int(sys.argv[1]))
def ip(*args):
    subprocess.run(("ip", *args), check=True)
def tun(mtu):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tun0", 0x1001))
    ip("link", "set", "lo", "up")
    ip("link", "set", "tun0", "mtu", str(mtu), "addrgenmode", "none", "up")
    ip("addr", "add", "192.0.2.1/24", "dev", "tun0")
    ip("addr", "add", "2001:db8::1/64", "dev", "tun0", "nodad")
    return [fd]
def sysctl(name, value):
    with open("/proc/sys/" + name.replace(".", "/"), "w") as file:
        file.write(value)
def make(family, kind):
    return [socket.socket(family, kind).detach()]
calls = {"tun": tun, "sysctl": sysctl, "ip": ip, "socket": make}
while request := ours.recv(65536):
    name, *args = json.loads(request)
    try:
        fds = calls[name](*args) or []
        answer = b"{}"
    except Exception as error:
        fds, answer = [], json.dumps({"error": repr(error)}).encode()
    socket.send_fds(ours, [answer], fds)
    for fd in fds if name != "tun" else ():
        os.close(fd)
"""


class Namespace:
    """A network namespace with a TUN, and real time. A context manager.

    The test is skipped where no namespace can be made.
    """

    def __init__(self, mtu: int = 1500, sysctls: dict[str, int | str] | None = None) -> None:
        require_tool("ip")
        unshare = require_tool("unshare")
        if not Path("/dev/net/tun").exists():
            pytest.skip("not possible here: there is no /dev/net/tun")
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(PATIENCE)
        command = [unshare, "-rn", sys.executable, "-I", "-S", "-c", _HELPER, str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE
            )
        self._tun = -1
        try:
            for name, value in (sysctls or {}).items():
                self.sysctl(name, value)
            (self._tun,) = self._call("tun", mtu)
        except BaseException:
            self.close()
            raise

    def _call(self, *request: object) -> list[int]:
        try:
            self._control.send(json.dumps(request).encode())
            answer, fds, _, _ = socket.recv_fds(self._control, 65536, 4)
        except OSError:
            answer, fds = b"", []
        if not answer:
            self._process.kill()
            pytest.skip(f"not possible here: {self._process.communicate()[1].decode().strip()}")
        reply = json.loads(answer)
        if "error" in reply:
            raise RuntimeError(f"{request}: {reply['error']}")
        return fds

    def sysctl(self, name: str, value: int | str) -> None:
        self._call("sysctl", name, str(value))

    def ip(self, *args: str) -> None:
        """Run ip(8) in there."""
        self._call("ip", *args)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket of the kernel's in there, non-blocking."""
        (fd,) = self._call("socket", int(family), int(kind))
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        return sock

    # -- the wire, as of script.Wire --------------------------------------------------------------

    def now(self) -> float:
        return time.monotonic()

    def inject(self, packet: bytes) -> None:
        os.write(self._tun, packet)

    def next_packet(self, timeout: float) -> bytes | None:
        """What the kernel sent next; None: nothing for `timeout` seconds."""
        if not select.select([self._tun], [], [], max(timeout, 0))[0]:
            return None
        return os.read(self._tun, 65536)

    def close(self) -> None:
        if self._tun >= 0:
            os.close(self._tun)
            self._tun = -1
        self._control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
