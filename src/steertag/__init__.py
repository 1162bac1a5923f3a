"""A network subsystem in user space, in the shape of Linux's, with a software RDMA NIC.

The names below are imported when first used, so that `import steertag` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steertag.family import (
        NPROTO,
        Counter,
        HashInfo,
        InetProtosw,
        InetSock,
        MsgHdr,
        NetProtoFamily,
        Proto,
        ProtoOps,
        SkBuff,
        Sock,
        Stack,
        inet_create,
    )
    from steertag.inet.const import AF_INET_NEW_TCP
    from steertag.patch.install import patch, unpatch
    from steertag.sdp.options import AF_INET_SDP
    from steertag.socket.default import (
        default_stack,
        proto_register,
        proto_unregister,
        sock_register,
        sock_unregister,
    )

__version__ = "0.1.0"

_FAMILY = "steertag.family"
_DEFAULT = "steertag.socket.default"
_HOME = {
    "AF_INET_NEW_TCP": "steertag.inet.const",
    "AF_INET_SDP": "steertag.sdp.options",
    "NPROTO": _FAMILY,
    "Counter": _FAMILY,
    "HashInfo": _FAMILY,
    "InetProtosw": _FAMILY,
    "InetSock": _FAMILY,
    "MsgHdr": _FAMILY,
    "NetProtoFamily": _FAMILY,
    "Proto": _FAMILY,
    "ProtoOps": _FAMILY,
    "SkBuff": _FAMILY,
    "Sock": _FAMILY,
    "Stack": _FAMILY,
    "default_stack": _DEFAULT,
    "inet_create": _FAMILY,
    "patch": "",  # the module, which can be called
    "proto_register": _DEFAULT,
    "proto_unregister": _DEFAULT,
    "sock_register": _DEFAULT,
    "sock_unregister": _DEFAULT,
    "unpatch": "steertag.patch",
}

__all__ = [
    "AF_INET_NEW_TCP",
    "AF_INET_SDP",
    "NPROTO",
    "Counter",
    "HashInfo",
    "InetProtosw",
    "InetSock",
    "MsgHdr",
    "NetProtoFamily",
    "Proto",
    "ProtoOps",
    "SkBuff",
    "Sock",
    "Stack",
    "__version__",
    "default_stack",
    "inet_create",
    "patch",
    "proto_register",
    "proto_unregister",
    "sock_register",
    "sock_unregister",
    "unpatch",
]


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not home:
        return importlib.import_module(f"{__name__}.{name}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
