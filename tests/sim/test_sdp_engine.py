"""SDP engines, one situation at a time."""

from __future__ import annotations

import errno
import random

import pytest

from steertag.errors import ProtocolError
from steertag.sdp.const import SdpState
from steertag.sdp.tuning import Tuning
from steertag.wire import sdp
from tests.sim.sdp_ends import POLLIN, POLLOUT, POLLPRI, Ends

LARGE = random.Random(5).randbytes(600_000)


def test_a_small_send_is_one_message_each_way_and_nothing_else() -> None:
    ends = Ends()
    for _ in range(10):
        ends.pass_on(b"x" * 64)
    assert sum(ends.left.counters.tx_messages) == 10
    assert ends.left.counters.tx_messages[sdp.mid_index(sdp.DATA)] == 10


def test_large_memory_that_cannot_change_is_advertised_and_read() -> None:
    ends = Ends()
    assert ends.pass_on(LARGE) == LARGE
    assert ends.left.counters.tx_read_bytes == len(LARGE)
    assert ends.left.counters.tx_bcopy_bytes == 0


def test_large_memory_that_may_change_is_copied_by_sendmsg() -> None:
    ends = Ends()
    memory = bytearray(LARGE)
    taken = ends.left.engine.sendmsg([memoryview(memory)])
    memory[:] = bytes(len(memory))
    ends.settle()
    while ends.right.read(1 << 20):
        ends.settle()
    assert taken == len(LARGE)
    assert ends.right.taken == LARGE
    assert ends.left.counters.tx_bcopy_bytes == len(LARGE)


def test_a_threshold_of_zero_advertises_nothing() -> None:
    ends = Ends(0, Tuning(zcopy_threshold=0))
    assert ends.pass_on(LARGE) == LARGE
    assert ends.left.counters.src_adverts == 0


def test_a_waiting_reader_gets_an_advertised_source_straight_into_its_buffer() -> None:
    ends = Ends(0, None, Tuning(sink_threshold=0))
    memory = bytearray(len(LARGE))
    waiting = ends.right.engine.recv_in_place(memoryview(memory))
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    assert waiting.done
    assert memory == LARGE
    assert ends.right.counters.rx_inplace_bytes == len(LARGE)


def receive_large(ends: Ends) -> None:
    """The right end receives as a program does that calls again and again with a large buffer."""
    waiting = ends.right.engine.recv_in_place(memoryview(bytearray(len(LARGE))))
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    assert waiting.done


def test_what_is_advertised_between_two_large_receives_waits_for_the_second() -> None:
    ends = Ends()
    receive_large(ends)
    before = ends.right.counters.rx_inplace_bytes
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    assert not ends.right.engine.unread
    memory = bytearray(len(LARGE))
    waiting = ends.right.engine.recv_in_place(memoryview(memory))
    ends.settle()
    assert waiting.done
    assert memory == LARGE
    assert ends.right.counters.rx_inplace_bytes == before + len(LARGE)


def test_what_is_advertised_does_not_wait_long_for_a_receive_that_does_not_come() -> None:
    ends = Ends()
    receive_large(ends)
    sending = ends.left.engine.send_in_place(memoryview(bytearray(LARGE)))
    ends.settle()
    due = ends.right.engine.deadline
    assert due is not None
    assert due <= 0.1
    ends.set_time(due)
    ends.settle()
    assert sending.done
    assert ends.right.engine.unread == len(LARGE)


def test_two_large_sends_are_advertised_before_the_first_is_read() -> None:
    ends = Ends(0, Tuning(snd_bytes=len(LARGE) // 4))
    receive_large(ends)
    sent = [ends.left.engine.sendmsg([memoryview(LARGE)]) for _ in range(3)]
    assert sent == [len(LARGE), len(LARGE), 0]
    ends.left.events = 0
    for _ in range(2):
        waiting = ends.right.engine.recv_in_place(memoryview(bytearray(len(LARGE))))
        ends.settle()
        assert waiting.done
    assert ends.left.events & POLLOUT, "who was told that there is no room isn't told of it"
    assert ends.left.engine.sendmsg([memoryview(LARGE)]) == len(LARGE)


def test_that_octets_are_read_is_told_with_the_next_read_or_soon_without() -> None:
    ends = Ends()
    receive_large(ends)
    first, second = (ends.left.engine.send_in_place(memoryview(bytearray(LARGE))) for _ in range(2))
    waiting = ends.right.engine.recv_in_place(memoryview(bytearray(len(LARGE))))
    ends.settle()
    assert waiting.done
    assert not first.done
    due = ends.right.engine.deadline
    assert due is not None
    assert due <= 0.1
    ends.set_time(due)
    ends.settle()
    assert (first.done, second.done) == (True, True)


def test_a_close_before_advertised_octets_were_read_resets_the_stream() -> None:
    ends = Ends()
    receive_large(ends)
    sending = ends.left.engine.send_in_place(memoryview(bytearray(LARGE)))
    ends.settle()
    assert not sending.done
    ends.right.engine.close()
    ends.settle()
    assert sending.done
    assert ends.left.engine.error == errno.ECONNRESET


def test_a_waiting_reader_with_room_is_written_to() -> None:
    ends = Ends()
    memory = bytearray(len(LARGE) + 5)
    waiting = ends.right.engine.recv_in_place(memoryview(memory))
    ends.settle()
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    assert (waiting.done, waiting.octets) == (True, len(LARGE))
    assert memory[: len(LARGE)] == LARGE
    assert ends.left.counters.tx_write_bytes == len(LARGE)
    assert ends.left.counters.src_adverts == 0


def test_what_crosses_an_advertised_sink_makes_it_void() -> None:
    ends = Ends()
    memory = bytearray(1 << 20)
    waiting = ends.right.engine.recv_in_place(memoryview(memory))
    ends.left.engine.sendmsg([memoryview(b"first")])
    ends.settle()
    assert (waiting.done, waiting.octets) == (True, 5)
    assert memory[:5] == b"first"
    assert ends.right.counters.sink_void == 1
    assert ends.pass_on(LARGE) == LARGE


@pytest.mark.parametrize("size", [100_000, 20 << 20])
def test_both_sides_send_large_at_once_before_either_reads(size: int) -> None:
    ends = Ends()
    data = random.Random(size).randbytes(size)
    transfers = [end.engine.send_in_place(memoryview(bytearray(data))) for end in ends.both]
    ends.settle()
    while not all(transfer.done for transfer in transfers):
        before = [len(end.taken) for end in ends.both]
        for end in ends.both:
            end.read(1 << 20)
        ends.settle()
        assert [len(end.taken) for end in ends.both] != before, "nothing moves"
    for end in ends.both:
        while end.read(1 << 20):
            ends.settle()
        assert end.taken == data


def test_an_advertised_source_becomes_readable_for_whoever_polls() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(LARGE)])
    assert not ends.right.engine.readable
    ends.settle()
    assert ends.right.engine.readable
    assert ends.right.events & POLLIN


def test_a_sender_that_is_told_no_room_hears_of_it_when_there_is() -> None:
    ends = Ends(0, Tuning(snd_bytes=100_000), None)
    engine = ends.left.engine
    while engine.sendmsg([memoryview(bytearray(10_000))]):
        pass
    assert not engine.writable()
    ends.left.events = 0
    ends.settle()
    while ends.right.read(1 << 20):
        ends.settle()
    assert engine.writable()
    assert ends.left.events & POLLOUT
    assert engine.outq < 100_000


def test_nothing_is_left_to_be_sent_once_the_stream_has_taken_it() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(b"a few octets")])
    assert ends.left.engine.outq == 12
    ends.settle()
    assert ends.left.engine.outq == 0


def test_a_reader_that_stands_still_bounds_what_the_other_side_may_send() -> None:
    ends = Ends()
    sent = 0
    for _ in range(10_000):
        sent += ends.left.engine.sendmsg([memoryview(bytearray(20_000))])
        ends.settle()
    tuning = ends.left.tuning
    most = tuning.snd_bytes + tuning.rcv_bytes + tuning.recv_size * tuning.recv_count
    assert sent <= most
    assert len(ends.right.cq.entries) == 0


def test_the_smallest_messages_unread_are_bounded_too() -> None:
    ends = Ends(0, None, Tuning(rcv_bytes=10_000))
    for _ in range(5000):
        ends.left.engine.sendmsg([memoryview(b"x")])
        ends.settle()
    assert ends.right.engine.unread <= 10_000


def test_half_close_lets_the_other_direction_go_on() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(b"question")])
    ends.left.engine.shutdown_send()
    ends.settle()
    right = ends.right
    assert right.engine.peer_shut
    assert not right.engine.eof
    right.read(100)
    assert right.engine.eof
    right.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    while ends.left.read(1 << 20):
        ends.settle()
    right.engine.shutdown_send()
    ends.settle()
    assert ends.left.taken == LARGE
    assert [end.engine.state for end in ends.both] == [SdpState.CLOSED] * 2
    assert [end.engine.error for end in ends.both] == [0, 0]


def test_close_delivers_what_was_sent_before() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.left.engine.close()
    ends.settle()
    while ends.right.read(1 << 20):
        ends.settle()
    assert ends.right.taken == LARGE
    assert ends.right.engine.eof
    ends.right.engine.close()
    ends.settle()
    assert [(end.engine.ended, end.engine.error) for end in ends.both] == [(True, 0)] * 2


def test_close_with_octets_unread_resets_the_stream() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(b"unread")])
    ends.settle()
    ends.right.engine.close()
    ends.settle()
    assert ends.left.engine.error == errno.ECONNRESET
    assert ends.left.counters.aborts_received == 1


def test_octets_after_a_close_reset_the_stream() -> None:
    ends = Ends()
    ends.right.engine.close()
    ends.settle()
    assert not ends.left.engine.error
    ends.left.engine.sendmsg([memoryview(b"late")])
    ends.settle()
    assert ends.left.engine.error == errno.ECONNRESET


def test_a_peer_that_never_closes_is_given_up_in_time() -> None:
    ends = Ends(0, Tuning(close_timeout=5.0))
    ends.left.engine.close()
    ends.settle()
    assert not ends.left.engine.ended
    ends.set_time(6.0)
    ends.settle()
    assert ends.left.engine.ended
    assert ends.right.engine.error == errno.ECONNRESET


def test_abort_tells_the_peer_and_ends_every_transfer() -> None:
    ends = Ends()
    sending = ends.left.engine.send_in_place(memoryview(bytearray(LARGE)))
    waiting = ends.left.engine.recv_in_place(memoryview(bytearray(1 << 20)))
    ends.left.engine.abort()
    ends.settle()
    assert sending.done
    assert waiting.done
    assert [end.regions for end in ends.both] == [0, 0]
    assert ends.right.engine.error == errno.ECONNRESET


def test_a_stream_that_ends_without_disconn_is_reset_and_what_came_is_readable() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(b"x" * 5000)])
    ends.settle()
    ends.right.qp.stream_lost("connection reset")
    ends.right.engine.poll()
    assert ends.right.engine.error == errno.ECONNRESET
    assert ends.right.engine.unread == 5000
    assert ends.right.read(9000) == 5000


def test_a_read_that_was_not_answered_gives_no_octets_though_what_was_sent_behind_it_left() -> None:
    ends = Ends()
    ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.left.send_some(None)
    ends.right.receive(ends.left.wire.popleft())
    ends.right.engine.want()
    assert not ends.right.engine.unread
    # Nothing of the Read's response comes any more; a message of ours still goes.
    ends.right.engine.shutdown_send()
    while ends.right.send_some(None):
        pass
    ends.right.qp.stream_lost("reset")
    ends.right.engine.poll()
    assert ends.right.read(1 << 20) == 0
    assert ends.right.engine.error == errno.ECONNRESET


def test_a_stream_that_timed_out_says_so() -> None:
    ends = Ends()
    ends.right.qp.stream_lost("connection timed out")
    ends.right.engine.poll()
    assert ends.right.engine.error == errno.ETIMEDOUT


def test_shutdown_recv_drops_what_comes_and_lets_the_peer_go_on() -> None:
    ends = Ends()
    ends.right.engine.shutdown_recv()
    for _ in range(50):
        data = memoryview(LARGE)
        while len(data):
            data = data[ends.left.engine.sendmsg([data]) :]
            ends.settle()
    ends.left.engine.sendmsg([memoryview(b"small")])
    ends.settle()
    assert ends.left.engine.outq < len(LARGE)
    assert ends.right.engine.unread == 0
    assert ends.right.counters.rx_read_bytes == 0


# -- cancel -------------------------------------------------------------------------------------


def test_a_cancelled_source_is_the_callers_again_once_the_peer_has_answered() -> None:
    ends = Ends(0, None, Tuning(rcv_bytes=1, read_size=1000))
    memory = bytearray(LARGE)
    transfer = ends.left.engine.send_in_place(memoryview(memory))
    ends.settle()
    transfer.cancel()
    assert not transfer.done
    ends.settle()
    assert transfer.done
    assert transfer.octets == 1000
    memory[:] = bytes(len(memory))
    ends.left.engine.sendmsg([memoryview(b"next")])
    ends.settle()
    while ends.right.read(1 << 20):
        ends.settle()
    assert ends.right.taken == LARGE[:1000] + b"next"


def test_what_was_not_advertised_yet_is_cancelled_at_once() -> None:
    ends = Ends()
    while ends.left.engine.sendmsg([memoryview(bytearray(60_000))]):
        pass
    transfer = ends.left.engine.send_in_place(memoryview(bytearray(LARGE)))
    transfer.cancel()
    assert (transfer.done, transfer.octets) == (True, 0)


def test_a_waiting_receive_that_is_not_advertised_is_cancelled_at_once() -> None:
    ends = Ends(0, None, Tuning(sink_threshold=0))
    waiting = ends.right.engine.recv_in_place(memoryview(bytearray(100_000)))
    waiting.cancel()
    assert (waiting.done, waiting.octets) == (True, 0)


def test_an_advertised_sink_is_cancelled_when_the_peer_has_answered() -> None:
    ends = Ends()
    waiting = ends.right.engine.recv_in_place(memoryview(bytearray(1 << 20)))
    ends.settle()
    waiting.cancel()
    assert not waiting.done
    ends.settle()
    assert (waiting.done, waiting.octets) == (True, 0)
    assert ends.right.counters.sink_cancels == 1
    assert ends.pass_on(LARGE) == LARGE


def test_a_peer_that_answers_no_cancel_is_given_up_and_the_memory_is_free() -> None:
    ends = Ends(0, Tuning(cancel_timeout=3.0))
    transfer = ends.left.engine.send_in_place(memoryview(bytearray(LARGE)))
    transfer.cancel()
    ends.left.now = 4.0
    assert ends.left.engine.deadline is not None
    ends.left.engine.handle_timer(4.0)
    assert transfer.done
    assert transfer.error == errno.ETIMEDOUT
    assert ends.left.engine.error == errno.ETIMEDOUT


# -- a peer without RDMA Reads, or that wants none ---------------------------------------------


def test_a_sink_that_may_not_read_refuses_and_the_source_copies() -> None:
    ends = Ends(0, ord=0)
    assert ends.pass_on(LARGE) == LARGE
    assert ends.right.counters.refused == 1
    assert ends.left.counters.refusals == 1
    assert ends.left.counters.tx_bcopy_bytes == len(LARGE)
    assert ends.pass_on(LARGE) == LARGE
    assert ends.right.counters.refused == 1


def test_a_sink_in_buffered_mode_is_advertised_nothing() -> None:
    ends = Ends(0, None, Tuning(buffered=True))
    ends.settle()
    assert ends.pass_on(LARGE) == LARGE
    assert ends.left.counters.src_adverts == 0


def test_several_sources_wait_at_once_in_pipelined_mode() -> None:
    ends = Ends(0, None, Tuning(rcv_bytes=1, read_size=1000))
    for _ in range(3):
        ends.left.engine.sendmsg([memoryview(LARGE)])
    ends.settle()
    assert ends.left.counters.src_adverts == 3
    assert ends.left.counters.mode_changes == 1


# -- out-of-band data, keepalive, set-up --------------------------------------------------------


def test_an_out_of_band_octet_is_told_of_and_stands_beside_the_stream() -> None:
    ends = Ends()
    engine = ends.right.engine
    ends.left.engine.sendmsg([memoryview(b"abc")])
    ends.left.engine.sendmsg([memoryview(b"d!")], oob=True)
    ends.left.engine.sendmsg([memoryview(b"ef")])
    ends.settle()
    assert ends.right.events & POLLPRI
    assert engine.oob_pending
    assert engine.recv_oob(peek=True) == b"!"
    assert engine.recv_oob() == b"!"
    assert engine.recv_oob() is None
    assert not engine.oob_pending
    assert ends.right.read(100) == 4
    assert engine.at_mark
    assert ends.right.read(100) == 2
    assert ends.right.taken == b"abcdef"


def test_an_out_of_band_octet_can_stay_in_the_stream() -> None:
    ends = Ends()
    ends.right.engine.oob_inline = True
    ends.left.engine.sendmsg([memoryview(b"ab!")], oob=True)
    ends.settle()
    assert ends.right.read(100) == 2
    assert ends.right.engine.at_mark
    assert ends.right.read(100) == 1
    assert ends.right.taken == b"ab!"


def test_out_of_band_data_that_waits_is_announced() -> None:
    ends = Ends()
    ends.left.engine.send_in_place(memoryview(bytearray(10 << 20)))
    ends.left.engine.sendmsg([memoryview(b"!")], oob=True)
    ends.settle()
    assert ends.right.engine.oob_pending
    assert ends.right.engine.recv_oob() == b""
    while ends.right.read(1 << 20):
        ends.settle()
    assert ends.right.engine.recv_oob() == b"!"


def test_an_octet_out_of_band_that_nobody_took_is_an_ordinary_one_after_the_next() -> None:
    ends = Ends()
    for octets in (b"a1", b"b2"):
        ends.left.engine.sendmsg([memoryview(octets)], oob=True)
    ends.settle()
    assert ends.right.engine.recv_oob() == b"2"
    ends.right.read(100)
    assert ends.right.taken == b"a1b"


def test_a_quiet_peer_is_asked_for_a_sign_of_life_and_a_dead_one_is_found_out() -> None:
    ends = Ends(0, Tuning(keepalive=10.0, keepalive_timeout=5.0))
    engine = ends.left.engine
    ends.settle()
    for now in (10.0, 20.0, 30.0):
        ends.set_time(now)
        ends.settle()
        assert not engine.error
    assert ends.left.counters.keepalives == 3
    ends.left.now = 40.0
    engine.handle_timer(40.0)
    ends.left.now = 45.0
    assert engine.deadline == 45.0
    engine.handle_timer(45.0)
    assert (engine.ended, engine.error) == (True, errno.ETIMEDOUT)


@pytest.mark.parametrize(
    "private_data",
    [
        b"",
        b"\0" * 68,
        sdp.Hello(4, 8, 4096, 4096).emit(),
        sdp.Hello(5, 8, 4096, 100).emit(),
        sdp.Hello(5, 8, 4096, 4096, version=0x11).emit(),
        sdp.Hello(5, 8, 4096, 4096).emit()[:-1],
        sdp.HelloAck(5, 8, 4096).emit(),
    ],
)
def test_a_hello_that_cannot_work_is_refused(private_data: bytes) -> None:
    with pytest.raises(ProtocolError, match="SDP"):
        Ends().right.engine.take_hello(private_data)
    with pytest.raises(ProtocolError, match="SDP"):
        Ends().left.engine.take_hello_ack(private_data[:23])


def test_the_hellos_fit_into_private_data_that_siw_takes() -> None:
    ends = Ends()
    assert len(ends.left.engine.hello(bytes(16), bytes(16), 7)) <= 251
    assert len(ends.left.engine.hello_ack()) <= 251
