"""A module as `stag run --import` takes it: it brings a family by a number of its own."""

from __future__ import annotations

import new_protocol

from steertag.device.memory import loopback
from steertag.family import Stack

NODE = "10.0.0.1"


def register(stack: Stack) -> None:
    """The example's family, on a node whose frames come back.

    Its device has a name of its own: "lo" is that of AF_INET_NEW_TCP's, in the same Stack.
    """
    new_protocol.register(stack, loopback("example0"), NODE)
