"""Databases, git and iperf3, unmodified, over SDP and AF_INET_NEW_TCP; redis over the host's TCP,
too, which it has itself or through a relay.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.run.applications import LARGE, Application, everywhere, need
from tests.support import require_root, require_tool


@everywhere
def test_redis_its_benchmark_and_its_own_client(application: Application) -> None:
    need("redis-server", "redis-cli", "redis-benchmark")
    printed = application.talk(
        "redis-server --port $port --bind 127.0.0.1 --save '' --appendonly no",
        """
        ready redis-cli -p $port ping
        redis-cli -p $port -x set large < www/large
        redis-cli -p $port --raw strlen large
        redis-cli -p $port --raw get large | head -c 3145728 | cmp - www/large
        redis-benchmark -p $port -q --csv -n 1000 -c 20 -t set,get,lpush > benchmark.csv
        redis-cli -p $port --raw dbsize
        redis-cli -p $port config resetstat > reset
        redis-cli -p $port info clients | grep -o connected_clients:1
        """,
    )
    lines = printed.split()
    assert lines[:2] == ["OK", str(LARGE)]
    assert lines[-1] == "connected_clients:1"
    assert "SET" in (application.directory / "benchmark.csv").read_text()


def test_iperf3_both_ways(application: Application) -> None:
    need("iperf3")
    printed = application.talk(
        "iperf3 -s -B 127.0.0.1 -p $port",
        """
        ready iperf3 -c 127.0.0.1 -p $port -n 1K
        ready iperf3 -c 127.0.0.1 -p $port -n 30M
        ready iperf3 -c 127.0.0.1 -p $port -n 30M -R -P 2
        echo done
        """,
    )
    assert printed == "done\n"


def test_git_clones_from_a_daemon(application: Application) -> None:
    need("git")
    repository = application.directory / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    shutil.copy(application.directory / "www" / "large", repository / "large")
    subprocess.run([*git, "add", "large"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "large"], check=True)
    base = application.directory
    application.talk(
        f"git daemon --reuseaddr --listen=127.0.0.1 --port=$port --export-all --base-path={base}",
        """
        ready git ls-remote git://127.0.0.1:$port/repository
        git clone -q git://127.0.0.1:$port/repository clone
        cmp clone/large www/large
        """,
    )


def postgres_directory() -> Path:
    """Where this system keeps PostgreSQL's programs; the newest."""
    require_tool("psql")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("needs postgresql, which is not installed")
    return found[-1]


def test_postgresql_and_pgbench(application: Application) -> None:
    require_root()  # the server refuses to be root: it is made another user's
    programs = postgres_directory()
    need("setpriv", "pgbench")
    base = application.directory
    for each in (base, *base.parents):
        if each.stat().st_uid == 0 and str(each).startswith("/tmp/"):
            each.chmod(each.stat().st_mode | 0o755)
    data = base / "data"
    data.mkdir()
    shutil.chown(data, "postgres", "postgres")
    user = "setpriv --reuid=postgres --regid=postgres --clear-groups"
    subprocess.run(
        [*user.split(), str(programs / "initdb"), "-D", str(data), "-A", "trust", "-N"],
        check=True,
        capture_output=True,
        timeout=60,
    )
    printed = application.talk(
        f"{user} {programs}/postgres -D {data} -h 127.0.0.1 -p $port -k {data}",
        """
        export PGHOST=127.0.0.1 PGPORT=$port PGUSER=postgres
        ready psql -c 'select 1'
        pgbench -q -i -s 1 postgres >/dev/null 2>&1
        pgbench -c 4 -t 25 postgres 2>/dev/null | grep 'actually processed'
        psql -At -c 'select count(*) from pgbench_accounts'
        psql -At -c "select length(repeat('x', 3000000))"
        """,
    )
    assert "100/100" in printed
    assert printed.splitlines()[1:] == ["100000", "3000000"]
