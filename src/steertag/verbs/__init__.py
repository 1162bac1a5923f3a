"""The verbs API that applications import; names and call shapes as in pyverbs.

Everything is importable from here. Objects are context managers; closing a `Context` closes what
was made from it.
"""

from steertag.rdma.constants import WcStatus
from steertag.rdma.counters import Counters
from steertag.verbs.addr import AH, GID, AHAttr, GlobalRoute
from steertag.verbs.attr import DeviceAttr, DeviceAttrEx, GIDEntry, PortAttr
from steertag.verbs.cm.addrinfo import AddrInfo
from steertag.verbs.cm.cmid import CMID
from steertag.verbs.cm.conn_param import ConnParam
from steertag.verbs.cm.error import ConnectError
from steertag.verbs.cm.event import CMEvent, CMEventChannel, CMEventType
from steertag.verbs.cq import CQ, WC, CompChannel
from steertag.verbs.cqex import CQEX, CqInitAttrEx, PollCqAttr
from steertag.verbs.device import PD, Context, Device, get_device_list
from steertag.verbs.enums import *  # noqa: F403
from steertag.verbs.events import AsyncEvent
from steertag.verbs.mr import MR
from steertag.verbs.mw import MW, MWBind, MWBindInfo, SendWR, inc_rkey
from steertag.verbs.qp import QP, SGE, RecvWR
from steertag.verbs.qp_attr import QPAttr, QPCap, QPInitAttr, QPInitAttrEx
from steertag.verbs.qpex import QPEx
from steertag.verbs.srq import SRQ, SrqAttr, SrqInitAttr, SrqInitAttrEx
from steertag.verbs.text import wc_status_to_str

__all__ = [
    "AH",
    "CMID",
    "CQ",
    "CQEX",
    "GID",
    "MR",
    "MW",
    "PD",
    "QP",
    "SGE",
    "SRQ",
    "WC",
    "AHAttr",
    "AddrInfo",
    "AsyncEvent",
    "CMEvent",
    "CMEventChannel",
    "CMEventType",
    "CompChannel",
    "ConnParam",
    "ConnectError",
    "Context",
    "Counters",
    "CqInitAttrEx",
    "Device",
    "DeviceAttr",
    "DeviceAttrEx",
    "GIDEntry",
    "GlobalRoute",
    "MWBind",
    "MWBindInfo",
    "PollCqAttr",
    "PortAttr",
    "QPAttr",
    "QPCap",
    "QPEx",
    "QPInitAttr",
    "QPInitAttrEx",
    "RecvWR",
    "SendWR",
    "SrqAttr",
    "SrqInitAttr",
    "SrqInitAttrEx",
    "WcStatus",
    "get_device_list",
    "inc_rkey",
    "wc_status_to_str",
]
