"""RST in answer to a segment, and challenge ACKs (RFC 9293 section 3.10.7.1, RFC 5961)."""

from __future__ import annotations

from tests.inet.script import Script, conformance


@conformance(v=(4, 6))
def test_a_segment_for_nobody_is_answered_as_rfc_9293_says(s: Script) -> None:
    s.inject("S 0:0(0)", options=())
    s.expect("R. 0:0(0) ack 1")
    s.flow = s.new_flow(40001)
    s.inject("P 0:10(10)", options=())
    s.expect("R. 0:0(0) ack 10")
    s.flow = s.new_flow(40002)
    s.flow.their_isn = 700
    s.inject(". 5:5(0) ack 300", options=())
    s.expect("R 300:300(0)")
    s.flow = s.new_flow(40003)
    s.inject("SF 0:10(10)", options=())
    s.expect("R. 0:0(0) ack 12")


@conformance(v=(4, 6))
def test_a_reset_is_never_answered(s: Script) -> None:
    s.inject("R 0:0(0)", options=())
    s.inject("R. 0:0(0) ack 5", options=())
    s.nothing(0.3)


@conformance()
def test_nothing_that_was_sent_to_many_is_answered(s: Script) -> None:
    for dest in ("255.255.255.255", "224.0.0.1"):
        s.inject("S 0:0(0)", options=(), dest=dest)
    s.nothing(0.3)


@conformance("ours")
def test_a_wrong_checksum_is_counted_and_not_answered(s: Script) -> None:
    s.inject("S 0:0(0)", options=())
    s.expect("R. 0:0(0) ack 1")
    octets = bytearray(40)
    octets[:] = _syn_with_bad_checksum(s)
    s.side.inject(bytes(octets))
    s.nothing(0.3)
    mib = s.side.net.mib  # type: ignore[attr-defined]
    assert (mib["TcpInCsumErrors"], mib["TcpInErrs"]) == (1, 1)


def _syn_with_bad_checksum(s: Script) -> bytes:
    from tests.inet.packets import SYN, Tcp, emit

    packet = Tcp(flags=SYN, sport=1, dport=2, source=s.ours, dest=s.theirs, window=9, options=())
    good = bytearray(emit(packet))
    good[-4] ^= 1
    return bytes(good)


@conformance()
def test_a_syn_in_an_established_connection_is_challenged(s: Script) -> None:
    s.accepted()
    s.inject("S 1:1(0)", options=())
    s.expect(". 1:1(0) ack 1")


@conformance()
def test_a_reset_inside_the_window_but_not_at_its_edge_is_challenged(s: Script) -> None:
    s.accepted()
    s.inject("R 100:100(0)")
    s.expect(". 1:1(0) ack 1")
    s.inject("R 1:1(0)")
    s.inject(". 1:1(0) ack 1")
    s.expect("R 1:1(0)")


@conformance()
def test_challenges_of_a_connection_are_rate_limited(s: Script) -> None:
    s.accepted()
    s.inject("S 1:1(0)", options=())
    s.expect(". 1:1(0) ack 1")
    s.inject("S 1:1(0)", options=())
    s.nothing(0.2)
    s.sleep(0.6)
    s.inject("S 1:1(0)", options=())
    s.expect(". 1:1(0) ack 1")


@conformance("ours", sysctls={"net.ipv4.tcp_challenge_ack_limit": 4})
def test_challenges_of_the_whole_stack_are_limited_by_the_second(s: Script) -> None:
    listener = s.listener(backlog=64)
    flows = [s.new_flow(40001 + i) for i in range(20)]
    for flow in flows:
        s.handshake(flow=flow)
        s.accept(listener)
    for flow in flows:
        s.inject("S 1:1(0)", flow, options=())
    first = len(s.skip(0.0))
    assert 2 <= first <= 6
    s.sleep(1.1)
    for flow in flows:
        s.inject("S 1:1(0)", flow, options=())
    assert 2 <= len(s.skip(0.0)) <= 6
