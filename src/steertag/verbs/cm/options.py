"""Options of a CMID (`rdma_set_option`), as options of the streams that carry connections."""

from __future__ import annotations

import errno
import socket as host
from typing import TYPE_CHECKING, Final

from steertag.errors import os_error
from steertag.verbs.enums import RDMA_OPTION_ID, RDMA_OPTION_ID_ACK_TIMEOUT

if TYPE_CHECKING:
    from steertag.runtime.stream import Stream
    from steertag.socket import socket as Socket  # noqa: N812

RDMA_OPTION_ID_TOS: Final = 0
RDMA_OPTION_ID_REUSEADDR: Final = 1
RDMA_OPTION_ID_AFONLY: Final = 2
_ACK_TIMEOUT_UNIT: Final = 4.096e-6
_ACK_TIMEOUT_MAX: Final = 31
_TCP_USER_TIMEOUT: Final = 18  # netinet/tcp.h; milliseconds
_UNKNOWN: Final = (errno.ENOPROTOOPT, errno.EOPNOTSUPP)


class CmOptions:
    """What `rdma_set_option` was told, and what it comes to.

    Attributes:
        ack_timeout: the exponent of 4.096 us x 2^n; None: the stream decides. 0 is without end.
    """

    def __init__(self) -> None:
        self.ack_timeout: int | None = None
        self._tos: int | None = None
        self._reuse = True
        self._family_only = False

    def copy(self) -> CmOptions:
        """For a connection that comes from a listener."""
        copy = CmOptions()
        vars(copy).update(vars(self))
        return copy

    def set(self, level: int, option: int, value: int, size: int) -> None:
        """Raises OSError: ENOSYS for an option that isn't known, EINVAL for a value or size that
        doesn't fit it.
        """
        known = {
            RDMA_OPTION_ID_TOS: (1, 0xFF),
            RDMA_OPTION_ID_REUSEADDR: (4, 1),
            RDMA_OPTION_ID_AFONLY: (4, 1),
            RDMA_OPTION_ID_ACK_TIMEOUT: (1, _ACK_TIMEOUT_MAX),
        }
        if level != RDMA_OPTION_ID or option not in known:
            raise os_error(errno.ENOSYS, f"option {option} of level {level}")
        octets, most = known[option]
        if size != octets or not 0 <= value <= most:
            raise os_error(
                errno.EINVAL, f"option {option}: value {value} in {size} octets; it is 0 to {most}"
            )
        if option == RDMA_OPTION_ID_TOS:
            self._tos = value
        elif option == RDMA_OPTION_ID_REUSEADDR:
            self._reuse = bool(value)
        elif option == RDMA_OPTION_ID_AFONLY:
            self._family_only = bool(value)
        else:
            self.ack_timeout = value

    def apply_before_bind(self, sock: Socket, family: int) -> None:
        """Raises what the socket's setsockopt raises."""
        sock.setsockopt(host.SOL_SOCKET, host.SO_REUSEADDR, int(self._reuse))
        if family == host.AF_INET6:
            sock.setsockopt(host.IPPROTO_IPV6, host.IPV6_V6ONLY, int(self._family_only))

    def apply(self, stream: Stream, retries: int) -> None:
        """To a stream, or to a listening socket, whose streams inherit it.

        Small FPDUs leave at once (TCP_NODELAY): the RNIC gathers what belongs together itself.
        `retries`: how often the acknowledgement time may pass before the connection is lost.
        """
        _set(stream, host.IPPROTO_TCP, host.TCP_NODELAY, 1)
        if self._tos is not None:
            _set(stream, host.IPPROTO_IP, host.IP_TOS, self._tos)
            _set(stream, host.IPPROTO_IPV6, host.IPV6_TCLASS, self._tos)
        if self.ack_timeout is not None:
            seconds = _ACK_TIMEOUT_UNIT * (1 << self.ack_timeout) * (retries + 1)
            milliseconds = max(1, round(seconds * 1000)) if self.ack_timeout else 0
            _set(stream, host.IPPROTO_TCP, _TCP_USER_TIMEOUT, min(milliseconds, (1 << 31) - 1))


def _set(stream: Stream, level: int, option: int, value: int) -> None:
    """What a family doesn't have is left as it is."""
    set_option = getattr(stream, "setsockopt", None)
    if set_option is None:
        return
    try:
        set_option(level, option, value)
    except OSError as exc:
        if exc.errno not in _UNKNOWN:
            raise
