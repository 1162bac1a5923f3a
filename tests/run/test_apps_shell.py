"""Shells and pipes through the network, and a program that no preloaded library would reach,
unmodified, over SDP and AF_INET_NEW_TCP.
"""

from __future__ import annotations

import shutil
import subprocess

from tests.run.applications import Application, need
from tests.run.behaviours import SOURCES
from tests.support import require_root


def test_socat_ncat_and_bash(application: Application) -> None:
    need("socat", "ncat", "bash")
    printed = application.talk(
        "socat TCP-LISTEN:$port,bind=127.0.0.1,fork,reuseaddr EXEC:cat",
        """
        ready sh -c "echo | socat -t 5 - TCP:127.0.0.1:$port"
        echo by socat | socat -t 5 - TCP:127.0.0.1:$port
        echo by ncat | ncat 127.0.0.1 $port
        bash -c "exec 3<>/dev/tcp/127.0.0.1/$port; echo by bash >&3; head -n 1 <&3"
        socat -u -t 5 FILE:www/large TCP:127.0.0.1:$port
        socat -t 10 - TCP:127.0.0.1:$port < www/large | cmp - www/large
        ncat 127.0.0.1 $port < www/large | cmp - www/large
        """,
    )
    assert printed == "by socat\nby ncat\nby bash\n"


def test_openssh_on_loopback(application: Application) -> None:
    require_root()
    need("sshd", "ssh", "ssh-keygen", "unshare")
    base = application.directory
    for name in ("host", "user"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(base / name)], check=True
        )
    (base / "config").write_text(
        f"HostKey {base}/host\nAuthorizedKeysFile {base}/user.pub\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin yes\nListenAddress 127.0.0.1:{application.port}\n"
    )
    options = "-F /dev/null -o BatchMode=yes -o StrictHostKeyChecking=no"
    printed = application.talk(
        # Its directory for privilege separation is in a /run of its own.
        "unshare --mount sh -c 'mount -t tmpfs none /run && mkdir /run/sshd &&"
        f" exec {shutil.which('sshd')} -D -e -f {base}/config'",
        f"""
        ssh="ssh {options} -o UserKnownHostsFile={base}/known -i {base}/user -p $port 127.0.0.1"
        ready $ssh true
        $ssh echo by ssh
        $ssh cat < www/large | cmp - www/large
        $ssh 'exit 7' || echo code $?
        """,
    )
    assert printed == "by ssh\ncode 7\n"


def test_dropbear_and_its_client(application: Application) -> None:
    require_root()
    need("dropbear", "dbclient", "dropbearkey", "unshare")
    base = application.directory
    for name in ("host", "user"):
        made = subprocess.run(
            ["dropbearkey", "-t", "ed25519", "-f", str(base / name)],
            check=True,
            capture_output=True,
            text=True,
        )
        public = next(line for line in made.stdout.splitlines() if line.startswith("ssh-"))
        (base / f"{name}.pub").write_text(f"{public}\n")
    printed = application.talk(
        # Root's keys are in a home of its own.
        "unshare --mount sh -c 'mount -t tmpfs -o mode=700 none ~root && mkdir -m 700 ~root/.ssh &&"
        f" cp {base}/user.pub ~root/.ssh/authorized_keys &&"
        f" exec {shutil.which('dropbear')} -F -E -r {base}/host -p 127.0.0.1:{application.port}'",
        f"""
        ssh="dbclient -y -y -i {base}/user -p $port root@127.0.0.1"
        ready $ssh true
        $ssh echo by dropbear 2>/dev/null
        $ssh cat < www/large 2>/dev/null | cmp - www/large
        $ssh 'exit 7' 2>/dev/null || echo code $?
        """,
    )
    assert printed == "by dropbear\ncode 7\n"


def test_a_static_program_of_another_c_library(application: Application) -> None:
    """musl, linked statically: nothing that a preloaded library could reach."""
    need("musl-gcc")
    names = ("harness.c", "connecting.c", "accepting.c", "streams.c")
    program = application.directory / "static"
    subprocess.run(
        [
            *("musl-gcc", "-static", "-O1", "-pthread", "-o", str(program)),
            *(str(SOURCES / name) for name in names),
        ],
        check=True,
        timeout=60,
    )
    cases = ("blocking_connect", "much_data_both_ways", "accept_queue", "ping_pong")
    printed = application.talk("sleep 100", f"./static {' '.join(cases)}")
    assert "ping_pong.good 50" in printed
    assert "blocking_connect.text hello" in printed
    assert printed.count("as_sent yes") == 2
