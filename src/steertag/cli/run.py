"""`stag run`: a program, unchanged, over a family of this Stack's.

Its options end at the first word that is none: `stag run --family sdp curl -s URL` needs no `--`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NoReturn

import click

from steertag.cli.seconds import Seconds

if TYPE_CHECKING:
    from steertag.family.rules import Rules
    from steertag.run.launch import Endpoint, RunConfig

_FAILED: Final = 125
"""stag run itself failed, the program was not started: as env(1) and nohup(1) have it."""
_USAGE: Final = 2
_NAMES: Final = ("sdp", "new_tcp", "host")
_HIGHEST_FAMILY: Final = 0xFFFF
_PORTS: Final = 65536


class Family(click.ParamType[str]):
    """A family's name, or the number of a registered one."""

    name = "family"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in _NAMES or (value.isdecimal() and 0 < int(value) <= _HIGHEST_FAMILY):
            return value
        self.fail(f"{value!r} is none; write {', '.join(_NAMES)} or a family's number", param, ctx)


class Mapping(click.ParamType["tuple[Endpoint, Endpoint]"]):
    """ADDR:PORT=ADDR:PORT; "*" for any address or any port, brackets around IPv6."""

    name = "map"

    def convert(
        self,
        value: str | tuple[Endpoint, Endpoint],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[Endpoint, Endpoint]:
        if isinstance(value, tuple):
            return value
        before, equals, after = value.partition("=")
        if not equals:
            self.fail(f"{value!r}: write ADDR:PORT=ADDR:PORT, as *:80=127.0.0.1:8080", param, ctx)
        try:
            return _endpoint(before), _endpoint(after)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)


def _endpoint(text: str) -> Endpoint:
    """Raises ValueError: what is wrong with it."""
    import ipaddress

    host, colon, port = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{text!r} is no ADDR:PORT")
    if port != "*" and not (port.isdecimal() and 0 < int(port) < _PORTS):
        raise ValueError(f"port {port!r}: write 1 to 65535, or * for any")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r}: write [{host}]:{port}")
    if host != "*":
        try:
            host = str(ipaddress.ip_address(host))
        except ValueError:
            raise ValueError(f"{host!r} is no IP address, nor * for any") from None
    return host, 0 if port == "*" else int(port)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"stag run: {message}", err=True)
    sys.exit(code)


def _rules(path: str | None) -> Rules | None:
    if path is None:
        return None
    from steertag.family.rules import Rules

    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return Rules.parse(file.read(), path)
    except OSError as error:
        _fail(f"--rules {path}: {error.strerror or error}", _USAGE)
    except ValueError as error:
        _fail(f"--rules {error}", _USAGE)


def _devices(family: str, rules: Rules | None, specs: Sequence[str]) -> str | None:
    """The descriptions, looked at before anything is started, as STEERTAG_DEVICE has them."""
    if not specs:
        return None
    over_new_tcp = os.environ.get("STEERTAG_SDP_TRANSPORT") == "new_tcp"
    if rules is None and (family == "host" or (family == "sdp" and not over_new_tcp)):
        raise click.UsageError(
            f"--device is of --family new_tcp; {family} goes over the host's TCP"
            + (" unless STEERTAG_SDP_TRANSPORT is new_tcp" if family == "sdp" else "")
        )
    from steertag.runtime.interfaces import DeviceSpecError, parse_device

    for text in specs:
        try:
            parse_device(text)
        except DeviceSpecError as error:
            raise click.UsageError(str(error)) from None
    return ";".join(specs)


def _importable(modules: Sequence[str]) -> Sequence[str]:
    """As `python -m` has it: modules are looked for in the working directory too."""
    if modules and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    return modules


def _check(as_json: bool) -> NoReturn:
    from steertag.run import check

    findings = check.check()
    if as_json:
        click.echo(json.dumps(check.as_json(findings), indent=2))
    else:
        click.echo(check.report(findings))
    sys.exit(0 if check.possible(findings) else 1)


def _run(command: Sequence[str], config: RunConfig) -> NoReturn:
    from steertag.run.launch import run as launch

    try:
        status = launch(command, config)
    except OSError as error:
        _fail(error.strerror or str(error), _FAILED)
    sys.exit(128 - status if status < 0 else status)


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
)
@click.option(
    "--family",
    type=Family(),
    default="sdp",
    show_default=True,
    metavar="FAMILY",
    help="What serves the program's sockets: sdp, new_tcp, host, or a family's number.",
)
@click.option("--rules", "rules_file", metavar="FILE", help="Who goes where, as libsdp's rules.")
@click.option(
    "--map",
    "maps",
    type=Mapping(),
    multiple=True,
    metavar="ADDR:PORT=ADDR:PORT",
    help="Replace an address in bind, connect and sendto; * is any. Again for more.",
)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SPEC",
    help="Device of new_tcp, as tun:stag0,10.9.0.2/24,host=10.9.0.1/24; again for more"
    " (default: those in STEERTAG_DEVICE).",
)
@click.option("--relay", is_flag=True, help="Relay the octets even where the host carries them.")
@click.option(
    "--import",
    "modules",
    multiple=True,
    metavar="MODULE",
    help="First import MODULE, which may register families with the default Stack.",
)
@click.option(
    "--rtt",
    type=Seconds(0.0),
    default=0.0,
    metavar="SECONDS",
    help="Have connections take so much longer, to see what the program does then.",
)
@click.option("--stats", is_flag=True, help="At the end, print counters to standard error.")
@click.option("--verbose", "-v", is_flag=True, help="Print every call that is answered here.")
@click.option("--check", "only_check", is_flag=True, help="Say what this machine allows, and end.")
@click.option("--json", "as_json", is_flag=True, help="With --check: print JSON.")
@click.argument("command", nargs=-1, metavar="[--] PROGRAM [ARGS]...", type=click.UNPROCESSED)
def run(
    family: str,
    rules_file: str | None,
    maps: tuple[tuple[Endpoint, Endpoint], ...],
    devices: tuple[str, ...],
    relay: bool,
    modules: tuple[str, ...],
    rtt: float,
    stats: bool,
    verbose: bool,
    only_check: bool,
    as_json: bool,
    command: tuple[str, ...],
) -> None:
    """Run PROGRAM, unchanged, with its sockets served by a family of steertag's.

    Children and threads of the program are covered. The exit code is the program's, 128 and the
    signal's number if one killed it, 126 if it can't be executed, 127 if there is no such program,
    125 if `stag run` itself failed.
    """
    if only_check:
        if command:
            raise click.UsageError("--check runs nothing; leave the program out")
        _check(as_json)
    if as_json:
        raise click.UsageError("--json is of --check")
    if not command:
        raise click.UsageError("name a program to run, as in: stag run curl http://127.0.0.1/")
    if rtt and family == "host" and not relay and rules_file is None:
        raise click.UsageError("--rtt is for connections that are relayed; add --relay")
    from steertag.run.launch import RunConfig

    rules = _rules(rules_file)
    config = RunConfig(
        family=family,
        rules=rules,
        maps=maps,
        device=_devices(family, rules, devices),
        verbose=verbose,
        relay=relay,
        rtt=rtt,
        stats=stats,
        modules=_importable(modules),
    )
    _run(command, config)
