"""`--family` and `--device`: which TCP/IP a command talks over, and through which devices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from steertag.runtime.interfaces import DeviceSpec

HOST: Final = "host"
NEW_TCP: Final = "new_tcp"
_LOOPBACK: Final = "127.0.0.1"


class DeviceFailed(click.ClickException):
    """A device can't be had: a line, and exit code 1."""


@dataclass(frozen=True, slots=True)
class Network:
    """What a command talks over.

    Attributes:
        family: of its sockets; 0 is the host's TCP.
        address: where a server listens that is told no address.
    """

    family: int = 0
    address: str = _LOOPBACK


def family_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--family` and `--device`; it is called with `network`, the devices open."""

    @functools.wraps(command)
    def wrapper(*args: object, family: str, devices: tuple[str, ...], **kwargs: object) -> None:
        command(*args, network=open_network(family, devices), **kwargs)

    for decorate in (
        click.option(
            "--device",
            "devices",
            multiple=True,
            metavar="SPEC",
            help="Device of new_tcp, as tun:stag0,10.9.0.2/24,host=10.9.0.1/24; again for more"
            " (default: those in STEERTAG_DEVICE).",
        ),
        click.option(
            "--family",
            type=click.Choice([HOST, NEW_TCP]),
            default=HOST,
            show_default=True,
            help="Whose TCP/IP: the host's, or steertag's own (AF_INET_NEW_TCP).",
        ),
    ):
        wrapper = decorate(wrapper)
    return wrapper


def open_network(family: str, devices: tuple[str, ...]) -> Network:
    """Open the devices on the default Stack; they are there until the process ends.

    Raises:
        click.UsageError: a device that is none, or none at all, or one that nobody uses.
        DeviceFailed: it can't be had.
    """
    if family == HOST:
        if devices:
            raise click.UsageError("--device is of --family new_tcp; add that")
        return Network()
    from steertag import default_stack
    from steertag.inet.const import AF_INET_NEW_TCP
    from steertag.runtime.interfaces import open_new_tcp

    specs = _specs(devices)
    try:
        open_new_tcp(default_stack(), specs)
    except OSError as error:
        raise DeviceFailed(error.strerror or str(error)) from error
    return Network(AF_INET_NEW_TCP, specs[0].addresses[0].partition("/")[0])


def _specs(devices: tuple[str, ...]) -> list[DeviceSpec]:
    from steertag.runtime.interfaces import DeviceSpecError, environment_devices, parse_device

    try:
        specs = [parse_device(text) for text in devices] or environment_devices()
    except DeviceSpecError as error:
        raise click.UsageError(str(error)) from None
    if not specs:
        raise click.UsageError(
            "--family new_tcp needs a device: add --device tun:stag0,10.9.0.2/24,host=10.9.0.1/24"
        )
    return specs
