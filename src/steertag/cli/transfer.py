"""`stag serve`, `get`, `put` and `ls`."""

from __future__ import annotations

import functools
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, NotRequired, ParamSpec, TypedDict, Unpack

import click

from steertag.cli import output
from steertag.cli.device import DeviceFailed, Network, family_options
from steertag.cli.interrupt import take_interrupts
from steertag.cli.record import CaptureFailed, pcap_option
from steertag.cli.seconds import Seconds
from steertag.transfer.auth import (
    TOKEN_FILE_VARIABLE,
    default_token_path,
    make_token_file,
    read_token_file,
)
from steertag.transfer.client import Client, Options, Request, connect
from steertag.transfer.digest import DEFAULT_DIGEST, DIGESTS
from steertag.transfer.errors import ExitCode, TransferError
from steertag.transfer.names import escape
from steertag.transfer.paths import AUTO, CHOICES
from steertag.transfer.protocol import Entry
from steertag.transfer.report import TransferReport
from steertag.transfer.server import Event, Server, ServerConfig
from steertag.transfer.stream import is_loopback
from steertag.transfer.url import DEFAULT_PORT, Url, parse_address, parse_url

P = ParamSpec("P")
Command = Callable[P, None]
# Whether a file can be read is told by opening it, with its own exit code.
_FILE = click.Path(path_type=Path, readable=False)
_CLIENT = Options()
_SERVER = ServerConfig(Path())
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


# What a person sees of an error


def _fail(code: ExitCode, message: str, as_json: bool) -> NoReturn:
    command = click.get_current_context().info_name
    try:
        click.echo(f"stag {command}: {message}", err=True)
        if as_json:
            error = {"code": int(code), "name": code.name.lower(), "message": message}
            click.echo(json.dumps({"error": error}))
    except OSError:
        output.mute()  # nobody listens; the exit code still says it
    sys.exit(int(code))


def _one_line_errors(command: Command[P]) -> Command[P]:
    """Turn errors and interruption into one line and the documented exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            command(*args, **kwargs)
        except TransferError as error:
            _fail(error.code, error.message, as_json)
        except (CaptureFailed, DeviceFailed) as error:
            _fail(ExitCode.FAILURE, error.message, as_json)
        except KeyboardInterrupt:
            _fail(ExitCode.INTERRUPTED, "interrupted; nothing was replaced", as_json)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and output.reader_left():
                raise
            _fail(ExitCode.FAILURE, escape(str(error)), as_json)

    return wrapper


# Options that several commands have


def _options(*decorators: Decorator) -> Decorator:
    def apply(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return apply


_json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON for programs on standard output."
)
_quiet_option = click.option(
    "-q", "--quiet", is_flag=True, help="No progress bar and no notices, except of a fallback."
)
_token_option = click.option(
    "--token-file",
    type=_FILE,
    help=f"File with the server's token (also from ${TOKEN_FILE_VARIABLE}).",
)
_connection_options = _options(
    _token_option,
    click.option(
        "--connect-timeout",
        type=Seconds(min=0.05),
        default=_CLIENT.connect_timeout,
        show_default=True,
        help="Seconds for the connection and for the server's greeting.",
    ),
    click.option(
        "--timeout",
        type=Seconds(min=0.05),
        default=_CLIENT.idle_timeout,
        show_default=True,
        help="Seconds that the server may be silent.",
    ),
)
_move_options = _options(
    _connection_options,
    click.option(
        "--path",
        type=click.Choice(CHOICES),
        default=AUTO,
        show_default=True,
        help="How the octets move; auto takes RDMA when both sides have it.",
    ),
    click.option(
        "--rdma-timeout",
        type=Seconds(min=0.05),
        default=_CLIENT.rdma_timeout,
        show_default=True,
        help="Seconds for an RDMA connection before TCP is used.",
    ),
    click.option(
        "--digest",
        type=click.Choice(DIGESTS),
        default=DEFAULT_DIGEST,
        show_default=True,
        help="Digest that both sides compute while the octets move.",
    ),
    click.option("-n", "--no-clobber", is_flag=True, help="Fail if the destination exists."),
    _quiet_option,
    _json_option,
)


class _Connection(TypedDict):
    token_file: Path | None
    connect_timeout: float
    timeout: float
    rdma_timeout: NotRequired[float]
    network: Network


def _connect(
    url: Url,
    token_file: Path | None,
    connect_timeout: float,
    timeout: float,
    network: Network,
    rdma_timeout: float = _CLIENT.rdma_timeout,
) -> Client:
    variable = os.environ.get(TOKEN_FILE_VARIABLE)
    path = token_file or (Path(variable) if variable else None)
    options = Options(
        connect_timeout=connect_timeout,
        idle_timeout=timeout,
        rdma_timeout=rdma_timeout,
        # A token from the environment is for servers elsewhere; one of this machine needs none.
        require_auth=token_file is not None or (path is not None and not is_loopback(url.host)),
        family=network.family,
    )
    token = read_token_file(path) if path else None
    take_interrupts()
    return connect(url.host, url.port, token, options)


# stag get, stag put


@click.command()
@click.argument("url")
@click.argument("dest", required=False, type=click.Path(readable=False))
@_move_options
@_one_line_errors
@pcap_option
@family_options
def get(
    url: str,
    dest: str | None,
    path: str,
    digest: str,
    no_clobber: bool,
    quiet: bool,
    as_json: bool,
    **connection: Unpack[_Connection],
) -> None:
    """Fetch the file at URL (stag://host:port/path) into DEST.

    DEST is a file or a directory; without it, the file goes into the current directory under its
    own name. An existing file is replaced, once the new one is whole and verified.
    """
    from steertag.cli.bar import TerminalProgress

    where = parse_url(url)
    leaf = where.path.rsplit("/", 1)[-1]
    if not leaf:
        raise TransferError(ExitCode.USAGE, f"{where} names no file; `stag ls` lists what is there")
    if dest == "-":
        raise TransferError(
            ExitCode.USAGE, "a file is verified before it is shown: name one (./- for that name)"
        )
    destination = Path(dest or leaf)
    if dest and (destination.is_dir() or dest.endswith("/")):
        destination = destination / leaf
    request = Request(path, digest, replace=not no_clobber)
    with _connect(where, **connection) as client:
        report = client.fetch(where.path, destination, request, TerminalProgress(quiet))
    _show(report, quiet, as_json)


@click.command()
@click.argument("file", type=_FILE)
@click.argument("url")
@_move_options
@_one_line_errors
@pcap_option
@family_options
def put(
    file: Path,
    url: str,
    path: str,
    digest: str,
    no_clobber: bool,
    quiet: bool,
    as_json: bool,
    **connection: Unpack[_Connection],
) -> None:
    """Send FILE to URL (stag://host:port/path) on a server that is writable.

    A URL that ends in a slash names a directory; FILE keeps its name there. An existing file is
    replaced, once the new one is whole and verified.
    """
    from steertag.cli.bar import TerminalProgress

    if str(file).startswith("stag:"):
        raise TransferError(
            ExitCode.USAGE, "FILE is a URL; fetch it with `stag get`, then put the local file"
        )
    where = parse_url(url)
    name = where.path
    if not name or name.endswith("/"):
        name += file.name
    request = Request(path, digest, replace=not no_clobber)
    with _connect(where, **connection) as client:
        report = client.store(file, name, request, TerminalProgress(quiet))
    _show(report, quiet, as_json)


def _show(report: TransferReport, quiet: bool, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(report.to_json()))
    if quiet:
        return
    click.echo(
        f"{escape(report.file)}: {_amount(report.bytes)} in {report.seconds:.2f} s, "
        f"{report.gb_per_s:.2f} GB/s over {report.path}, {report.digest.algo} verified",
        err=True,
    )


def _amount(octets: int) -> str:
    """`octets` in decimal units, three digits or so."""
    value = float(octets)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


# stag ls


@click.command()
@click.argument("url")
@_connection_options
@click.option("-l", "--long", "long_form", is_flag=True, help="Show mode, size and time.")
@_json_option
@_one_line_errors
@family_options
def ls(url: str, long_form: bool, as_json: bool, **connection: Unpack[_Connection]) -> None:
    """List the directory, or the one file, at URL (stag://host:port/path).

    On a terminal, names are escaped; in a pipe and in JSON they are exact.
    """
    where = parse_url(url)
    with _connect(where, **connection) as client:
        entries = sorted(client.list(where.path), key=lambda entry: entry.name)
    exact = not sys.stdout.isatty()
    for entry in entries:
        if as_json:
            click.echo(json.dumps(_entry_json(entry)))
        else:
            name = os.fsencode(entry.name) if exact else escape(entry.name).encode()
            click.echo(_details(entry).encode() * long_form + name)


def _entry_json(entry: Entry) -> dict[str, object]:
    return {
        "name": entry.name,
        "type": entry.type,
        "size": entry.size,
        "mode": entry.mode,
        "mtime_ns": entry.mtime_ns,
    }


_TYPE_BITS = {"file": stat.S_IFREG, "directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}


def _details(entry: Entry) -> str:
    mode = stat.filemode(entry.mode | _TYPE_BITS.get(entry.type, 0))
    try:
        moment = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns // 10**9))
    except (OverflowError, ValueError, OSError):
        moment = "?"  # a time that no calendar of this machine reaches
    return f"{mode} {entry.size:>14} {moment:>16} "


# stag serve


@click.command()
@click.argument("directory", metavar="DIR", type=_FILE)
@click.option(
    "--bind",
    metavar="HOST[:PORT]",
    help=f"Address to listen on (default: 127.0.0.1, or the first of the first --device);"
    f" port {DEFAULT_PORT} unless given, 0 for any free one.",
)
@click.option("--writable", is_flag=True, help="Let clients put files.")
@click.option(
    "--token-file",
    type=_FILE,
    help="File with the token that clients have to know.",
)
@click.option("--no-auth", is_flag=True, help="Let everybody in, on whatever address.")
@click.option("--no-rdma", is_flag=True, help="Offer the tcp paths only.")
@click.option(
    "--max-clients",
    type=click.IntRange(min=1),
    default=_SERVER.max_clients,
    show_default=True,
    help="Clients at once.",
)
@click.option(
    "--timeout",
    type=Seconds(min=0.05),
    default=_SERVER.idle_timeout,
    show_default=True,
    help="Seconds that a client may be silent.",
)
@click.option("-q", "--quiet", is_flag=True, help="Do not log what clients do.")
@_json_option
@_one_line_errors
@pcap_option
@family_options
def serve(
    directory: Path,
    bind: str | None,
    writable: bool,
    token_file: Path | None,
    no_auth: bool,
    no_rdma: bool,
    max_clients: int,
    timeout: float,
    quiet: bool,
    as_json: bool,
    network: Network,
) -> None:
    """Serve DIR to stag clients until interrupted.

    On a loopback address (the default) every user of this machine may come. On any other, clients
    need a token: one is made and kept, unless --token-file names one or --no-auth says that
    everybody may come. The token authenticates both sides; nothing is encrypted.
    """
    from steertag.observe import inspect

    if no_auth and token_file:
        raise TransferError(ExitCode.USAGE, "--no-auth and --token-file exclude each other")
    host, port = parse_address(bind) if bind else (network.address, DEFAULT_PORT)
    token = None
    if token_file:
        token = read_token_file(token_file)
    elif not no_auth and not is_loopback(host):
        token_file = default_token_path()
        token = make_token_file(token_file)
    config = ServerConfig(
        directory=directory,
        host=host,
        port=port,
        family=network.family,
        writable=writable,
        token=token,
        no_auth=no_auth,
        rdma=not no_rdma,
        max_clients=max_clients,
        idle_timeout=timeout,
        on_event=_logger(quiet, as_json),
    )
    take_interrupts()
    inspect.start()  # also without RDMA
    with Server(config) as server:
        _announce(server, token_file, as_json)
        try:
            server.wait()
        except KeyboardInterrupt:
            click.echo("stag serve: stopping", err=True)


def _announce(server: Server, token_file: Path | None, as_json: bool) -> None:
    if not as_json:
        click.echo(server.describe())
        if token_file:
            click.echo(
                f"clients need this token: copy {escape(str(token_file))} to them (mode 600) "
                "and run stag get --token-file FILE ..."
            )
        return
    line = {
        "event": "serving",
        "url": server.url,
        "host": server.host,
        "port": server.port,
        "directory": str(server.config.directory),
        "writable": server.config.writable,
        "rdma": server.rdma.rdma,
        "rdma_reason": server.rdma.reason,
        "token_file": str(token_file) if token_file else None,
    }
    click.echo(json.dumps(line))


def _logger(quiet: bool, as_json: bool) -> Callable[[Event], None]:
    def log(event: Event) -> None:
        try:
            if as_json:
                click.echo(json.dumps(event))
            elif not quiet:
                click.echo(_sentence(event), err=True)
        except OSError:
            output.mute()  # the server goes on without its log

    return log


def _sentence(event: Event) -> str:
    rest = {key: value for key, value in event.items() if key not in ("event", "peer")}
    details = [f"{key}={escape(str(value))}" for key, value in rest.items()]
    return " ".join([event["event"], event.get("peer", "-"), *details])
