"""`stag protocols`, `stag sockets`, `stag sysctl`: looking at a Stack.

A Stack lives in a process. These commands show that of the `stag` process itself: the families
that it would use, and with `--load` or `--import` those of other packages. `sockets` shows those of
the user's other processes too, and `-p` has `sockets` and `sysctl` show one of them, asked through
its inspection socket (`steertag.observe.inspect`). A program shows its own with the functions that
these commands call: `steertag.observe.protocols.format(stack)` and so on.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import update_wrapper
from typing import TYPE_CHECKING, NoReturn

import click

if TYPE_CHECKING:
    from steertag.family import Stack
    from steertag.observe.processes import Process

JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


PID = click.option(
    "-p", "--pid", type=click.IntRange(1), metavar="PID", help="Show that process only."
)


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"stag: {message}", err=True)
    sys.exit(code)


@contextmanager
def _explained() -> Iterator[None]:
    """An OSError is one line on standard error, and exit code 1."""
    try:
        yield
    except OSError as exc:
        hint = "; `stag sysctl -a` lists them" if exc.errno == errno.ENOENT else ""
        _fail(f"{exc.strerror or exc}{hint}")


def with_stack(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command the default Stack, with what the options ask for loaded into it."""

    @click.option("--load", is_flag=True, help="First load every family that a package brings.")
    @click.option(
        "--import",
        "modules",
        multiple=True,
        metavar="MODULE",
        help="First import MODULE, which may register protocols with the default Stack.",
    )
    def wrapper(load: bool, modules: tuple[str, ...], **options: object) -> None:
        from steertag import default_stack

        with _explained():
            stack = default_stack()
            if load:
                stack.load_announced_families()
        for module in modules:
            _import(module)
        command(stack, **options)

    return update_wrapper(wrapper, command)


def _import(module: str) -> None:
    try:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        importlib.import_module(module)
    except Exception as exc:  # noqa: BLE001  # somebody's module: whatever it raises is reported
        _fail(f"--import {module}: {type(exc).__name__}: {exc}", 2)


def ask(want: str, pid: int | None = None) -> list[Process]:
    """What the user's other processes say; those that don't are told of on standard error."""
    from steertag.observe.processes import listing

    with _explained():
        found = listing([want], None if pid is None else [pid])
    for silent, reason in found.silent:
        click.echo(f"stag: process {silent} is left out: {reason}", err=True)
    if pid is not None and not found.processes:
        sys.exit(1)
    return [process for process in found.processes if process.pid != os.getpid()]


@click.command()
@JSON
@with_stack
def protocols(stack: Stack, as_json: bool) -> None:
    """List registered protocols, in the columns of /proc/net/protocols.

    Memory is in quanta of 4096 octets. The columns of two letters say which functions a protocol
    has: cl close, co connect, di disconnect, ac accept, io ioctl, in init, de destroy,
    sh shutdown, ss setsockopt, gs getsockopt, se sendmsg, re recvmsg, bi bind, br backlog_rcv,
    ha hash, uh unhash, gp get_port, em enter_memory_pressure.
    """
    from steertag.observe import protocols as listing

    click.echo(json.dumps(listing.as_json(stack), indent=2) if as_json else listing.format(stack))


@click.command()
@click.option("-a", "--all", "everything", is_flag=True, help="Listening and other sockets.")
@click.option("-l", "--listening", is_flag=True, help="Listening sockets only.")
@click.option("-i", "--info", is_flag=True, help="Timers, windows, round trips: as ss -i and -o.")
@PID
@JSON
@with_stack
def sockets(
    stack: Stack, everything: bool, listening: bool, info: bool, pid: int | None, as_json: bool
) -> None:
    """List the sockets of your programs' Stacks, in the columns of ss.

    All but listening ones, as ss does. Programs are seen from their first RNIC, or their first
    network device, on.
    """
    from steertag.observe import sockets as listing

    wanted = None if everything else listening
    own = stack if pid is None or pid == os.getpid() else None
    found = listing.owned(own, ask("sockets", pid), listening=wanted)
    if as_json:
        click.echo(json.dumps(listing.owned_json(found), indent=2))
    else:
        click.echo(listing.format_owned(found, info=info))


@click.command()
@click.argument("settings", metavar="[NAME[=VALUE]]...", nargs=-1)
@click.option("-a", "--all", "everything", is_flag=True, help="Print every parameter.")
@click.option("-n", "--values", is_flag=True, help="Print values without names.")
@click.option("-w", "--write", is_flag=True, help="Refuse arguments that set nothing.")
@PID
@JSON
@with_stack
def sysctl(
    stack: Stack,
    settings: tuple[str, ...],
    everything: bool,
    values: bool,
    write: bool,
    pid: int | None,
    as_json: bool,
) -> None:
    """Read and set a Stack's parameters, as sysctl(8) does the kernel's.

    Values are integers; a row of them is separated by spaces or commas. What is set here is
    checked and printed, and ends with this process: to set it for a program, put it into the
    environment variable STEERTAG_SYSCTL ("net.core.rmem_max=4194304;net.core.somaxconn=128").
    With -p it reads those of a running program.
    """
    from steertag.observe import sysctl as listing

    if everything == bool(settings):
        raise click.UsageError("give names, or -a for all of them")
    if pid is not None and pid != os.getpid():
        _sysctl_of(pid, None if everything else settings, values, as_json)
        return
    names = []
    for setting in settings:
        name, equals, value = setting.partition("=")
        if write and not equals:
            raise click.UsageError(f"{setting!r} sets nothing: with -w say NAME=VALUE")
        with _explained():
            if equals:
                stack.sysctl.write(name, value)
            names.append(stack.sysctl.table(name).name)
    chosen = None if everything else names
    if as_json:
        click.echo(json.dumps(listing.as_json(stack, chosen), indent=2))
    elif values:
        click.echo("\n".join(map(stack.sysctl.format, stack.sysctl if chosen is None else names)))
    else:
        click.echo(listing.format(stack, chosen))


def _sysctl_of(pid: int, names: Sequence[str] | None, values: bool, as_json: bool) -> None:
    """Another process's parameters; they can be read only."""
    from steertag.observe import sysctl as listing

    for name in names or ():
        if "=" in name:
            raise click.UsageError(
                f"{name!r}: a running program's parameters can't be set; start it with"
                " STEERTAG_SYSCTL in its environment"
            )
    chosen = None if names is None else [name.replace("/", ".") for name in names]
    told = ask("sysctl", pid)[0].sysctl
    with _explained():
        text = listing.format_told(told, chosen)
        if as_json:
            click.echo(json.dumps({name: told[name] for name in chosen or told}, indent=2))
        elif values:
            click.echo("\n".join(listing.told_value(told, name) for name in chosen or told))
        else:
            click.echo(text)
