"""Runs what the host sends: one request a connection, in a process of its own.

A request is one line of JSON, followed by `size` octets for `put`:
  {"op": "shell", "text": SCRIPT, "timeout": SECONDS}
  {"op": "python", "text": SOURCE, "timeout": SECONDS}   pyverbs is imported already
  {"op": "put", "path": PATH, "size": OCTETS}
  {"op": "get", "path": PATH}
The answer is one line of JSON, {"status": EXIT_STATUS, "size": OCTETS}, and so many octets: what
the script printed on either stream, or the file. A script that outlives its time is killed with
everything it started, and its status is 124, as with timeout(1).
"""

import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from typing import Any, NoReturn

import pyverbs.addr
import pyverbs.cmid
import pyverbs.cq
import pyverbs.mr
import pyverbs.qp
import pyverbs.wr  # noqa: F401 - here so that scripts don't wait for it

PORT = 7173
TIMED_OUT = 124
SCRIPT = "script"
"""The name of a Python script's process, for killall."""


def run_script(request: dict[str, Any], output: int) -> None:
    """In the child: become the script."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    # The answer's connection must end with the agent, not with a process left in the background.
    os.closerange(3, 256)
    if request["op"] == "shell":
        os.execv("/bin/sh", ["sh", "-c", request["text"]])
    with open("/proc/self/comm", "w") as comm:
        comm.write(SCRIPT)
    exec(compile(request["text"], "<script>", "exec"), {"__name__": "__main__"})


def child(request: dict[str, Any], output: int) -> NoReturn:
    status = 1
    try:
        run_script(request, output)
        status = 0
    except SystemExit as exc:
        status = exc.code if isinstance(exc.code, int) else 1
        if isinstance(exc.code, str):
            print(exc.code)
    except BaseException:  # noqa: BLE001 - whatever ended the script is what the host wants to see
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def execute(request: dict[str, Any]) -> tuple[int, bytes]:
    """Run a script; its exit status and what it printed."""
    with tempfile.TemporaryFile() as output:
        pid = os.fork()
        if pid == 0:
            child(request, output.fileno())
        expired = []

        def expire(signum: int, frame: object) -> None:
            expired.append(True)
            os.killpg(pid, signal.SIGKILL)

        signal.signal(signal.SIGALRM, expire)
        signal.setitimer(signal.ITIMER_REAL, request["timeout"])
        _, status = os.waitpid(pid, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        output.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return TIMED_OUT if expired else code if code >= 0 else 128 - code, output.read()


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rwb") as stream:
        request = json.loads(stream.readline())
        status, octets = 0, b""
        try:
            if request["op"] == "put":
                with open(request["path"], "wb") as file:
                    file.write(stream.read(request["size"]))
            elif request["op"] == "get":
                with open(request["path"], "rb") as file:
                    octets = file.read()
            else:
                status, octets = execute(request)
        except OSError as exc:
            status, octets = 1, str(exc).encode()
        stream.write(json.dumps({"status": status, "size": len(octets)}).encode() + b"\n")
        stream.write(octets)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    listener = socket.create_server(("10.0.3.15", PORT), backlog=64)
    print("agent: ready", flush=True)
    while True:
        connection, _ = listener.accept()
        while True:  # children that are done
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        if os.fork() == 0:
            listener.close()
            try:
                serve(connection)
            finally:
                os._exit(0)
        connection.close()


main()
