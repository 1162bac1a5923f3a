"""Calls that wait for what is no object of this package: channels of the program's own, names."""

from __future__ import annotations

import asyncio
import errno

from steertag.errors import os_error
from steertag.verbs.aio.context import Context
from steertag.verbs.aio.readiness import next_of
from steertag.verbs.cm.addrinfo import AddrInfo
from steertag.verbs.cm.event import CMEvent, CMEventChannel
from steertag.verbs.cq import CQ, CompChannel


async def get_cm_event(channel: CMEventChannel) -> CMEvent:
    """The channel's next event, waited for on its descriptor; the program's to acknowledge.

    For CMIDs whose Context has a thread, or is an `aio.Context`.
    """
    return await next_of(channel.fileno(), lambda: channel.get_event(0))


async def get_cq_event(channel: CompChannel, expected_cq: CQ | None = None) -> CQ:
    """The channel's next event, waited for on its descriptor; the program's to acknowledge.

    Raises OSError EINVAL for an event of another queue than `expected_cq`, and where nobody would
    move the octets: the Context has no thread and is no `aio.Context`.
    """
    context = channel.context
    if not context.loop.threaded and not isinstance(context, Context):
        raise os_error(errno.EINVAL, "the channel's Context is driven by nobody: use aio.Context")
    return await next_of(channel.fileno(), lambda: channel.get_cq_event(expected_cq, 0))


async def addrinfo(
    src: str | None = None,
    dst: str | None = None,
    src_service: str | int | None = None,
    dst_service: str | int | None = None,
    *,
    flags: int = 0,
) -> AddrInfo:
    """An `AddrInfo`, its names looked up in a thread, as `loop.getaddrinfo` does it."""
    return await asyncio.to_thread(AddrInfo, src, dst, src_service, dst_service, flags=flags)
