"""`stag link`: the network devices of programs."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from steertag.cli.stack import JSON, PID, ask, with_stack

if TYPE_CHECKING:
    from steertag.family import Stack


@click.command()
@click.argument("name", required=False)
@click.option(
    "--device",
    "devices",
    multiple=True,
    metavar="SPEC",
    help="First open a device, as tun:stag0,10.9.0.2/24,host=10.9.0.1/24: shows what it can do.",
)
@PID
@JSON
@with_stack
def link(
    stack: Stack, name: str | None, devices: tuple[str, ...], pid: int | None, as_json: bool
) -> None:
    """List the network devices of your programs' Stacks, or those called NAME, as ip -s link.

    A super-segment counts as one packet. Programs are seen from their first network device, or
    their first RNIC, on.
    """
    from steertag.observe import links as listing

    if devices:
        from steertag.cli.device import NEW_TCP, open_network

        open_network(NEW_TCP, devices)
    own = stack if pid is None or pid == os.getpid() else None
    found = listing.owned(own, ask("links", pid))
    if name is not None:
        found = [one for one in found if one.link.get("ifname") == name]
        if not found:
            raise click.ClickException(f"no program has a device {name}")
    if as_json:
        click.echo(json.dumps(listing.as_json(found), indent=2))
    elif found:
        click.echo(listing.format(found))
    else:
        click.echo("stag: no program with a network device is running", err=True)
