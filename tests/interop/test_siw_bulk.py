"""Bulk data between our RNIC and siw: several MiB by Read and by Write, in either role."""

from __future__ import annotations

import hashlib
import random

import pytest

from steertag import verbs as v
from steertag.wire.rdmap import Opcode
from tests.interop.guest.machine import PORTS, Guest
from tests.interop.our_end import OurListener, connected
from tests.interop.wire import Wire

PORT = PORTS[1]
SIZE = 4 << 20
CRC = pytest.mark.parametrize("crc", [True, False], ids=["crc", "plain"])

SERVE = f"""
with listen({PORT}) as listener:
    end = accept(listener, {SIZE})
    random = open("/dev/urandom", "rb").read({SIZE})
    end.region.write(random, {SIZE})
    assert end.receive() == b"hello"
    end.advertise()
    end.send(hashlib.sha256(random).digest())
    assert end.receive() == b"written"
    end.send(hashlib.sha256(end.region.read({SIZE}, 0)).digest())
    end.ended()
"""

CONNECT = """
end = connect({port}, {size})
end.send(b"hello")
address, rkey, length = ADVERTISEMENT.unpack(end.receive())
assert end.rdma("read", address, rkey, length) == 0
end.send(hashlib.sha256(end.region.read(length, 0)).digest())
random = open("/dev/urandom", "rb").read(length)
end.region.write(random, length)
assert end.rdma("write", address, rkey, length) == 0
end.send(hashlib.sha256(random).digest())
end.ended()
"""


@CRC
def test_we_read_from_siw_and_write_to_it(guest: Guest, wire: Wire, crc: bool) -> None:
    server = guest.start_python(SERVE, port=PORT)
    with connected(guest.ports[PORT], size=SIZE, crc=crc) as end:
        end.send(b"hello")
        address, rkey, length = end.advertised()
        expected = end.receive()
        assert end.rdma("read", address, rkey, length).status == v.WcStatus.SUCCESS
        assert hashlib.sha256(end.memory).digest() == expected
        end.memory[:] = random.Random(0).randbytes(SIZE)
        assert end.rdma("write", address, rkey, length).status == v.WcStatus.SUCCESS
        end.send(b"written")
        assert end.receive() == hashlib.sha256(end.memory).digest()
        end.close()
    assert server.result() == (0, "")
    (connection,) = wire.check(crc=crc)
    assert len(connection.server.payload(Opcode.READ_RESPONSE)) == SIZE
    assert max(len(segment.octets) for segment in connection.client.segments) > 64000


@CRC
def test_siw_reads_from_us_and_writes_to_us(guest: Guest, wire: Wire, crc: bool) -> None:
    guest.set_siw(mpa_crc_required=crc)
    with OurListener() as listener:
        client = guest.start_python(CONNECT.format(port=listener.port, size=SIZE))
        with listener.accepted(size=SIZE) as end:
            end.memory[:] = random.Random(1).randbytes(SIZE)
            assert end.receive() == b"hello"
            end.advertise()
            assert end.receive() == hashlib.sha256(end.memory).digest()
            written = end.receive()
            assert written == hashlib.sha256(end.memory).digest()
            assert end.cmid.crc is crc
            end.close()
    assert client.result() == (0, "")
    (connection,) = wire.check(crc=crc)
    assert max(len(segment.octets) for segment in connection.server.segments) > 64000
    assert len(connection.client.payload(Opcode.WRITE)) == SIZE
