"""Adding a protocol family in four steps: AF_EXAMPLE, with a stream and a datagram type.

    uv run python examples/new_protocol.py

The family works over any device that carries frames whole and in order; here, a link through
memory between two Stacks, which know each other by nothing else. docs/tutorial/new-protocol.md
walks through this file; what the stream protocol does inside is in example_stream.py.
"""

from __future__ import annotations

import contextlib
import errno
import threading

from example_stream import DGRAM, HEADER, ExampleSock, ExampleStream, Frame, example_sk

from steertag import family as net
from steertag import socket
from steertag.device import Device, memory_link, register_netdevice, unregister_netdevice
from steertag.device import Frame as ReceivedFrame
from steertag.errors import os_error
from steertag.family import MsgHdr, SkBuff, Sock, Socket, SocketState, Stack, TcpState

AF_EXAMPLE = 64


class ExampleFamily:
    """AF_EXAMPLE on one node of one Stack."""

    def __init__(self, stack: Stack, device: Device, node: str) -> None:
        self.stack, self.device, self.node = stack, device, node
        self.stream = ExampleStream(device, node)
        self.dgram = self._dgram_proto()
        self.stream_ops = self._stream_ops()
        self.dgram_ops = self._dgram_ops()

    # -- step 1: struct proto (the stream's is in example_stream.py) ----------------------------

    def _dgram_proto(self) -> net.Proto:
        return net.Proto(
            name="EXDGRAM",
            owner=__name__,
            obj_size=ExampleSock,
            max_header=HEADER.size,
            h=net.HashInfo(),
            connect=self.dgram_connect,
            disconnect=self.dgram_disconnect,
            sendmsg=self.dgram_sendmsg,
            recvmsg=net.datagram_recv,
            unhash=net.inet_unhash,
            get_port=net.inet_get_port,
            sockets_allocated=net.Counter(),
            memory_allocated=net.Counter(),
            sysctl_mem=[256, 384, 512],
        )

    # -- step 2: struct net_proto_family, and sock_register() -----------------------------------

    def register(self) -> None:
        self.stack.proto_register(self.stream.prot)
        self.stack.proto_register(self.dgram)
        self.stack.sock_register(
            net.NetProtoFamily(family=AF_EXAMPLE, create=self.create, owner=__name__)
        )
        register_netdevice(self.stack, self.device, self.receive)

    def unregister(self) -> None:
        """Raises OSError (EBUSY) while there are sockets."""
        self.stack.sock_unregister(AF_EXAMPLE)
        self.stack.proto_unregister(self.stream.prot)
        self.stack.proto_unregister(self.dgram)
        unregister_netdevice(self.stack, self.device)

    # -- step 3: create, which socket() ends in -------------------------------------------------

    def create(self, stack: Stack, sock: Socket, protocol: int) -> None:
        if sock.type == socket.SOCK_STREAM:
            prot, sock.ops = self.stream.prot, self.stream_ops
        elif sock.type == socket.SOCK_DGRAM:
            prot, sock.ops = self.dgram, self.dgram_ops
        else:
            raise os_error(errno.ESOCKTNOSUPPORT)
        if protocol:
            raise os_error(errno.EPROTONOSUPPORT)
        sock.state = SocketState.SS_UNCONNECTED
        sk = net.sk_alloc(stack, AF_EXAMPLE, prot)
        net.sock_init_data(sock, sk)
        net.sk_init(sk)  # prot.init, and if that refuses the sock goes

    # -- step 4: struct proto_ops, for each type ------------------------------------------------

    def _stream_ops(self) -> net.ProtoOps:
        return net.ProtoOps(
            family=AF_EXAMPLE,
            owner=__name__,
            release=net.inet_release,
            bind=net.inet_bind,
            connect=net.inet_stream_connect,
            socketpair=net.sock_no_socketpair,
            accept=net.inet_accept,
            getname=net.inet_getname,
            poll=net.stream_poll,
            ioctl=net.inet_ioctl,
            listen=net.inet_listen,
            shutdown=net.inet_shutdown,
            setsockopt=net.sock_common_setsockopt,
            getsockopt=net.sock_common_getsockopt,
            sendmsg=net.inet_sendmsg,
            recvmsg=net.sock_common_recvmsg,
        )

    def _dgram_ops(self) -> net.ProtoOps:
        return net.ProtoOps(
            family=AF_EXAMPLE,
            owner=__name__,
            release=net.inet_release,
            bind=net.inet_bind,
            connect=net.inet_dgram_connect,
            accept=net.sock_no_accept,  # connectionless: nobody to accept,
            listen=net.sock_no_listen,  # nothing to listen for
            getname=net.inet_getname,
            poll=net.datagram_poll,
            shutdown=net.inet_shutdown,
            sendmsg=net.inet_sendmsg,
            recvmsg=net.sock_common_recvmsg,
        )

    # -- what comes in, by way of register_netdevice() ------------------------------------------

    def receive(self, received: ReceivedFrame) -> None:
        frame = Frame.parse(received.data)
        payload = received.data[HEADER.size :]
        if frame.dst != self.node:
            return
        if frame.kind == DGRAM:
            self.dgram_receive(frame, payload)
        else:
            self.stream.receive(frame, payload)

    # -- the datagram protocol ------------------------------------------------------------------

    def dgram_connect(self, sk: Sock, address: net.Address) -> None:
        ex = example_sk(sk)
        ex.inet_daddr, ex.inet_dport = ex.check_address(address)
        sk.sk_state = TcpState.TCP_ESTABLISHED

    def dgram_disconnect(self, sk: Sock, flags: int) -> None:
        example_sk(sk).inet_dport = 0
        sk.sk_state = TcpState.TCP_CLOSE

    def dgram_sendmsg(self, sk: Sock, msg: MsgHdr) -> int:
        ex = example_sk(sk)
        if msg.msg_name is not None:
            peer, port = ex.check_address(msg.msg_name)
        elif ex.inet_dport:
            peer, port = ex.inet_daddr, ex.inet_dport
        else:
            raise os_error(errno.EDESTADDRREQ)
        if msg.msg_control:
            raise os_error(errno.EINVAL)  # this protocol has no ancillary data
        skb = net.sock_alloc_send_skb(sk, msg.length)
        try:
            skb.put(msg.read(0, msg.length))
            skb.push(Frame(DGRAM, ex.inet_num, port, self.node, str(peer)).emit())
            self.device.transmit([skb.data])
        finally:
            skb.free()
        return msg.length

    def dgram_receive(self, frame: Frame, payload: memoryview) -> None:
        assert self.dgram.h is not None  # given in _dgram_proto
        sk = self.dgram.h.lookup_bound(frame.src, frame.sport, frame.dst, frame.dport)
        skb = SkBuff.of(payload)
        skb.address = (frame.src, frame.sport)
        if sk is not None and not sk.sk_shutdown & net.RCV_SHUTDOWN:
            # No room: a datagram is lost, as datagrams may be.
            with contextlib.suppress(OSError):
                net.sock_queue_rcv_skb(sk, skb)


def register(stack: Stack, device: Device, node: str) -> ExampleFamily:
    """Put AF_EXAMPLE into a Stack: `node` (up to 8 ASCII letters) is its address on the link."""
    family = ExampleFamily(stack, device, node)
    family.register()
    return family


# -- using it: nothing below knows more than socket() does --------------------------------------


def serve(server: socket.socket) -> None:
    conn, peer = server.accept()
    with conn:
        print(f"   right: accepted {peer}")
        while data := conn.recv(65536):
            conn.sendall(data.upper())


def main() -> None:
    print("1. proto_register(): EXSTREAM and EXDGRAM, with their memory accounts")
    print("2. sock_register(): AF_EXAMPLE, on two Stacks joined by a link through memory")
    left, right = Stack(), Stack()
    devices = memory_link()
    families = [register(left, devices[0], "left"), register(right, devices[1], "right")]

    print("3. socket(AF_EXAMPLE, SOCK_STREAM): create() allocates the sock and sets its ops")
    with (
        socket.socket(AF_EXAMPLE, socket.SOCK_STREAM, stack=right) as server,
        socket.socket(AF_EXAMPLE, socket.SOCK_STREAM, stack=left) as client,
    ):
        print("4. proto_ops at work: bind, listen, connect, accept, sendmsg, recvmsg, shutdown")
        server.bind(("right", 7))
        server.listen()
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        client.connect(("right", 7))
        print(f"   left:  connected {client.getsockname()} to {client.getpeername()}")
        client.sendall(b"a protocol is a class")
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            print(f"   left:  the answer is {answer.read()!r}")
        thread.join()

    with (
        socket.socket(AF_EXAMPLE, socket.SOCK_DGRAM, stack=right) as receiver,
        socket.socket(AF_EXAMPLE, socket.SOCK_DGRAM, stack=left) as sender,
    ):
        receiver.bind(("right", 9))
        sender.sendto(b"no connection needed", ("right", 9))
        print("   right: datagram {!r} from {}".format(*receiver.recvfrom(2048)))

    for device in devices:
        print(f"   {device.name}: {device.stats.tx_packets} frames, {device.stats.tx_bytes} octets")
    for family in families:
        family.unregister()
    print("Unregistered: no socket was left, so nothing refused.")


if __name__ == "__main__":
    main()
