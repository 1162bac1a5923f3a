"""Libraries that know nothing of steertag, over the sockets of a patched program."""

from __future__ import annotations

import asyncio
import ftplib
import gc
import http.client
import http.server
import os
import smtplib
import socket
import socketserver
import ssl
import threading
import urllib.request
import xmlrpc.client
import xmlrpc.server
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Client, Listener
from pathlib import Path

import pytest
import requests
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.patch.support import PATIENCE, of_this_process, serving

CONTENT = os.urandom(200_000)


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers with CONTENT, or with what it is sent."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(CONTENT)

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def web(context: ssl.SSLContext | None = None) -> Iterator[int]:
    """The port of an HTTP server; with a context, an HTTPS one."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server) as (_, port):
        yield port


def test_http_server_and_client(patched: str) -> None:
    with web() as port:
        client = http.client.HTTPConnection("localhost", port, timeout=PATIENCE)
        for _ in range(2):  # one connection
            client.request("GET", "/")
            assert of_this_process(client.sock) == (patched != "host")
            assert client.getresponse().read() == CONTENT
        client.close()


def test_urllib(patched: str) -> None:
    with (
        web() as port,
        urllib.request.urlopen(f"http://localhost:{port}/", timeout=PATIENCE) as answer,
    ):
        assert answer.read() == CONTENT


def test_requests(patched: str) -> None:
    with web() as port, requests.Session() as session:
        session.trust_env = False
        url = f"http://localhost:{port}/"
        assert session.get(url, timeout=PATIENCE).content == CONTENT
        answer = session.post(url, data=CONTENT, timeout=PATIENCE)
        assert answer.content == CONTENT


def test_https_with_requests_and_http_client(
    patched: str,
    server_context: ssl.SSLContext,
    client_context: ssl.SSLContext,
    certificate: Path,
) -> None:
    server_context.set_alpn_protocols(["http/1.1"])
    with web(server_context) as port:
        with requests.Session() as session:
            session.trust_env = False
            answer = session.get(
                f"https://localhost:{port}/", verify=str(certificate), timeout=PATIENCE
            )
            assert answer.content == CONTENT
        client = http.client.HTTPSConnection(
            "localhost", port, timeout=PATIENCE, context=client_context
        )
        client.request("POST", "/", CONTENT)
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.getresponse().read() == CONTENT
        client.close()


def test_xmlrpc(patched: str) -> None:
    with xmlrpc.server.SimpleXMLRPCServer(("127.0.0.1", 0), logRequests=False) as server:
        server.register_function(lambda a, b: a**b, "power")
        with (
            serving(server) as (_, port),
            xmlrpc.client.ServerProxy(f"http://localhost:{port}/") as proxy,
        ):
            assert proxy.power(2, 20) == 2**20


class Shout(socketserver.StreamRequestHandler):
    """Says each line again, louder."""

    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line.upper())


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
def test_socketserver(patched: str, kind: type[socketserver.TCPServer]) -> None:
    with (
        serving(kind(("127.0.0.1", 0), Shout)) as address,
        socket.create_connection(address, PATIENCE) as conn,
        conn.makefile("rw", newline="\n") as file,
    ):
        file.write("hello\n")
        file.flush()
        assert file.readline() == "HELLO\n"


# -- mail and files -----------------------------------------------------------------------------


class Letters:
    """An aiosmtpd handler that keeps what it gets."""

    def __init__(self) -> None:
        self.got: list[tuple[str | None, bytes | str | None]] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.got.append((envelope.mail_from, envelope.content))
        return "250 kept"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:aiosmtpd",
    # Its controller stops the loop without waiting for the connections to end.
    "ignore::ResourceWarning",
)
def test_smtplib_and_aiosmtpd(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    letters = Letters()
    controller = Controller(
        letters,
        hostname="127.0.0.1",
        port=_free_port(),
        server_kwargs={"tls_context": server_context, "timeout": PATIENCE},
    )
    controller.start()
    try:
        with smtplib.SMTP("localhost", controller.port, timeout=PATIENCE) as client:
            client.starttls(context=client_context)
            assert isinstance(client.sock, ssl.SSLSocket)
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: x\r\n\r\nhello\r\n")
    finally:
        controller.stop()
        gc.collect()
    assert letters.got == [("a@example.org", b"Subject: x\r\n\r\nhello\r\n")]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


class Ftp(socketserver.StreamRequestHandler):
    """As much of FTP as a client needs to store a file and to fetch it, passive mode alone."""

    def handle(self) -> None:
        self._say("220 ready")
        self.data = socket.create_server(("127.0.0.1", 0))
        with self.data:
            for line in self.rfile:
                command, _, _ = line.decode().strip().partition(" ")
                if command == "QUIT":
                    self._say("221 bye")
                    return
                self._obey(command)

    def _obey(self, command: str) -> None:
        answers = {"USER": "331 password?", "PASS": "230 in", "TYPE": "200 binary"}
        if command in ("PASV", "EPSV"):
            port = self.data.getsockname()[1]
            high, low = divmod(port, 256)
            self._say(
                f"227 here (127,0,0,1,{high},{low})" if command == "PASV" else f"229 (|||{port}|)"
            )
        elif command in ("RETR", "STOR"):
            self._say("150 now")
            self.data.settimeout(PATIENCE)
            conn, _ = self.data.accept()
            with conn, conn.makefile("rwb") as file:
                if command == "STOR":
                    self.server.stored = file.read()  # type: ignore[attr-defined]
                else:
                    file.write(self.server.stored)  # type: ignore[attr-defined]
            self._say("226 done")
        else:
            self._say(answers.get(command, "502 no"))

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


def test_ftplib(patched: str) -> None:
    got: list[bytes] = []
    with (
        serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Ftp)) as (host, port),
        ftplib.FTP(timeout=PATIENCE) as client,
    ):
        client.connect(host, port)
        client.login("anonymous", "x")
        with Path(__file__).open("rb") as file:
            client.storbinary("STOR it", file)
        client.retrbinary("RETR it", got.append)
    assert b"".join(got) == Path(__file__).read_bytes()


def test_multiprocessing_s_connections(patched: str) -> None:
    def serve() -> None:
        with listener.accept() as conn:
            conn.send([*conn.recv(), patched])
            conn.send_bytes(CONTENT)

    with Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        with Client(listener.address, authkey=b"key") as conn:
            conn.send(["sent"])
            assert conn.poll(PATIENCE)
            assert conn.recv() == ["sent", patched]
            assert conn.recv_bytes() == CONTENT
            with pytest.raises(EOFError):
                conn.recv()
        thread.join(PATIENCE)
    one, other = Pipe()
    with one, other:
        one.send("the host's")
        assert other.recv() == "the host's"


# -- asyncio ------------------------------------------------------------------------------------


async def _close(writer: asyncio.StreamWriter) -> None:
    """To its end: a loop that stops before leaves the transport open."""
    writer.close()
    await writer.wait_closed()


async def _shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    await _close(writer)


async def _talk(
    context: ssl.SSLContext | None = None, client: ssl.SSLContext | None = None
) -> bytes:
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await _shout(reader, writer)
        finally:
            ended.set()

    server = await asyncio.start_server(serve, "localhost", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        host = server.sockets[0].getsockname()[0]
        reader, writer = await asyncio.open_connection(
            host,
            port,
            ssl=client,
            server_hostname="localhost" if context is not None else None,
        )
        writer.write(b"hello\n" * 1000)
        writer.write_eof() if context is None else writer.write(b"end\n")
        got = await (reader.read() if context is None else reader.readuntil(b"END\n"))
        await _close(writer)
        await ended.wait()
        return got


def test_asyncio_streams(patched: str) -> None:
    got = asyncio.run(asyncio.wait_for(_talk(), PATIENCE))
    assert got == b"HELLO\n" * 1000


def test_asyncio_streams_with_tls(
    patched: str, server_context: ssl.SSLContext, client_context: ssl.SSLContext
) -> None:
    talk = _talk(server_context, client_context)
    got = asyncio.run(asyncio.wait_for(talk, PATIENCE))
    assert got == b"HELLO\n" * 1000 + b"END\n"


def test_asyncio_s_calls_on_sockets(patched: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    async def serve(listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        conn, _ = await loop.sock_accept(listener)
        with conn, path.open("rb") as file:
            await loop.sock_sendall(conn, await loop.sock_recv(conn, 100))
            assert await loop.sock_sendfile(conn, file) == len(CONTENT)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as sock:
            listener.setblocking(False)
            sock.setblocking(False)
            serving = asyncio.create_task(serve(listener))
            await loop.sock_connect(sock, listener.getsockname())
            await loop.sock_sendall(sock, b"echo")
            got = b""
            while data := await loop.sock_recv(sock, 65536):
                got += data
            await serving
        assert got == b"echo" + CONTENT

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_asyncio_s_sendfile_of_a_transport(patched: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with path.open("rb") as file:
            await asyncio.get_running_loop().sendfile(writer.transport, file)
        await _close(writer)
        ended.set()

    ended = asyncio.Event()

    async def main() -> bytes:
        async with await asyncio.start_server(send, "127.0.0.1", 0) as server:
            name = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*name)
            got = await reader.read()
            await _close(writer)
            await ended.wait()
            return got

    assert asyncio.run(asyncio.wait_for(main(), PATIENCE)) == CONTENT


def test_threads_that_serve_each_a_connection(patched: str) -> None:
    with serving(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Shout)) as address:
        answers: list[bytes] = []

        def ask(number: int) -> None:
            with socket.create_connection(address, PATIENCE) as conn:
                conn.sendall(b"number %d\n" % number)
                with conn.makefile("rb") as file:
                    answers.append(file.readline())

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(answers) == sorted(b"NUMBER %d\n" % number for number in range(10))
