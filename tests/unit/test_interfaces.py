"""A device's description is read as the page about it says, and what is wrong is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steertag.runtime.interfaces import (
    VARIABLE,
    DeviceSpec,
    DeviceSpecError,
    FaultSpec,
    environment_devices,
    parse_device,
    parse_devices,
)


def test_every_part_of_a_description_is_read() -> None:
    text = (
        "tap:stag0,10.9.0.2/24,fd00:9::2/64,via=10.9.0.1,via=fd00:9::1,host=10.9.0.1/24,"
        "host=fd00:9::1/64,mtu=9000,mac=02:00:00:00:00:02,offload=no,pcap=wire.pcap,loss=1%,"
        "duplicate=0.5,corrupt=.25,reorder=100%,delay=20ms,jitter=500us,rate=10mbit,seed=7"
    )
    assert parse_device(text) == DeviceSpec(
        kind="tap",
        name="stag0",
        addresses=("10.9.0.2/24", "fd00:9::2/64"),
        via=("10.9.0.1", "fd00:9::1"),
        host=("10.9.0.1/24", "fd00:9::1/64"),
        mtu=9000,
        mac=bytes.fromhex("020000000002"),
        offload=False,
        pcap=Path("wire.pcap"),
        faults=FaultSpec(
            loss=0.01,
            duplicate=0.5,
            corrupt=0.25,
            reorder=1.0,
            delay=0.02,
            jitter=0.0005,
            rate=10e6,
            seed=7,
        ),
    )


def test_what_is_left_out_has_a_default() -> None:
    spec = parse_device("tun:10.9.0.2/24")
    assert spec == DeviceSpec(kind="tun", addresses=("10.9.0.2/24",))
    assert spec.offload
    assert not spec.faults


def test_spaces_around_the_parts_mean_nothing() -> None:
    assert parse_device(" tun: stag0, 10.9.0.2/24 , mtu = 1400 ") == parse_device(
        "tun:stag0,10.9.0.2/24,mtu=1400"
    )


def test_a_seed_alone_is_no_fault() -> None:
    assert not parse_device("tun:10.9.0.2/24,seed=3").faults
    assert parse_device("tun:10.9.0.2/24,loss=1%").faults


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("", "tun:"),
        ("eth0,10.9.0.2/24", "tun:"),
        ("veth:a,10.9.0.2/24", "tap:"),
        ("tun:stag0", "as 10.9.0.2/24"),
        ("tun:10.9.0.2", "write 10.9.0.2/24"),
        ("tun:fd00::2", "write fd00::2/64"),
        ("tun:10.9.0.300/24", "10.9.0.2/24"),
        ("tun:224.0.0.1/24", "no address of one interface"),
        ("tun:0.0.0.0/8", "no address of one interface"),
        ("tun:127.0.0.1/8", "no address of one interface"),
        ("tun:a-name-much-too-long,10.9.0.2/24", "15 characters"),
        ("tun:stag0,stag1,10.9.0.2/24", "'stag1'"),
        ("tun:10.9.0.2/24,host=10.9.0.1", "10.9.0.1/24"),
        ("tun:10.9.0.2/24,host=10.9.0.2/24", "another"),
        ("tun:10.9.0.2/24,10.9.0.2/16", "10.9.0.2 stands there twice"),
        ("tun:10.9.0.2/24,via=10.8.0.1", "no network"),
        ("tun:10.9.0.2/24,via=10.9.0.1,via=10.9.0.3", "twice"),
        ("tun:10.9.0.2/24,via=10.9.0.1/24", "without a prefix"),
        ("tun:10.9.0.2/24,mtu=67", "68 to 65535"),
        ("tun:10.9.0.2/24,mtu=65536", "68 to 65535"),
        ("tun:10.9.0.2/24,mtu=big", "whole number"),
        ("tun:10.9.0.2/24,mtu=1400,mtu=1500", "twice"),
        ("tun:fd00::2/64,mtu=1279", "IPv6 needs 1280"),
        ("tun:10.9.0.2/24,offload=maybe", "yes or no"),
        ("tun:10.9.0.2/24,mac=02:00:00:00:00:02", "of a tap"),
        ("tap:10.9.0.2/24,mac=03:00:00:00:00:02", "begin it with 02"),
        ("tap:10.9.0.2/24,mac=2", "02:00:00:00:00:02"),
        ("tun:10.9.0.2/24,loss=2", "1% or 0.01"),
        ("tun:10.9.0.2/24,loss=nan", "1% or 0.01"),
        ("tun:10.9.0.2/24,delay=20", "20ms"),
        ("tun:10.9.0.2/24,rate=10", "10mbit"),
        ("tun:10.9.0.2/24,rate=0mbit", "10mbit"),
        ("tun:10.9.0.2/24,seed=-1", "whole number"),
        ("tun:10.9.0.2/24,pcap=", "name of a file"),
        ("tun:10.9.0.2/24,los=1%", "unknown setting 'los'; there are via, host, mtu"),
    ],
)
def test_a_wrong_description_is_one_line_that_says_what_to_write(text: str, advice: str) -> None:
    with pytest.raises(DeviceSpecError) as told:
        parse_device(text)
    message = str(told.value)
    assert advice in message
    assert repr(text.strip()) in message
    assert "\n" not in message


@given(st.text(max_size=80) | st.from_regex(r"(tun|tap):[a-z0-9.:/=,%]*", fullmatch=True))
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        spec = parse_device(text)
    except DeviceSpecError:
        return
    assert spec.addresses


def test_the_environment_holds_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tun:10.9.0.2/24; tap:stag1,10.9.1.2/24;")
    assert environment_devices() == [
        parse_device("tun:10.9.0.2/24"),
        parse_device("tap:stag1,10.9.1.2/24"),
    ]
    monkeypatch.delenv(VARIABLE)
    assert environment_devices() == parse_devices("") == []
