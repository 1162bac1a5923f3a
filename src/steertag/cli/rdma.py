"""`stag rdma`: the RNICs of running programs, in the words of iproute2's rdma(8)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import click

from steertag import __version__

if TYPE_CHECKING:
    from steertag.observe.processes import Process
    from steertag.observe.rdma import Entry, Filters

_USAGE: Final = {
    "rdma": """\
Usage: stag rdma [ OPTIONS ] OBJECT { COMMAND | help }
where  OBJECT := { dev | link | resource | system | statistic }
       OPTIONS := { -V | -d | -j | -p | --pid PID }""",
    "dev": "Usage: stag rdma dev show [ DEV ]",
    "link": "Usage: stag rdma link show [ DEV/PORT ]",
    "resource": """\
Usage: stag rdma resource show [ DEV ]
       stag rdma resource show { qp | cm_id } [ link DEV/PORT ] [ FILTER VALUE ]...
       stag rdma resource show { cq | mr | pd | ctx | srq } [ dev DEV ] [ FILTER VALUE ]...
VALUE  := 7 | 1,3 | 2-6 | WORD[,WORD]...; an unknown FILTER is answered with those there are""",
    "system": "Usage: stag rdma system show [ netns ]",
    "statistic": """\
Usage: stag rdma statistic show [ link DEV/PORT ]
       stag rdma statistic qp show [ link DEV/PORT ] [ FILTER VALUE ]...
       stag rdma statistic qp mode [ link DEV/PORT ]
       stag rdma statistic mode [ supported ] [ link DEV/PORT ]
FILTER := { cntn | lqpn | pid | qp-type }""",
}
_REFUSED: Final = {
    "dev set": "a device belongs to the programs that opened it; they choose its name and network",
    "dev add": "a program opens its device itself (steertag.verbs.Context); there is none to add",
    "dev delete": "a device goes with the programs that opened it; end them",
    "link add": "a device is bound to no network interface: it uses its program's routes",
    "link delete": "a device goes with the programs that opened it; end them",
    "resource set": "a queue pair or a region is its program's to change",
    "system set": "every program's device is in the network namespace of that program",
    "statistic set": "there are no optional counters: all of them are always counted",
    "statistic unset": "there are no optional counters: all of them are always counted",
    "statistic qp set": "every queue pair has counters of its own already",
    "statistic qp bind": "every queue pair has counters of its own already",
    "statistic qp unbind": "every queue pair has counters of its own, for as long as it lives",
    "statistic mr": "regions have no counters of their own; see stag rdma statistic qp show",
}


def _fail(message: str, code: int = 1) -> NoReturn:
    click.echo(f"stag rdma: {message}", err=True)
    sys.exit(code)


@dataclass(slots=True)
class _Command:
    """The words of a command line that are still to be read, and the options."""

    words: list[str]
    as_json: bool
    pretty: bool
    details: bool
    pids: tuple[int, ...]
    incomplete: bool = False

    def next(self) -> str | None:
        return self.words.pop(0) if self.words else None

    def branch(self, where: str, table: Mapping[str, Callable[[_Command], None]]) -> None:
        """Go where the next word says; the first row is for none. Words may be abbreviated."""
        word = self.next()
        if word is None:
            next(iter(table.values()))(self)
            return
        for name, action in table.items():
            if name.startswith(word):
                action(self)
                return
        names = ", ".join(filter(None, table))
        _fail(f"unknown {where} {word!r}; there is {names}; see stag rdma help", 2)

    def done(self) -> None:
        if self.words:
            _fail(f"{self.words[0]!r} is one word too many; see stag rdma help", 2)

    def device(self, *, port: bool) -> bool:
        """A device's name, and port, if the words begin with one; whether it is one with rows.

        `DEV/-` names what has no port yet: nothing, here.
        """
        from steertag.observe.rdma import PORT, devices

        name, slash, number = (self.next() or "").partition("/")
        if name not in devices() or (slash and not port):
            _fail(f"no device {name + slash + number!r}; there is {', '.join(devices())}")
        if slash and number not in ("", "-", str(PORT)):
            _fail(f"{name} has no port {number}; it has {PORT}")
        return number != "-"

    def processes(self) -> list[Process]:
        from steertag.observe.processes import listing

        try:
            found = listing(["rdma"], self.pids or None)
        except OSError as exc:
            _fail(exc.strerror or str(exc))
        for pid, reason in found.silent:
            click.echo(f"stag rdma: process {pid} is left out: {reason}", err=True)
        self.incomplete = bool(found.silent)
        return found.processes

    def show(self, entries: Iterable[Entry]) -> None:
        from steertag.observe.rdma import as_json, as_text

        text = as_json(entries, pretty=self.pretty) if self.as_json else as_text(entries)
        click.echo(text, nl=False)
        if self.incomplete:
            sys.exit(1)


def _refuse(what: str) -> Callable[[_Command], None]:
    def refuse(_: _Command) -> None:
        _fail(f"{what}: {_REFUSED[what]}")

    return refuse


def _help(topic: str) -> Callable[[_Command], None]:
    return lambda _: click.echo(_USAGE[topic])


# -- dev, link, system ---------------------------------------------------------------------------


def _dev_show(command: _Command) -> None:
    from steertag.observe import rdma

    if command.words:
        command.device(port=False)
    command.done()
    command.show(rdma.dev(details=command.details))


def _dev(command: _Command) -> None:
    command.branch(
        "dev command",
        {
            "show": _dev_show,
            "list": _dev_show,
            "set": _refuse("dev set"),
            "add": _refuse("dev add"),
            "delete": _refuse("dev delete"),
            "help": _help("dev"),
        },
    )


def _link_show(command: _Command) -> None:
    from steertag.observe import rdma

    shown = command.device(port=True) if command.words else True
    command.done()
    command.show(rdma.link() if shown else [])


def _link(command: _Command) -> None:
    command.branch(
        "link command",
        {
            "show": _link_show,
            "list": _link_show,
            "add": _refuse("link add"),
            "delete": _refuse("link delete"),
            "help": _help("link"),
        },
    )


def _system_show(command: _Command) -> None:
    from steertag.observe import rdma

    word = command.next()
    if word is not None and not "netns".startswith(word):
        _fail(f"unknown parameter {word!r}; there is netns", 2)
    command.done()
    command.show(rdma.system())


def _system(command: _Command) -> None:
    command.branch(
        "system command",
        {
            "show": _system_show,
            "list": _system_show,
            "set": _refuse("system set"),
            "help": _help("system"),
        },
    )


# -- resource ------------------------------------------------------------------------------------


def _filters(command: _Command, kind: str) -> tuple[Filters, bool]:
    """The rest of the words as pairs; false where they name a device that has no such rows."""
    from steertag.observe.rdma import Filters

    filters, shown = Filters(kind), True
    while (name := command.next()) is not None:
        if not command.words:
            _fail(f"{name!r} of {kind} wants a value", 2)
        if name in ("dev", "link"):
            shown = command.device(port=name == "link") and shown
            continue
        try:
            filters.add(name, command.words.pop(0))
        except ValueError as exc:
            _fail(str(exc), 2)
    return filters, shown


def _resource_of(kind: str) -> Callable[[_Command], None]:
    def show(command: _Command) -> None:
        from steertag.observe import rdma

        filters, shown = _filters(command, kind)
        processes = command.processes() if shown else []
        command.show(rdma.resource(processes, kind, filters, details=command.details))

    return show


def _resource_summary(command: _Command) -> None:
    from steertag.observe import rdma

    command.show(rdma.summary(command.processes()))


def _resource_show(command: _Command) -> None:
    from steertag.observe.rdma import KINDS, devices

    if len(command.words) == 1 and command.words[0] in devices():
        command.next()
    command.branch(
        "kind of resource",
        {"": _resource_summary, **{kind: _resource_of(kind) for kind in KINDS}},
    )


def _resource(command: _Command) -> None:
    command.branch(
        "resource command",
        {
            "show": _resource_show,
            "list": _resource_show,
            "set": _refuse("resource set"),
            "help": _help("resource"),
        },
    )


# -- statistic -----------------------------------------------------------------------------------


def _link_option(command: _Command) -> bool:
    """`link DEV/PORT`, or nothing; whether there is anything to show."""
    shown = True
    if command.words:
        word = command.next() or ""
        if not "link".startswith(word):
            _fail(f"unknown parameter {word!r}; there is link", 2)
        shown = command.device(port=True) if command.words else True
    command.done()
    return shown


def _statistic_show(command: _Command) -> None:
    from steertag.observe import rdma

    if command.words and "mr".startswith(command.words[0]):
        _refuse("statistic mr")(command)
    if _link_option(command):
        command.show(rdma.statistic(command.processes()))
    else:
        command.show([])


def _statistic_qp_show(command: _Command) -> None:
    from steertag.observe import rdma

    filters, shown = _filters(command, "statistic qp")
    processes = command.processes() if shown else []
    command.show(rdma.qp_statistic(processes, filters))


def _statistic_qp_mode(command: _Command) -> None:
    from steertag.observe import rdma

    command.show(rdma.qp_mode() if _link_option(command) else [])


def _statistic_qp(command: _Command) -> None:
    command.branch(
        "statistic qp command",
        {
            "show": _statistic_qp_show,
            "list": _statistic_qp_show,
            "mode": _statistic_qp_mode,
            "set": _refuse("statistic qp set"),
            "bind": _refuse("statistic qp bind"),
            "unbind": _refuse("statistic qp unbind"),
            "help": _help("statistic"),
        },
    )


def _statistic_mode(command: _Command) -> None:
    """Optional counters by link: as there are none, no link has a line."""
    if command.words and "supported".startswith(command.words[0]):
        command.next()
    _link_option(command)
    command.show([])


def _statistic(command: _Command) -> None:
    command.branch(
        "statistic command",
        {
            "show": _statistic_show,
            "list": _statistic_show,
            "help": _help("statistic"),
            "qp": _statistic_qp,
            "mr": _refuse("statistic mr"),
            "mode": _statistic_mode,
            "set": _refuse("statistic set"),
            "unset": _refuse("statistic unset"),
        },
    )


# -- the command ---------------------------------------------------------------------------------


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("words", metavar="[OBJECT [COMMAND [ARGUMENT]...]]", nargs=-1)
@click.option("-j", "--json", "as_json", is_flag=True, help="Print JSON, with rdma(8)'s keys.")
@click.option("-p", "--pretty", is_flag=True, help="With -j: indented.")
@click.option("-d", "--details", count=True, help="Add what only this RNIC knows (drv_...).")
@click.option("--pid", "pids", type=click.IntRange(1), multiple=True, help="Ask PID only.")
@click.version_option(__version__, "-V", "--version", prog_name="stag rdma")
def rdma(
    words: Sequence[str], as_json: bool, pretty: bool, details: int, pids: tuple[int, ...]
) -> None:
    """Look at the RNICs of your running programs, in the words of rdma(8).

    \b
    OBJECT is dev, link, resource, system or statistic; names may be abbreviated.
      stag rdma resource show             how many there are of everything
      stag rdma resource show qp          queue pairs; cm_id, cq, mr, pd, ctx, srq
      stag rdma res show qp state rts     those in state RTS
      stag rdma statistic show            counters, summed up
      stag rdma statistic qp show pid 77  those of one process, by queue pair
      stag rdma statistic help            every form there is

    Programs are asked through a socket that each opens for its user with its first RNIC; see
    STEERTAG_INSPECT in the documentation.
    """
    _Command(list(words), as_json, pretty, details > 0, pids).branch(
        "object",
        {
            "help": _help("rdma"),
            "dev": _dev,
            "link": _link,
            "resource": _resource,
            "system": _system,
            "statistic": _statistic,
        },
    )
