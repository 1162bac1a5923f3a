"""pyverbs' `cmid`: connections."""

from __future__ import annotations

import errno
from typing import ClassVar

from steertag import verbs
from steertag.compat.pyverbs import libibverbs_enums as e
from steertag.compat.pyverbs import librdmacm_enums as ce
from steertag.compat.pyverbs.base import PyverbsCM, PyverbsObject, lines
from steertag.compat.pyverbs.cq import WC
from steertag.compat.pyverbs.device import Context
from steertag.compat.pyverbs.mr import MR
from steertag.compat.pyverbs.pd import PD
from steertag.compat.pyverbs.pyverbs_error import (
    PyverbsRDMAError,
    PyverbsUserError,
    failing,
    unsupported,
)
from steertag.compat.pyverbs.qp import ECE, QPAttr, QPInitAttr, init_attr_of
from steertag.rdma.qp_state import QpState

_MASK = e.ibv_qp_attr_mask
_REMOTE = (
    e.ibv_access_flags.IBV_ACCESS_REMOTE_WRITE
    | e.ibv_access_flags.IBV_ACCESS_REMOTE_READ
    | e.ibv_access_flags.IBV_ACCESS_REMOTE_ATOMIC
)
_CM_RESPONDER_RESOURCES = 1
_CM_INITIATOR_DEPTH = 1


class ConnParam(PyverbsObject):
    """What a connection is to be like. With `data_len`, room for `set_private_data`."""

    def __init__(
        self,
        resources: int = _CM_RESPONDER_RESOURCES,
        depth: int = _CM_INITIATOR_DEPTH,
        flow_control: int = 0,
        retry: int = 5,
        rnr_retry: int = 5,
        srq: int = 0,
        qp_num: int = 0,
        data_len: int = 0,
    ) -> None:
        super().__init__()
        self.responder_resources = resources
        self.initiator_depth = depth
        self.flow_control = flow_control
        self.retry_count = retry
        self.rnr_retry_count = rnr_retry
        self.srq = srq
        self.qpn = qp_num
        self._room = data_len
        self.private_data = b""

    def set_private_data(self, data: bytes) -> None:
        if min(self._room, len(data)):
            self.private_data = bytes(data[: self._room])

    def to_core(self) -> verbs.ConnParam:
        # Programs for other transports may have the accepting side send first.
        return verbs.ConnParam(
            self.responder_resources,
            self.initiator_depth,
            self.flow_control,
            self.retry_count,
            self.rnr_retry_count,
            self.srq,
            self.qpn,
            private_data=self.private_data,
            peer_to_peer=True,
        )

    def __str__(self) -> str:
        names = ["responder_resources", "initiator_depth", "flow_control", "retry_count"]
        return lines("Connection parameters: ", self, [*names, "rnr_retry_count", "srq", "qpn"])


def _param(param: ConnParam | None) -> verbs.ConnParam:
    """librdmacm takes as many Reads at once as the device has where it is told nothing."""
    if param is not None:
        return param.to_core()
    return verbs.ConnParam(peer_to_peer=True)


class AddrInfo(PyverbsObject):
    def __init__(
        self,
        src: str | None = None,
        dst: str | None = None,
        src_service: str | None = None,
        dst_service: str | None = None,
        port_space: int = 0,
        flags: int = 0,
    ) -> None:
        super().__init__()
        self.core = verbs.AddrInfo()
        if src or dst or src_service or dst_service:
            self.get_addrinfo(src, dst, src_service, dst_service, port_space, flags)

    def get_addrinfo(
        self,
        src: str | None = None,
        dst: str | None = None,
        src_service: str | None = None,
        dst_service: str | None = None,
        port_space: int = 0,
        flags: int = 0,
    ) -> None:
        if port_space not in (0, ce.rdma_port_space.RDMA_PS_TCP):
            raise unsupported("Failed to get Address Info: another port space than TCP")
        with failing("Failed to get Address Info"):
            self.core.get_addrinfo(src, dst, src_service, dst_service, int(port_space), int(flags))

    def close(self) -> None:
        self.core.close()


class CMEventChannel(PyverbsObject):
    """An event channel; `fd` becomes readable with an event."""

    def __init__(self) -> None:
        super().__init__()
        with failing("Failed to create CMEventChannel"):
            self.core = verbs.CMEventChannel()

    @property
    def fd(self) -> int:
        return self.core.fileno()

    def close(self) -> None:
        self.core.close()

    def __del__(self) -> None:
        if hasattr(self, "core"):
            self.close()


class CMEvent(PyverbsObject):
    """The next event of a channel, waited for."""

    def __init__(self, channel: CMEventChannel) -> None:
        super().__init__()
        with failing("Failed to create CMEvent"):
            self.core = verbs.CMEvent(channel.core)
        self._acknowledged = False

    @property
    def event_type(self) -> int:
        return ce.rdma_cm_event_type(self.core.event_type)

    @property
    def status(self) -> int:
        return self.core.status

    @property
    def private_data(self) -> bytes:
        return self.core.private_data

    def event_str(self) -> str:
        return "" if self._acknowledged else self.core.event_str()

    def ack_cm_event(self) -> None:
        with failing(f"Failed to Acknowledge Event - {self.event_str()}"):
            self.core.ack_cm_event()
        self._acknowledged = True

    def close(self) -> None:
        if not self._acknowledged:
            self.ack_cm_event()


class UDParam(PyverbsObject):
    """How to reach a peer with datagrams, which iWARP doesn't have."""

    def __init__(self, cm_event: CMEvent) -> None:
        super().__init__()
        raise unsupported("UDParam")


class JoinMCAttrEx(PyverbsObject):
    def __init__(self, addr: AddrInfo, comp_mask: int = 0, join_flags: int = 0) -> None:
        super().__init__()
        self.addr = addr
        self.comp_mask = comp_mask
        self.join_flags = join_flags


class CMID(PyverbsCM):
    """A connection, or a listener.

    Args:
        creator: an AddrInfo (synchronous), a CMEventChannel (asynchronous), or the CMEvent of a
            request, with the listener as `listen_id`.
    """

    closing: ClassVar[str] = "Failed to close CMID"
    core: verbs.CMID

    def __init__(
        self,
        creator: object = None,
        qp_init_attr: QPInitAttr | None = None,
        pd: PD | None = None,
        port_space: int = ce.rdma_port_space.RDMA_PS_TCP,
        listen_id: CMID | None = None,
        *,
        core: verbs.CMID | None = None,
    ) -> None:
        super().__init__()
        self.event_channel: CMEventChannel | None = None
        self._pd = pd
        self._context: Context | None = None
        self._qp_init_attr = qp_init_attr
        if port_space != ce.rdma_port_space.RDMA_PS_TCP:
            raise unsupported("Failed to create CM ID: another port space than TCP")
        with failing("Failed to create CM ID"):
            if core is not None:
                self.core = core
            elif isinstance(creator, AddrInfo):
                init = None if qp_init_attr is None else qp_init_attr.to_core()
                self.core = verbs.CMID(creator.core, init, None if pd is None else pd.core)
                if init is not None and not creator.core.passive:
                    self.core.create_qp()
            elif isinstance(creator, CMEventChannel):
                self.event_channel = creator
                self.core = verbs.CMID(creator.core)
            elif isinstance(creator, CMEvent):
                if listen_id is None:
                    raise PyverbsUserError("listen ID not provided")
                self.event_channel = listen_id.event_channel
                self.core = verbs.CMID(creator.core, listen_id=listen_id.core)
            else:
                raise PyverbsRDMAError(f"Cannot create CM ID from {type(creator)}", errno.EINVAL)
        self._open = True

    def _release(self) -> None:
        self.core.close()

    # -- what it is ----------------------------------------------------------------------------

    @property
    def dev_name(self) -> str:
        return self.core.dev_name

    @property
    def port_num(self) -> int:
        return self.core.port_num

    @property
    def qpn(self) -> int | None:
        return self.core.qpn

    @property
    def context(self) -> Context:
        if self._context is None:
            self._context = Context(core=self.core.context)
        return self._context

    @property
    def pd(self) -> PD:
        if self._pd is None:
            self._pd = PD(self.context, core=self.core.pd)
        return self._pd

    # -- setting up ----------------------------------------------------------------------------

    def bind_addr(self, lai: AddrInfo) -> None:
        with failing("Failed to Bind ID"):
            self.core.bind_addr(lai.core)

    def resolve_addr(self, rai: AddrInfo, timeout_ms: int = 2000) -> None:
        with failing("Failed to Resolve Address"):
            self.core.resolve_addr(rai.core, timeout_ms)

    def resolve_route(self, timeout_ms: int = 2000) -> None:
        with failing("Failed to Resolve Route"):
            self.core.resolve_route(timeout_ms)

    def resolve_addrinfo(
        self,
        node: str | None = None,
        service: str | None = None,
        port_space: int = 0,
        flags: int = 0,
    ) -> None:
        with failing("Failed to Resolve AddrInfo"):
            self.core.resolve_addrinfo(node, service, int(port_space), int(flags))

    def query_addrinfo(self) -> AddrInfo:
        info = AddrInfo()
        with failing("Failed to Query AddrInfo"):
            info.core = self.core.query_addrinfo()
        return info

    def listen(self, backlog: int = 0) -> None:
        with failing("Listen Failed"):
            self.core.listen(backlog)

    def get_request(self) -> CMID:
        with failing("Failed to get request, no connection established"):
            request = CMID(core=self.core.get_request())
            if self._qp_init_attr is not None:
                request.core.create_qp()
        return request

    def connect(self, param: ConnParam | None = None) -> None:
        with failing("Failed to Connect"):
            self.core.connect(_param(param))

    def accept(self, param: ConnParam | None = None) -> None:
        with failing("Failed to Accept Connection"):
            self.core.accept(_param(param))

    def reject(self, private_data: bytes | None = None) -> None:
        with failing("Failed to Reject Connection"):
            self.core.reject(private_data)

    def establish(self) -> None:
        with failing("Failed to Complete an active connection request"):
            self.core.establish()

    def disconnect(self) -> None:
        with failing("Failed to Disconnect"):
            self.core.disconnect()

    def set_option(self, level: int, optname: int, optval: int, optlen: int) -> None:
        if optname != ce.RDMA_OPTION_ID_ACK_TIMEOUT:
            raise PyverbsUserError(
                "Currently only RDMA_OPTION_ID_ACK_TIMEOUT is supported in Pyverbs."
            )
        with failing("Failed to set option"):
            self.core.set_option(int(level), int(optname), int(optval), optlen)

    def join_multicast(
        self,
        addr: AddrInfo | None = None,
        mc_attr: JoinMCAttrEx | None = None,
        context: int = 0,
    ) -> None:
        raise unsupported("Failed to Join multicast")

    def leave_multicast(self, addr: AddrInfo) -> None:
        raise unsupported("Failed to leave multicast")

    # -- its queue pair ------------------------------------------------------------------------

    def create_qp(self, qp_init: QPInitAttr) -> None:
        with failing("Failed to Create QP"):
            self.core.create_qp(qp_init.to_core())

    def query_qp(self, attr_mask: int) -> tuple[QPAttr, QPInitAttr]:
        with failing("Failed to query QP"):
            core, init = self.core.connected_qp().query(int(attr_mask))
        attr = QPAttr.from_core(core)
        if self.core.options.ack_timeout is not None:
            attr.timeout = self.core.options.ack_timeout
        return attr, init_attr_of(init)

    def init_qp_attr(self, qp_state: int) -> tuple[QPAttr, int]:
        """What a QP that the CMID didn't make is modified with on its way to a state.

        As the kernel's iWARP CM has it: rights on the way to INIT and RTR, nothing to RTS, where
        the connection takes it; and nothing where it has been taken there already.
        """
        attr = QPAttr(qp_state=qp_state)
        attr.qp_access_flags = int(_REMOTE)
        qp = self.core.qp
        if qp_state == e.ibv_qp_state.IBV_QPS_RTS:
            return attr, 0
        if qp is not None and qp.state is not QpState.INIT:
            return attr, _MASK.IBV_QP_ACCESS_FLAGS
        return attr, _MASK.IBV_QP_STATE | _MASK.IBV_QP_ACCESS_FLAGS

    def set_local_ece(self, ece: ECE) -> None:
        raise unsupported("Failed to set local ECE")

    def get_remote_ece(self) -> ECE:
        raise unsupported("Failed to get remote ECE")

    # -- rdma_verbs.h --------------------------------------------------------------------------

    def reg_msgs(self, size: int) -> MR:
        return MR(self, size, e.ibv_access_flags.IBV_ACCESS_LOCAL_WRITE)

    def reg_read(self, size: int = 0) -> MR:
        return MR(self, size, e.ibv_access_flags.IBV_ACCESS_REMOTE_READ)

    def reg_write(self, size: int = 0) -> MR:
        return MR(self, size, e.ibv_access_flags.IBV_ACCESS_REMOTE_WRITE)

    def post_recv(self, mr: MR, length: int | None = None) -> None:
        with failing("Failed to Post Receive"):
            self.core.post_recv(mr.core, length)

    def post_send(self, mr: MR, flags: int = 2, length: int | None = None) -> None:
        with failing("Failed to Post Send"):
            self.core.post_send(mr.core, int(flags), length)

    def post_read(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0) -> None:
        with failing("Failed to Post Read"):
            self.core.post_read(mr.core, length, remote_addr, rkey, int(flags))

    def post_write(self, mr: MR, length: int, remote_addr: int, rkey: int, flags: int = 0) -> None:
        with failing("Failed to Post Write"):
            self.core.post_write(mr.core, length, remote_addr, rkey, int(flags))

    def post_ud_send(
        self, mr: MR, ah: object, rqpn: int = 0, flags: int = 2, length: int | None = None
    ) -> None:
        raise unsupported("Failed to Post Send: of a datagram")

    def get_recv_comp(self) -> WC:
        with failing("Failed to retrieve receive completion"):
            return WC.from_core(self.core.get_recv_comp())

    def get_send_comp(self) -> WC:
        with failing("Failed to retrieve send completion"):
            return WC.from_core(self.core.get_send_comp())
