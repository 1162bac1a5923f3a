"""The standard library's HTTP server, over TCP/IP in user space.

    env STEERTAG_DEVICE=tun:stag0,10.9.0.2/24,host=10.9.0.1/24 \
        python examples/http_over_new_tcp.py 10.9.0.2 8000 DIRECTORY

Only the server's socket is another: everything that http.server does with it works unchanged.
"""

from __future__ import annotations

import functools
import http.server
import sys

from steertag import AF_INET_NEW_TCP, socket


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, address: tuple[str, int], directory: str) -> None:
        handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=directory)
        super().__init__(address, handler, bind_and_activate=False)
        self.socket.close()  # the host's, which the base class has made
        self.socket = socket.socket(AF_INET_NEW_TCP)  # type: ignore[assignment]
        self.server_bind()
        self.server_activate()


if __name__ == "__main__":
    with Server((sys.argv[1], int(sys.argv[2])), sys.argv[3]) as server:
        print(f"listening on http://{sys.argv[1]}:{server.server_port}/", flush=True)
        server.serve_forever()
