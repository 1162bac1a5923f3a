"""Web servers and their clients, unmodified, over SDP and AF_INET_NEW_TCP; some over the host's
TCP, which they have themselves or through a relay, and against its own over a device.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.namespace import Namespace, require_tun
from tests.run.applications import PATIENCE, Application, everywhere, need, web_directory
from tests.run.behaviours import STAG, supervised
from tests.support import require_tool


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
        f"{go_program} serve 127.0.0.1:$port",
        f"""
        ready {go_program} get 127.0.0.1:$port/small.txt 20
        cat got
        {go_program} get 127.0.0.1:$port/large 4
        cat www/large www/large www/large www/large | cmp - got
        """,
    )
    assert printed == "hello\n" * 20


GO = """\
package main

import (
	"io"
	"net/http"
	"os"
	"strconv"
	"sync"
)

func main() {
	if os.Args[1] == "serve" {
		panic(http.ListenAndServe(os.Args[2], http.FileServer(http.Dir("www"))))
	}
	count, _ := strconv.Atoi(os.Args[3])
	bodies := make([]string, count)
	var group sync.WaitGroup
	for i := range bodies {
		group.Add(1)
		go func(i int) {
			defer group.Done()
			answer, err := http.Get("http://" + os.Args[2])
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
