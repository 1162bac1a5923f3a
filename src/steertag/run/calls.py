"""What is done for each call."""

from __future__ import annotations

from typing import Final

from steertag.run.calls_connect import connect
from steertag.run.calls_listen import accept, accept4, bind, listen
from steertag.run.calls_message import recvfrom, recvmmsg, recvmsg, sendmmsg, sendmsg, sendto
from steertag.run.calls_option import getsockopt, setsockopt
from steertag.run.calls_socket import getpeername, getsockname, shutdown, socket
from steertag.run.supervisor import Handler

HANDLERS: Final[dict[str, Handler]] = {
    "socket": socket,
    "bind": bind,
    "listen": listen,
    "accept": accept,
    "accept4": accept4,
    "connect": connect,
    "getsockname": getsockname,
    "getpeername": getpeername,
    "setsockopt": setsockopt,
    "getsockopt": getsockopt,
    "shutdown": shutdown,
    "sendto": sendto,
    "sendmsg": sendmsg,
    "sendmmsg": sendmmsg,
    "recvfrom": recvfrom,
    "recvmsg": recvmsg,
    "recvmmsg": recvmmsg,
}
"""By the call's name. Those that the filter lets pass never get here."""
