"""Who sees the RNICs that are opened over a Stack."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from steertag import Stack
from steertag import verbs as v
from steertag.observe.resources import Numbers, context_rows
from tests import packages

PACKAGE = """\
def attach(stack):
    stack.observers.append(seen.append)

seen = []
"""


def install(site: Path, entry: str) -> None:
    packages.install(site, "acme_monitor", PACKAGE, "steertag.observers", entry)


def test_an_installed_package_sees_every_rnic_of_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "monitor = acme_monitor:attach")
    monkeypatch.syspath_prepend(str(tmp_path))
    stack = Stack()
    with v.Context(stack=stack) as first, v.Context(stack=stack) as second, v.Context():
        import acme_monitor

        assert acme_monitor.seen[:2] == [first, second]


def test_a_broken_package_is_named_and_the_rnic_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "monitor = acme_broken:attach")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OSError, match="monitor = acme_broken:attach: No module") as caught:
        v.Context(stack=Stack())
    assert caught.value.errno == errno.ENOEXEC


def test_a_stack_may_be_without_observers() -> None:
    stack = Stack(load_observers=None)
    with v.Context(stack=stack):
        assert stack.observers == []


def test_an_observer_may_give_every_connection_a_tap() -> None:
    stack, asked = Stack(load_observers=None), list[object]()

    def watch(context: object) -> None:
        assert isinstance(context, v.Context)
        context.tap_for = asked.append

    stack.observers.append(watch)
    passive = v.AddrInfo(src="127.0.0.1", src_service=0, flags=v.RAI_PASSIVE)
    with v.Context(stack=stack) as context, v.PD(context) as pd, v.CMID(passive, pd=pd) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        with v.CMID(v.AddrInfo(dst="127.0.0.1", dst_service=port), pd=pd) as active:
            with pytest.raises(OSError, match="no MPA Reply"):  # nobody accepts
                active.connect(timeout=0.05)
            assert context.wait_for(lambda: len(asked) == 2, 60), asked


def test_a_program_can_list_its_own_rnic() -> None:
    with v.Context() as context, v.PD(context) as pd, v.MR(pd, bytearray(10), 1) as mr:
        rows = context_rows(context, Numbers())
        assert rows["device"] == context.name
        (region,) = rows["mr"] if isinstance(rows["mr"], list) else ()
        assert (region["mrlen"], int(region["rkey"], 16)) == (10, mr.rkey)
