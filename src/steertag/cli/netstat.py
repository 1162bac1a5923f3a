"""`stag netstat`: what the network stacks of programs have counted."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from steertag.cli.stack import JSON, PID, ask, with_stack

if TYPE_CHECKING:
    from steertag.family import Stack


@click.command()
@click.option("-s", "--statistics", is_flag=True, help="The counters; there is nothing else yet.")
@click.option("-z", "--zeros", is_flag=True, help="Also those that are zero, as nstat has it.")
@PID
@JSON
@with_stack
def netstat(stack: Stack, statistics: bool, zeros: bool, pid: int | None, as_json: bool) -> None:
    """Print the counters of your programs' AF_INET_NEW_TCP, under the kernel's names.

    They are those of /proc/net/snmp, netstat and snmp6. Programs are seen from their first network
    device, or their first RNIC, on.
    """
    from steertag.observe import netstat as listing

    if not statistics:
        raise click.UsageError("say -s for the counters; `stag sockets` lists the sockets")
    if pid == os.getpid():
        found = listing.owned(stack)
    else:
        found = listing.owned(stack if pid is None else None, ask("netstat", pid))
    if as_json:
        click.echo(json.dumps(listing.as_json(found, zeros=zeros), indent=2))
    elif found:
        click.echo(listing.format(found, zeros=zeros))
    else:
        click.echo("stag: no program with AF_INET_NEW_TCP is running", err=True)
