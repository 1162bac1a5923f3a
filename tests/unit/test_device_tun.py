"""TUN and TAP as far as no kernel is needed: names, addresses, what is missing."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from steertag.device import hostside, tun


@pytest.mark.parametrize(
    "name", ["sixteen-octets-x", "a/b", "a b", "a:b", ".", "..", "tab\tular", "nul\0", "ä" * 8]
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(OSError, match="is no interface name") as caught:
        tun.TunDevice(name)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("address", [b"", bytes(6), b"\x01\0\0\0\0\1", bytes(7)])
def test_a_link_address_of_no_one_station_is_refused(address: bytes) -> None:
    with pytest.raises(OSError, match="no address of one station") as caught:
        tun.TapDevice("", address=address)
    assert caught.value.errno == errno.EINVAL


def test_a_host_without_tun_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tun, "CLONE", str(tmp_path / "tun"))
    with pytest.raises(FileNotFoundError) as caught:
        tun.TunDevice("any0")
    message = caught.value.strerror
    assert message is not None
    assert "tun module" in message
    assert "\n" not in message


def test_a_device_node_that_may_not_be_opened_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(tun.os, "open", refuse)
    with pytest.raises(PermissionError, match="may not be opened"):
        tun.TunDevice("any0")


def test_the_host_has_no_such_interface() -> None:
    with pytest.raises(OSError, match="no interface nosuch0") as caught:
        hostside.configure("nosuch0", ("10.9.0.1/24",))
    assert caught.value.errno == errno.ENODEV
