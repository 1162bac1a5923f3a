"""The stream protocol of examples/new_protocol.py, and the frames that both its protocols use.

Octets are numbered; the receiver says how far it has come and how many more it has room for. What
it has no room for it drops, and says that there is none: the sender goes back to it and waits.
There is no timer, since the device below loses nothing.
"""

from __future__ import annotations

import errno
import struct
import termios
from dataclasses import dataclass

from steertag import family as net
from steertag.device import Device
from steertag.errors import WireError, os_error
from steertag.family import MsgHdr, SkBuff, Sock, TcpState

SOL_EXAMPLE = 264
EX_SEGMENT = 1  # option of a stream: octets of payload that it puts into one frame

SYN, SYN_ACK, RST, DATA, ACK, FIN, DGRAM = range(1, 8)
HEADER = struct.Struct("!BxHH8s8sQQI")


@dataclass(slots=True)
class Frame:
    """A frame's header, 42 octets in network byte order; the payload follows.

    kind (1), zero (1), source and destination port (2, 2), source and destination node (8, 8,
    padded with zeros), number of the first octet (8), octets received so far (8), how many more
    may be sent (4).
    """

    kind: int
    sport: int
    dport: int
    src: str
    dst: str
    seq: int = 0
    ack: int = 0
    window: int = 0

    @classmethod
    def parse(cls, frame: memoryview) -> Frame:
        try:
            kind, sport, dport, src, dst, *numbers = HEADER.unpack_from(frame)
            nodes = [name.rstrip(b"\0").decode("ascii") for name in (src, dst)]
        except (struct.error, UnicodeDecodeError) as exc:
            raise WireError("example frame: not a header") from exc
        if not SYN <= kind <= DGRAM:
            raise WireError(f"example frame: kind {kind}")
        return cls(kind, sport, dport, *nodes, *numbers)

    def emit(self) -> bytes:
        src, dst = self.src.encode("ascii"), self.dst.encode("ascii")
        numbers = (self.seq, self.ack, self.window)
        return HEADER.pack(self.kind, self.sport, self.dport, src, dst, *numbers)


class ExampleSock(net.InetSock):
    """A sock whose addresses are (node, port): InetSock has those and the lookup by them."""

    __slots__ = (
        *("snd_una", "snd_nxt", "snd_end", "snd_wnd", "fin_queued"),
        *("rcv_nxt", "rcv_adv", "segment"),
    )

    def reset(self) -> None:
        self.snd_una = 0  # first octet that is not acknowledged
        self.snd_nxt = 0  # next octet to transmit
        self.snd_end = 0  # next octet to queue
        self.snd_wnd = 0  # octets after snd_una that the peer has room for
        self.rcv_nxt = 0  # next octet expected
        self.rcv_adv = 0  # octets after rcv_nxt that the peer was told there is room for
        self.fin_queued = False  # after snd_end comes the end of the stream
        self.segment = 1024


def example_sk(sk: Sock) -> ExampleSock:
    assert isinstance(sk, ExampleSock)  # Proto.obj_size says so
    return sk


class ExampleStream:
    """The protocol on one node; `prot` is its `struct proto`."""

    def __init__(self, device: Device, node: str) -> None:
        self.device, self.node = device, node
        self.prot = net.Proto(
            name="EXSTREAM",
            owner=__name__,
            obj_size=ExampleSock,
            max_header=HEADER.size,
            h=net.HashInfo(),
            init=self.init,
            close=self.close,
            connect=self.connect,
            disconnect=self.disconnect,
            accept=net.inet_csk_accept,
            shutdown=self.shutdown,
            ioctl=self.ioctl,
            setsockopt=self.setsockopt,
            getsockopt=self.getsockopt,
            sendmsg=self.sendmsg,
            recvmsg=self.recvmsg,
            hash=net.inet_hash,
            unhash=net.inet_unhash,
            get_port=net.inet_get_port,
            sockets_allocated=net.Counter(),
            memory_allocated=net.Counter(),
            memory_pressure=net.Counter(),
            orphan_count=net.Counter(),
            sysctl_mem=[256, 384, 512],  # of 4096 octets
            sysctl_wmem=[4096, 16384, 262144],
            sysctl_rmem=[4096, 32768, 262144],
        )

    # -- what the user asks -----------------------------------------------------------------------

    def init(self, sk: Sock) -> None:
        example_sk(sk).reset()
        sk.sk_write_space = net.sk_stream_write_space

    def connect(self, sk: Sock, address: net.Address) -> None:
        ex = example_sk(sk)
        ex.inet_saddr = self.node
        ex.inet_daddr, ex.inet_dport = ex.check_address(address)
        net.inet_hash(sk)
        sk.sk_state = TcpState.TCP_SYN_SENT
        self.transmit(ex, SYN)

    def sendmsg(self, sk: Sock, msg: MsgHdr) -> int:
        ex = example_sk(sk)
        net.sock_raise_error(sk)
        if msg.msg_control:
            raise os_error(errno.EINVAL)  # this protocol has no ancillary data
        if sk.sk_shutdown & net.SEND_SHUTDOWN:
            raise os_error(errno.EPIPE)
        if sk.sk_state not in (TcpState.TCP_ESTABLISHED, TcpState.TCP_CLOSE_WAIT):
            raise os_error(errno.ENOTCONN)
        total, queued = msg.length, 0
        while queued < total:
            size = min(ex.segment, total - queued)
            try:
                skb = net.sk_stream_alloc_skb(sk, size)
            except BlockingIOError:
                if not queued:
                    raise
                break
            skb.put(msg.read(queued, size))
            skb.seq = ex.snd_end
            net.sk_stream_queue_skb(sk, skb)
            ex.snd_end += size
            queued += size
        self.push(ex)
        return queued

    def recvmsg(self, sk: Sock, msg: MsgHdr, flags: int) -> int:
        ex = example_sk(sk)
        count = net.stream_recv(sk, msg, flags)
        if not count or sk.sk_shutdown & net.RCV_SHUTDOWN:
            return count
        opened = self.window(ex) - ex.rcv_adv
        if opened >= sk.sk_rcvbuf // 4 or not len(sk.sk_receive_queue):
            if not ex.rcv_adv:
                net.sk_rcvbuf_grow(sk)  # the sender had to wait for us
            self.transmit(ex, ACK)
        return count

    def shutdown(self, sk: Sock, how: int) -> None:
        ex = example_sk(sk)
        if not how & net.SEND_SHUTDOWN or ex.fin_queued:
            return
        if sk.sk_state == TcpState.TCP_ESTABLISHED:
            sk.sk_state = TcpState.TCP_FIN_WAIT1
        elif sk.sk_state == TcpState.TCP_CLOSE_WAIT:
            sk.sk_state = TcpState.TCP_LAST_ACK
        else:
            return
        ex.fin_queued = True
        self.push(ex)

    def close(self, sk: Sock, timeout: float) -> None:
        if sk.sk_state == TcpState.TCP_LISTEN:
            self.disconnect(sk, 0)
        abort = len(sk.sk_receive_queue) > 0 or (sk.sk_flags & net.SOCK_LINGER and not timeout)
        if not abort:
            sk.sk_shutdown = net.SHUTDOWN_MASK
            self.shutdown(sk, net.SEND_SHUTDOWN)
        delivering = sk.sk_state in (TcpState.TCP_FIN_WAIT1, TcpState.TCP_LAST_ACK)
        if delivering and not abort and net.inet_csk_orphan(sk):
            return  # the acknowledgment of the last octet frees it
        if sk.sk_state not in (TcpState.TCP_CLOSE, TcpState.TCP_FIN_WAIT2):
            self.transmit(example_sk(sk), RST)
        sk.sk_state = TcpState.TCP_CLOSE
        net.inet_csk_destroy_sock(sk)

    def disconnect(self, sk: Sock, flags: int) -> None:
        ex = example_sk(sk)
        while sk.accept_queue:
            child = net.sk_acceptq_removed(sk)
            self.disconnect(child, flags)  # nobody will accept it
            net.inet_csk_destroy_sock(child)
        if sk.sk_state not in (TcpState.TCP_CLOSE, TcpState.TCP_LISTEN):
            self.transmit(ex, RST)
        net.inet_unhash(sk)
        while len(sk.sk_write_queue):
            net.sk_wmem_free_skb(sk, sk.sk_write_queue.popleft())
        sk.sk_receive_queue.purge()
        sk.sk_state = TcpState.TCP_CLOSE
        sk.sk_shutdown = sk.sk_err = ex.inet_num = ex.inet_dport = 0
        ex.reset()

    def ioctl(self, sk: Sock, cmd: int, arg: object) -> int:
        if cmd == termios.FIONREAD:
            return sk.sk_receive_queue.octets
        if cmd == termios.TIOCOUTQ:
            return example_sk(sk).snd_end - example_sk(sk).snd_una
        raise os_error(errno.ENOTTY)

    def setsockopt(self, sk: Sock, level: int, name: int, value: int | bytes | None) -> None:
        if (level, name) != (SOL_EXAMPLE, EX_SEGMENT):
            raise os_error(errno.ENOPROTOOPT)
        size = net.int_value(value)
        if not 1 <= size <= self.device.mtu - HEADER.size:
            raise os_error(errno.EINVAL)
        example_sk(sk).segment = size

    def getsockopt(self, sk: Sock, level: int, name: int, size: int) -> int | bytes:
        if (level, name) != (SOL_EXAMPLE, EX_SEGMENT):
            raise os_error(errno.ENOPROTOOPT)
        return net.as_asked(example_sk(sk).segment, size)

    # -- what goes out ----------------------------------------------------------------------------

    def window(self, sk: ExampleSock) -> int:
        return max(sk.sk_rcvbuf - sk.sk_rmem_alloc, 0)

    def header(self, sk: ExampleSock, kind: int, window: int | None = None) -> bytes:
        sk.rcv_adv = self.window(sk) if window is None else window
        numbers = (sk.snd_nxt, sk.rcv_nxt, sk.rcv_adv)
        peer = str(sk.inet_daddr)
        return Frame(kind, sk.inet_num, sk.inet_dport, self.node, peer, *numbers).emit()

    def transmit(self, sk: ExampleSock, kind: int, window: int | None = None) -> None:
        self.device.transmit([self.header(sk, kind, window)])

    def push(self, sk: ExampleSock) -> None:
        """Transmit what the peer has room for, and the end of the stream after the last of it."""
        for skb in sk.sk_write_queue:
            if skb.seq < sk.snd_nxt:
                continue
            fits = skb.seq + len(skb) <= sk.snd_una + sk.snd_wnd
            if not fits and (sk.snd_nxt > sk.snd_una or not sk.snd_wnd):
                return
            skb.push(self.header(sk, DATA))  # into the headroom that max_header reserved
            self.device.transmit([skb.data])
            skb.pull(HEADER.size)  # it stays queued until it is acknowledged
            sk.snd_nxt = skb.seq + len(skb)
        if sk.fin_queued and sk.snd_nxt == sk.snd_end:
            self.transmit(sk, FIN)
            sk.snd_nxt += 1  # the end of the stream has a number too

    # -- what comes in ----------------------------------------------------------------------------

    def receive(self, frame: Frame, payload: memoryview) -> None:
        """One frame, of any kind but DGRAM."""
        assert self.prot.h is not None  # given in __init__
        found = self.prot.h.lookup(frame.src, frame.sport, frame.dst, frame.dport)
        if found is None:
            self.stranger_received(frame)
            return
        ex = example_sk(found)
        if ex.sk_state == TcpState.TCP_LISTEN:
            self.listener_receive(ex, frame)
        elif frame.kind == RST:
            self.reset_received(ex)
        else:
            self.segment_received(ex, frame, payload)

    def stranger_received(self, frame: Frame) -> None:
        """For a sock that is not there, or no longer: its peer may still have an end to send."""
        if frame.kind == FIN:
            ends = (frame.dport, frame.sport, frame.dst, frame.src)
            self.device.transmit([Frame(ACK, *ends, seq=frame.ack, ack=frame.seq + 1).emit()])
        elif frame.kind in (SYN, DATA):
            self.refuse(frame)

    def refuse(self, frame: Frame) -> None:
        answer = Frame(RST, frame.dport, frame.sport, frame.dst, frame.src)
        self.device.transmit([answer.emit()])

    def listener_receive(self, listener: ExampleSock, frame: Frame) -> None:
        if frame.kind != SYN or net.sk_acceptq_is_full(listener):
            self.refuse(frame)
            return
        child = example_sk(net.sk_clone(listener))
        child.inet_saddr, child.inet_daddr, child.inet_dport = self.node, frame.src, frame.sport
        child.snd_wnd, child.segment = frame.window, listener.segment
        net.inet_bind_child(child, listener)
        net.inet_hash(child)
        child.sk_state = TcpState.TCP_ESTABLISHED
        self.transmit(child, SYN_ACK)
        net.sk_acceptq_added(listener, child)

    def reset_received(self, sk: ExampleSock) -> None:
        refused = sk.sk_state == TcpState.TCP_SYN_SENT
        sk.sk_err = errno.ECONNREFUSED if refused else errno.ECONNRESET
        sk.sk_state = TcpState.TCP_CLOSE
        sk.sk_shutdown = net.SHUTDOWN_MASK
        net.inet_unhash(sk)
        if sk.sk_flags & net.SOCK_DEAD:
            net.inet_csk_destroy_sock(sk)
        else:
            sk.sk_error_report(sk)

    def segment_received(self, sk: ExampleSock, frame: Frame, payload: memoryview) -> None:
        if frame.kind == SYN_ACK and sk.sk_state == TcpState.TCP_SYN_SENT:
            sk.sk_state = TcpState.TCP_ESTABLISHED
            sk.sk_state_change(sk)
        self.acknowledged(sk, frame)
        if frame.kind == DATA:
            self.data_received(sk, frame, payload)
        elif frame.kind == FIN and frame.seq == sk.rcv_nxt:
            sk.rcv_nxt += 1
            sk.sk_shutdown |= net.RCV_SHUTDOWN
            if sk.sk_state == TcpState.TCP_ESTABLISHED:
                sk.sk_state = TcpState.TCP_CLOSE_WAIT
            elif sk.sk_state == TcpState.TCP_FIN_WAIT1:
                sk.sk_state = TcpState.TCP_LAST_ACK  # both ends at once: ours is not acknowledged
            else:
                sk.sk_state = TcpState.TCP_CLOSE
            self.transmit(sk, ACK)
            sk.sk_state_change(sk)
            if sk.sk_state == TcpState.TCP_CLOSE:
                net.inet_unhash(sk)

    def acknowledged(self, sk: ExampleSock, frame: Frame) -> None:
        """Let go what arrived; without room at the peer, go back to what did not."""
        if frame.ack > sk.snd_end + sk.fin_queued:
            raise WireError("example frame: acknowledges what was not sent")
        sk.snd_una, sk.snd_wnd = max(sk.snd_una, frame.ack), frame.window
        while (skb := sk.sk_write_queue.peek()) and skb.seq + len(skb) <= sk.snd_una:
            net.sk_wmem_free_skb(sk, sk.sk_write_queue.popleft())
        sk.snd_nxt = sk.snd_una if not frame.window else max(sk.snd_nxt, sk.snd_una)
        self.push(sk)
        if sk.fin_queued and sk.snd_una > sk.snd_end:
            self.fin_acknowledged(sk)
        net.sk_stream_new_space(sk)

    def fin_acknowledged(self, sk: ExampleSock) -> None:
        if sk.sk_flags & net.SOCK_DEAD:
            sk.sk_state = TcpState.TCP_CLOSE
            net.inet_csk_destroy_sock(sk)  # an orphan: its last octet is delivered
        elif sk.sk_state == TcpState.TCP_FIN_WAIT1:
            sk.sk_state = TcpState.TCP_FIN_WAIT2
            sk.sk_state_change(sk)  # who lingers in close waits for this
        elif sk.sk_state == TcpState.TCP_LAST_ACK:
            sk.sk_state = TcpState.TCP_CLOSE
            sk.sk_shutdown = net.SHUTDOWN_MASK
            net.inet_unhash(sk)
            sk.sk_state_change(sk)

    def data_received(self, sk: ExampleSock, frame: Frame, payload: memoryview) -> None:
        """Queue it if it is next and there is room; else say what is next."""
        if sk.sk_flags & net.SOCK_DEAD:
            self.transmit(sk, RST)  # nobody is left to read it
            self.reset_received(sk)
            return
        if not payload or frame.seq != sk.rcv_nxt or sk.sk_shutdown & net.RCV_SHUTDOWN:
            self.transmit(sk, ACK, sk.rcv_adv)  # still no room, if there was none
            return
        skb = SkBuff.of(payload)
        if not len(sk.sk_receive_queue):
            net.sk_forced_mem_schedule(sk, skb.truesize)  # or the reader might wait for ever
        elif not self.window(sk) or not net.sk_schedule(sk, skb.truesize, net.SK_MEM_RECV):
            self.transmit(sk, ACK, window=0)
            return
        net.skb_set_owner_r(skb, sk)
        sk.sk_receive_queue.append(skb)
        sk.rcv_nxt += len(payload)
        self.transmit(sk, ACK)
        sk.sk_data_ready(sk)
