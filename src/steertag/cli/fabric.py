"""`stag rping`, `stag ucmatose`, `stag rdma-client`, `stag rdma-server`: tests of a fabric.

The flags are those of librdmacm's programs of these names; those that iWARP has no use for are
refused. Long options are ours.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Literal, NoReturn, ParamSpec, TypedDict, Unpack

import click

from steertag.cli.device import DeviceFailed, Network, family_options
from steertag.cli.interrupt import take_interrupts
from steertag.cli.output import reader_left
from steertag.cli.record import CaptureFailed, pcap_option
from steertag.cli.seconds import Seconds

if TYPE_CHECKING:
    from steertag.perf.fabric.link import LinkOptions
    from steertag.perf.fabric.rping import Outcome

P = ParamSpec("P")
Command = Callable[P, None]
Decorator = Callable[[Callable[..., None]], Callable[..., None]]

_INTERRUPTED: Final = 130
_PORTS: Final = click.IntRange(0, 65535)
_MICROSECONDS: Final = 1_000_000


def _fail(code: int, message: str, as_json: bool) -> NoReturn:
    if as_json:
        click.echo(json.dumps({"error": message, "code": code}))
    click.echo(f"stag: {message}", err=True)
    sys.exit(code)


def _one_line_errors(command: Command[P]) -> Command[P]:
    """Turn errors and interruption into one line and the documented exit code."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        from steertag.perf.fabric.errors import FabricError

        as_json = bool(kwargs.get("as_json"))
        take_interrupts()
        try:
            command(*args, **kwargs)
        except FabricError as error:
            _fail(error.code, str(error), as_json)
        except (CaptureFailed, DeviceFailed) as error:
            _fail(1, error.message, as_json)
        except KeyboardInterrupt:
            _fail(_INTERRUPTED, "interrupted", as_json)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and reader_left():
                raise
            _fail(1, error.strerror or str(error), as_json)

    return wrapper


# --- options of all -----------------------------------------------------------------------------


def _link_options(command: Callable[..., None]) -> Callable[..., None]:
    decorators: tuple[Decorator, ...] = (
        click.option(
            "--crc/--no-crc",
            default=None,
            help="CRC32C in the FPDUs (default: a client asks for it, a server leaves it to the"
            " client). It is used when one side asks.",
        ),
        click.option(
            "--mpa-revision",
            type=click.IntRange(1, 2),
            default=2,
            show_default=True,
            help="Revision of MPA that a client speaks; a server takes both.",
        ),
        click.option(
            "--p2p/--no-p2p",
            default=None,
            help="Client: peer-to-peer mode, in which the server may be the first to send"
            " (default: ucmatose yes, the others no).",
        ),
        click.option(
            "--rtr",
            type=click.Choice(["write", "read", "send"]),
            multiple=True,
            help="Ready-to-receive frame of peer-to-peer mode; again for more (default: all).",
        ),
        click.option(
            "--max-fpdu",
            type=click.IntRange(136, 65544),
            help="Octets of an FPDU sent, at most; some hardware takes no more than 16384.",
        ),
        click.option(
            "--timeout",
            type=Seconds(min=0.05),
            default=30.0,
            show_default=True,
            help="Seconds that the peer may be silent. A server waits for a client without end.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end."),
    )
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


class _Link(TypedDict):
    """What `_link_options` gives a command, `as_json` apart."""

    crc: bool | None
    mpa_revision: int
    p2p: bool | None
    rtr: tuple[Literal["write", "read", "send"], ...]
    max_fpdu: int | None
    timeout: float
    network: Network


def _link(
    address: str | None,
    port: int,
    source: str | None,
    server: bool,
    given: _Link,
    *,
    server_sends_first: bool = False,
    tos: int | None = None,
    ack_timeout: int | None = None,
) -> LinkOptions:
    from steertag.perf.fabric.link import LinkOptions

    if server and given["p2p"] is not None:
        raise click.UsageError("--p2p and --no-p2p are the client's")
    if given["p2p"] and given["mpa_revision"] == 1:
        raise click.UsageError("--p2p needs MPA revision 2")
    if given["p2p"] is None:
        given["p2p"] = server_sends_first and not server and given["mpa_revision"] == 2
    if given["rtr"] and not (server or given["p2p"]):
        raise click.UsageError("--rtr is of peer-to-peer mode; add --p2p")
    return LinkOptions(
        address=address,
        port=port,
        source=source,
        tos=tos,
        ack_timeout=ack_timeout,
        family=given["network"].family,
        crc=given["crc"],
        mpa_revision=given["mpa_revision"],
        p2p=given["p2p"],
        rtr=given["rtr"],
        max_fpdu=given["max_fpdu"],
        timeout=given["timeout"],
    )


def _refused(*names: str, value: bool = True, why: str) -> Decorator:
    """A flag of the original that is not to be had here."""

    def refuse(_ctx: click.Context, param: click.Parameter, given: object) -> None:
        if given not in (None, False):
            raise click.UsageError(f"{param.opts[0]}: {why}")

    return click.option(
        *names,
        expose_value=False,
        is_flag=not value,
        callback=refuse,
        help=f"Refused: {why}.",
    )


def _say(as_json: bool) -> Callable[[str], None]:
    """Where a program's own lines go: standard output belongs to JSON where that was asked for."""
    return functools.partial(click.echo, err=as_json)


def _announce(line: str) -> None:
    click.echo(f"stag: {line}", err=True)


def _nothing(_line: str) -> None:
    """A line that nobody wants."""


# --- rping --------------------------------------------------------------------------------------


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-s", "server", is_flag=True, help="Be the server.")
@click.option("-c", "client", is_flag=True, help="Be the client.")
@click.option("-a", "address", metavar="ADDR", help="Address of the server; a server's: to bind.")
@click.option("-I", "source", metavar="ADDR", help="Address to connect from.")
@click.option("-p", "port", type=_PORTS, default=7174, show_default=True, help="Port.")
@click.option("-C", "count", type=click.IntRange(0), help="Pings (default, and 0: without end).")
@click.option(
    "-S",
    "size",
    type=int,
    help="Octets of a ping (64); a server's: of the largest that it takes (65535).",
)
@click.option("-v", "verbose", is_flag=True, help="Print the data.")
@click.option("-V", "validate", is_flag=True, help="Compare what comes back with what was sent.")
@click.option("-d", "debug", is_flag=True, help="Say every step, on standard error.")
@click.option("-P", "persistent", is_flag=True, help="Server: any number of clients, at a time.")
@_refused(
    "-q",
    value=False,
    why="the connection manager makes the queue pairs; a program does it by ConnParam.qp_num",
)
@_link_options
@_one_line_errors
@pcap_option
@family_options
def rping(
    server: bool,
    client: bool,
    address: str | None,
    source: str | None,
    port: int,
    count: int | None,
    size: int | None,
    verbose: bool,
    validate: bool,
    debug: bool,
    persistent: bool,
    as_json: bool,
    **link: Unpack[_Link],
) -> None:
    """Ping-pong by RDMA Read and RDMA Write, with rping or with itself at the other end."""
    from steertag.perf.fabric import rping as logic

    if server == client:
        raise click.UsageError("one of -s (server) and -c (client)")
    if client and address is None:
        raise click.UsageError("-c needs -a ADDR, the server's address")
    if persistent and client:
        raise click.UsageError("-P is for a server")
    if size is not None and not logic.MIN_SIZE <= size <= logic.MAX_SIZE:
        raise click.UsageError(f"-S is {logic.MIN_SIZE} to {logic.MAX_SIZE} octets")
    options = logic.RpingOptions(
        link=_link(address, port, source, server, link),
        size=logic.SIZE if size is None else size,
        count=count or None,
        verbose=verbose,
        validate=validate,
    )
    outcome = logic.Outcome()
    say = _say(as_json)
    log = functools.partial(click.echo, err=True) if debug else _nothing
    if client:
        logic.run_client(options, outcome, say, log)
    elif persistent:
        try:
            logic.run_persistent_server(options, outcome, say, log, _announce)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)  # how this server is meant to end
    else:
        logic.run_server(options, outcome, say, log, _announce)
    _report(outcome, server, as_json)


def _report(outcome: Outcome, server: bool, as_json: bool) -> None:
    times: dict[str, float] = {}
    if outcome.seconds:
        spent = sorted(outcome.seconds)
        middle = spent[len(spent) // 2]
        for name, seconds in (("min", spent[0]), ("median", middle), ("max", spent[-1])):
            times[f"{name}_us"] = round(seconds * _MICROSECONDS, 1)
    if as_json:
        result = {
            "role": "server" if server else "client",
            "pings": outcome.pings,
            "octets": outcome.octets,
            **times,
            **outcome.facts,
        }
        click.echo(json.dumps(result))
        return
    crc = "on" if outcome.facts.get("crc") else "off"
    line = f"{outcome.pings} pings, {outcome.octets} octets, CRC32C {crc}"
    if times:
        line += "; min/median/max " + "/".join(f"{time:.0f}" for time in times.values()) + " us"
    click.echo(line)


# --- ucmatose -----------------------------------------------------------------------------------


def _address_format(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value == "gid":
        raise click.UsageError("-f gid: InfiniBand's addresses mean nothing on iWARP")
    return value


def _port_space(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if value == "ib":
        raise click.UsageError("-P ib: iWARP has the TCP port space only")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-s", "address", metavar="ADDR", help="The server's address; without it be one.")
@click.option("-b", "bind", metavar="ADDR", help="Address to listen on, or to connect from.")
@click.option(
    "-f",
    "address_format",
    type=click.Choice(["name", "ip", "ipv6", "gid"]),
    default="name",
    callback=_address_format,
    help="What the addresses are; gid is refused.",
)
@click.option(
    "-P",
    type=click.Choice(["tcp", "ib"]),
    default="tcp",
    callback=_port_space,
    expose_value=False,
    help="Port space: tcp; ib is refused.",
)
@click.option("-p", "port", type=_PORTS, default=7471, show_default=True, help="Port.")
@click.option(
    "-c", "connections", type=click.IntRange(1, 1000), default=1, show_default=True,
    help="Connections.",
)  # fmt: skip
@click.option(
    "-C", "count", type=click.IntRange(0, 8192), default=10, show_default=True,
    help="Messages each way on each connection; 0 only connects.",
)  # fmt: skip
@click.option(
    "-S", "size", type=click.IntRange(0, 1 << 26), default=100, show_default=True,
    help="Octets of a message; 0 only connects.",
)  # fmt: skip
@click.option("-t", "tos", type=click.IntRange(0, 255), help="IP's type of service.")
@click.option(
    "-a", "ack_timeout", type=click.IntRange(0, 31),
    help="Acknowledgements may take 4.096 us x 2^N, a few times; 0: for ever.",
)  # fmt: skip
@click.option("-m", "migrate", is_flag=True, help="Disconnect over another event channel.")
@_link_options
@_one_line_errors
@pcap_option
@family_options
def ucmatose(
    address: str | None,
    bind: str | None,
    address_format: str,
    port: int,
    connections: int,
    count: int,
    size: int,
    tos: int | None,
    ack_timeout: int | None,
    migrate: bool,
    as_json: bool,
    **link: Unpack[_Link],
) -> None:
    """Connections by the dozen, messages both ways; ucmatose or itself at the other end."""
    from steertag.perf.fabric import ucmatose as logic

    server = address is None
    for one in (address, bind):
        _check_format(one, address_format)
    options = logic.UcmatoseOptions(
        link=_link(
            bind if server else address,
            port,
            None if server else bind,
            server,
            link,
            server_sends_first=True,
            tos=tos,
            ack_timeout=ack_timeout,
        ),
        connections=connections,
        count=count,
        size=size,
        migrate=migrate,
    )
    outcome = logic.Outcome()
    if server:
        logic.run_server(options, outcome, _say(as_json), _announce)
    else:
        logic.run_client(options, outcome, _say(as_json))
    if as_json:
        result = {
            "role": "server" if server else "client",
            "sent": outcome.sent,
            "received": outcome.received,
            "octets": outcome.octets,
            "connections": outcome.facts,
        }
        click.echo(json.dumps(result))
    else:
        click.echo("return status 0")


def _check_format(address: str | None, address_format: str) -> None:
    """`-f ip` and `-f ipv6` promise an address that needs no resolver."""
    import ipaddress

    if address is None or address_format == "name":
        return
    of_format = ipaddress.IPv6Address if address_format == "ipv6" else ipaddress.ip_address
    try:
        of_format(address)
    except ValueError:
        name = "IPv6" if address_format == "ipv6" else "IP"
        raise click.UsageError(
            f"{address} is no {name} address, as -f {address_format} says"
        ) from None


# --- rdma_client, rdma_server -------------------------------------------------------------------


def _exchange(
    address: str | None, port: int, server: bool, as_json: bool, **link: Unpack[_Link]
) -> None:
    from steertag.perf.fabric import exchange as logic

    options = _link(address, port, None, server, link)
    outcome = logic.Outcome()
    if server:
        logic.run_server(options, outcome, _say(as_json), _announce)
    else:
        logic.run_client(options, outcome, _say(as_json))
    if as_json:
        role = "server" if server else "client"
        click.echo(json.dumps({"role": role, "received": outcome.received, **outcome.facts}))


@click.command("rdma-client", context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "-s", "address", default="127.0.0.1", show_default=True, metavar="ADDR",
    help="The server's address.",
)  # fmt: skip
@click.option("-p", "port", type=_PORTS, default=7471, show_default=True, help="Port.")
@_link_options
@_one_line_errors
@pcap_option
@family_options
def rdma_client(address: str, port: int, as_json: bool, **link: Unpack[_Link]) -> None:
    """Send 16 octets to rdma_server, or to `stag rdma-server`, and receive 16."""
    _exchange(address, port, False, as_json, **link)


@click.command("rdma-server", context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-s", "address", metavar="ADDR", help="Address to listen on (default: any).")
@click.option("-p", "port", type=_PORTS, default=7471, show_default=True, help="Port.")
@_link_options
@_one_line_errors
@pcap_option
@family_options
def rdma_server(address: str | None, port: int, as_json: bool, **link: Unpack[_Link]) -> None:
    """Receive 16 octets from rdma_client, or from `stag rdma-client`, and send 16."""
    _exchange(address, port, True, as_json, **link)
