"""Unmodified programs, client and server, over SDP and AF_INET_NEW_TCP; some over the host's TCP,
which they have themselves or through a relay, and against the host's own over a device.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.interop.namespace import Namespace, require_tun
from tests.run.applications import PATIENCE, Application, need
from tests.run.behaviours import SOURCES, STAG, supervised
from tests.support import require_root, require_tool

LARGE = 3 << 20
MODES = ("new_tcp", "sdp")
everywhere = pytest.mark.parametrize("application", ["host", "relay", *MODES], indirect=True)


@pytest.fixture(params=MODES)
def application(request: pytest.FixtureRequest, tmp_path: Path) -> Application:
    web_directory(tmp_path)
    return Application(request.param, tmp_path)


def web_directory(directory: Path) -> None:
    """Files to serve, in www."""
    (directory / "www").mkdir()
    (directory / "www" / "small.txt").write_text("hello\n")
    (directory / "www" / "large").write_bytes(random.Random(1).randbytes(LARGE))


def python() -> str:
    return f"{STAG[0]} -m http.server $port --bind 127.0.0.1 --directory www"


@everywhere
def test_curl_and_wget_fetch_from_pythons_http_server(application: Application) -> None:
    need("curl", "wget", "busybox")
    printed = application.talk(
        python(),
        """
        url=http://127.0.0.1:$port
        ready curl -sf $url/small.txt
        curl -sf $url/large -o by-curl && cmp by-curl www/large
        wget -q $url/large -O by-wget && cmp by-wget www/large
        busybox wget -q $url/large -O by-busybox && cmp by-busybox www/large
        curl -s -o /dev/null -w '%{http_code} %{remote_ip} %{remote_port}\\n' $url/none
        for i in 1 2 3 4; do curl -sf $url/large -o part$i & done
        wait
        for i in 1 2 3 4; do cmp part$i www/large; done
        """,
    )
    assert printed == f"404 127.0.0.1 {application.port}\n"


def test_a_refused_connection_is_refused(application: Application) -> None:
    need("curl")
    printed = application.talk(
        "sleep 100", "curl -s http://127.0.0.1:$port/ && exit 1 || echo code $?"
    )
    assert printed == "code 7\n"


def test_static_busybox_serves_static_busybox(application: Application) -> None:
    need("busybox")
    application.talk(
        "busybox httpd -f -p 127.0.0.1:$port -h www",
        """
        ready busybox wget -q http://127.0.0.1:$port/small.txt -O small
        busybox wget -q http://127.0.0.1:$port/large -O copy
        cmp copy www/large
        """,
    )


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


NGINX = """\
daemon off;
worker_processes 2;
pid nginx.pid;
error_log error.log;
events { worker_connections 256; use epoll; multi_accept on; }
http {
  access_log off;
  client_body_temp_path temp; proxy_temp_path temp; fastcgi_temp_path temp;
  uwsgi_temp_path temp; scgi_temp_path temp;
  upstream inner { server 127.0.0.1:INNER; keepalive 4; }
  server { listen 127.0.0.1:INNER; root www; }
  server {
    listen 127.0.0.1:PORT;
    root www;
    location /through/ {
      proxy_pass http://inner/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
    }
  }
}
"""


@everywhere
def test_nginx_with_workers_and_an_upstream(application: Application) -> None:
    need("nginx", "curl", "wrk")
    text = NGINX.replace("PORT", str(application.port))
    text = text.replace("INNER", str(application.port % 60000 + 2000))
    if os.geteuid() == 0:
        text = "user root;\n" + text
    (application.directory / "nginx.conf").write_text(text)
    printed = application.talk(
        "nginx -p . -c nginx.conf",
        """
        url=http://127.0.0.1:$port
        ready curl -sf $url/small.txt
        curl -sf $url/large | cmp - www/large
        curl -sf $url/through/large | cmp - www/large
        curl -sf $url/through/small.txt
        wrk -t 1 -c 8 -d 1 $url/through/small.txt > wrk.txt
        if grep -E 'Non-2xx|Socket errors' wrk.txt; then exit 1; fi
        grep -q 'requests in' wrk.txt
        """,
    )
    assert printed == "hello\n"


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
        """,
    )
    assert printed == "by socat\nby ncat\nby bash\n"


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


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A static program, whose runtime makes its system calls itself."""
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(GO)
    settings = {"GOCACHE": str(directory / "cache"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    subprocess.run(
        [require_tool("go"), "build", "-o", "program", "main.go"],
        cwd=directory,
        env={**os.environ, **settings},
        check=True,
        timeout=150,
    )
    return directory / "program"


@everywhere
def test_a_static_go_program_with_many_goroutines(
    application: Application, go_program: Path
) -> None:
    printed = application.talk(
        f"{go_program} serve 127.0.0.1:$port", f"ready {go_program} get 127.0.0.1:$port && cat got"
    )
    assert printed == "hello\n" * 20


GO = """\
package main

import (
	"io"
	"net/http"
	"os"
	"sync"
)

func main() {
	if os.Args[1] == "serve" {
		panic(http.ListenAndServe(os.Args[2], http.FileServer(http.Dir("www"))))
	}
	bodies := make([]string, 20)
	var group sync.WaitGroup
	for i := range bodies {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			answer, err := http.Get("http://" + os.Args[2] + "/small.txt")
			if err != nil {
				return
			}
			body, _ := io.ReadAll(answer.Body)
			bodies[i] = string(body)
		}(i)
	}
	group.Wait()
	out, _ := os.Create("got")
	for _, body := range bodies {
		if body == "" {
			os.Exit(1)
		}
		io.WriteString(out, body)
	}
}
"""


OVER_A_DEVICE = """\
set -eu
ready() {
  tries=0
  until "$@" >/dev/null 2>&1; do
    tries=$((tries + 1)); [ $tries -lt 300 ] || { echo "never ready: $*" >&2; exit 1; }; sleep 0.1
  done
}
cd "$0"
"$@" --device tun:run0,10.9.0.2/24,host=10.9.0.1/24 -- \\
  redis-server --bind 10.9.0.2 --protected-mode no --save '' --appendonly no >redis.log &
server=$!
ready redis-cli -h 10.9.0.2 ping
redis-cli -h 10.9.0.2 -x set large < www/large
redis-cli -h 10.9.0.2 --raw get large | head -c 3145728 | cmp - www/large
redis-benchmark -h 10.9.0.2 -q --csv -n 1000 -c 10 -t set,get > benchmark.csv
redis-cli -h 10.9.0.2 shutdown nosave || true
wait $server
busybox httpd -f -p 80 -h www &
web=$!
"$@" --device tun:run1,10.9.1.2/24,host=10.9.1.1/24 -- \\
  curl -sf --retry 100 --retry-delay 1 --retry-connrefused http://10.9.1.1/large -o copy
kill $web
cmp copy www/large
echo done
"""


def test_programs_over_a_device_talk_to_the_hosts_own(tmp_path: Path) -> None:
    """At the other end are programs that nobody supervises, with the host's TCP in a namespace."""
    need("redis-server", "redis-cli", "redis-benchmark", "busybox", "curl")
    require_tun()
    web_directory(tmp_path)
    with Namespace() as network:
        run = [*supervised("new_tcp")[:-1]]
        printed = network.run("sh", "-c", OVER_A_DEVICE, str(tmp_path), *run, timeout=PATIENCE)
    assert printed.split() == ["OK", "done"]
    assert "SET" in (tmp_path / "benchmark.csv").read_text()
