"""A server and a client in two processes, with the connection manager; written for pyverbs.

    python rdma_cm.py [PORT]

The server waits for events on a channel; the client is synchronous.
"""

import os
import sys

import pyverbs.cm_enums as ce
from pyverbs import enums as e
from pyverbs.cmid import CMID, AddrInfo, CMEvent, CMEventChannel, ConnParam
from pyverbs.qp import QPCap, QPInitAttr

HOST = "127.0.0.1"
CAP = QPCap(max_send_wr=4, max_recv_wr=4)
SIZE = 1024


def serve(port: str, ready: int) -> None:
    channel = CMEventChannel()
    listener = CMID(creator=channel)
    listener.bind_addr(AddrInfo(src=HOST, src_service=port, flags=ce.RAI_PASSIVE))
    listener.listen()
    os.write(ready, b"!")

    event = CMEvent(channel)
    if event.event_type != ce.RDMA_CM_EVENT_CONNECT_REQUEST:
        sys.exit(f"server: {event.event_str()}")
    asked = event.private_data.rstrip(b"\0").decode()
    client = CMID(creator=event, listen_id=listener)
    event.ack_cm_event()
    client.create_qp(QPInitAttr(qp_type=e.IBV_QPT_RC, cap=CAP))
    received = client.reg_msgs(SIZE)
    client.post_recv(received)
    client.accept(ConnParam())
    event = CMEvent(channel)
    if event.event_type != ce.RDMA_CM_EVENT_ESTABLISHED:
        sys.exit(f"server: {event.event_str()}")
    event.ack_cm_event()

    completion = client.get_recv_comp()
    text = received.read(completion.byte_len, 0).decode()
    answer = client.reg_msgs(SIZE)
    octets = f"{asked}: {text.upper()}".encode()
    answer.write(octets, len(octets))
    client.post_send(answer, length=len(octets))
    client.get_send_comp()
    event = CMEvent(channel)
    print("server:", event.event_str(), flush=True)
    event.ack_cm_event()
    client.disconnect()


def call(port: str) -> None:
    init = QPInitAttr(qp_type=e.IBV_QPT_RC, cap=CAP)
    info = AddrInfo(dst=HOST, dst_service=port, port_space=ce.RDMA_PS_TCP)
    connection = CMID(creator=info, qp_init_attr=init)
    answer = connection.reg_msgs(SIZE)
    connection.post_recv(answer)
    param = ConnParam(data_len=32)
    param.set_private_data(b"shout")
    connection.connect(param)
    question = connection.reg_msgs(SIZE)
    question.write("hello over rdma", 15)
    connection.post_send(question, length=15)
    connection.get_send_comp()
    completion = connection.get_recv_comp()
    print("client:", answer.read(completion.byte_len, 0).decode(), flush=True)
    connection.disconnect()


def main() -> None:
    port = sys.argv[1] if len(sys.argv) > 1 else "7471"
    told, ready = os.pipe()
    child = os.fork()
    if child == 0:
        serve(port, ready)
        return
    os.close(ready)
    if os.read(told, 1) != b"!":
        sys.exit("the server didn't start")
    call(port)
    _, status = os.waitpid(child, 0)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
