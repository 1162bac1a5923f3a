"""The `stag` command: a table of sub-commands, each imported only when it is used.

Start-up matters for a command that people put in loops: this module imports click and nothing
else of weight; a sub-command's module is imported when that sub-command is run or asked for help.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click

from steertag import __version__
from steertag.cli import output

_INTERRUPTED: Final = 130

# name -> (module:attribute, one line for `stag --help`).
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "serve": ("steertag.cli.transfer:serve", "Serve a directory to stag clients."),
    "get": ("steertag.cli.transfer:get", "Fetch a file from a stag server."),
    "put": ("steertag.cli.transfer:put", "Send a file to a writable stag server."),
    "ls": ("steertag.cli.transfer:ls", "List a directory of a stag server."),
    "demo": ("steertag.cli.demo:demo", "Move a file over four paths and show the figures."),
    "bench": ("steertag.cli.bench:bench", "Measure RDMA Write, Read, Send against a socket."),
    "run": ("steertag.cli.run:run", "Run any program over a family of steertag's."),
    "rdma": ("steertag.cli.rdma:rdma", "List the RNICs of running programs, as rdma(8) does."),
    "rping": ("steertag.cli.fabric:rping", "Ping-pong by RDMA, as librdmacm's rping."),
    "ucmatose": ("steertag.cli.fabric:ucmatose", "Connect and send, as librdmacm's ucmatose."),
    "rdma-client": ("steertag.cli.fabric:rdma_client", "The client of librdmacm's rdma_server."),
    "rdma-server": ("steertag.cli.fabric:rdma_server", "The server of librdmacm's rdma_client."),
    "decode": ("steertag.cli.decode:decode", "Decode the iWARP connections in a capture."),
    "protocols": ("steertag.cli.stack:protocols", "List protocols, as /proc/net/protocols does."),
    "sockets": ("steertag.cli.stack:sockets", "List a Stack's sockets, as ss does."),
    "netstat": ("steertag.cli.netstat:netstat", "Print a Stack's counters, as netstat -s."),
    "ping": ("steertag.cli.ping:ping", "Ping a host from steertag's own TCP/IP."),
    "link": ("steertag.cli.link:link", "List a Stack's network devices, as ip -s link."),
    "sysctl": ("steertag.cli.stack:sysctl", "Read and set a Stack's parameters."),
    "completion": ("steertag.cli.completion:completion", "Print a shell completion script."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported by name."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        with output.reader_may_leave():  # `--help` and `--version` print from here
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: click.Context) -> object:
        try:
            with output.reader_may_leave():
                return super().invoke(ctx)
        except KeyboardInterrupt:  # before the command could take it, or it has no need to
            click.echo("stag: interrupted", err=True)
            raise SystemExit(_INTERRUPTED) from None

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, so that `--help` imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="stag")
def cli() -> None:
    """Move files and memory over TCP and RDMA, and look at the network stack that does it."""


def main() -> None:
    """Entry point of the `stag` script."""
    try:
        cli(prog_name="stag")
    except OSError as error:
        # Commands explain the errors of their work; what is left is output that can't be written.
        output.mute()
        print(f"stag: cannot write the output: {error.strerror or error}", file=sys.stderr)
        sys.exit(1)
    finally:
        output.settle()


if __name__ == "__main__":
    main()
