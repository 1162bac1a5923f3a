"""Registering and unregistering families and protocols, with the kernel's errors."""

import errno
import socket as std
import threading
from pathlib import Path

import pytest
from example_stream import ExampleStream
from new_protocol import AF_EXAMPLE, ExampleFamily, register

import steertag
from steertag import NetProtoFamily, Proto, Stack, device, socket
from steertag.errors import StateError
from steertag.family import Counter
from steertag.family.net import sock_release
from steertag.testing import expect_errno
from steertag.testing.families import outcome_of
from tests import packages


def family(number: int) -> NetProtoFamily:
    def create(stack: Stack, sock: object, protocol: int) -> None:
        raise OSError(errno.EPROTONOSUPPORT, "nothing in here")

    return NetProtoFamily(family=number, create=create, owner="test")


@pytest.fixture
def stack() -> Stack:
    return Stack(load_family=None)


@pytest.fixture
def example(stack: Stack) -> ExampleFamily:
    return register(stack, device.loopback(), "node")


def test_a_number_that_is_taken_is_eexist(stack: Stack) -> None:
    stack.sock_register(family(50))
    expect_errno(lambda: stack.sock_register(family(50)), errno.EEXIST)
    stack.sock_unregister(50)
    stack.sock_register(family(50))
    assert list(stack.families) == [50]


@pytest.mark.parametrize("number", [-1, steertag.NPROTO, 10**9])
def test_a_number_outside_nproto_is_enobufs(stack: Stack, number: int) -> None:
    expect_errno(lambda: stack.sock_register(family(number)), errno.ENOBUFS)


def test_unregistering_what_is_not_there_is_enoent(stack: Stack) -> None:
    expect_errno(lambda: stack.sock_unregister(50), errno.ENOENT)
    expect_errno(lambda: stack.sock_unregister(steertag.NPROTO), errno.EINVAL)
    expect_errno(lambda: stack.proto_unregister(Proto(name="X", owner="test")), errno.ENOENT)


def test_a_protocol_name_that_is_taken_is_eexist(stack: Stack) -> None:
    stack.proto_register(Proto(name="X", owner="test"))
    expect_errno(lambda: stack.proto_register(Proto(name="X", owner="test")), errno.EEXIST)


def test_a_proto_belongs_to_one_stack(stack: Stack) -> None:
    prot = Proto(name="X", owner="test")
    stack.proto_register(prot)
    expect_errno(lambda: Stack().proto_register(prot), errno.EBUSY)
    stack.proto_unregister(prot)
    Stack().proto_register(prot)


@pytest.mark.parametrize(
    "wrong",
    [
        Proto(name="X", owner="t", enter_memory_pressure=lambda sk: None),
        Proto(name="X", owner="t", memory_allocated=Counter(), sysctl_mem=[3, 2, 1]),
        Proto(name="X", owner="t", memory_allocated=Counter(), sysctl_mem=[1, 2]),
    ],
)
def test_memory_members_that_make_no_sense_are_einval(stack: Stack, wrong: Proto) -> None:
    expect_errno(lambda: stack.proto_register(wrong), errno.EINVAL)
    assert stack.protocols == []


def test_create_errors_are_the_kernels(stack: Stack, example: ExampleFamily) -> None:
    expect_errno(lambda: stack.sock_create(51, std.SOCK_STREAM), errno.EAFNOSUPPORT)
    expect_errno(lambda: stack.sock_create(-1, std.SOCK_STREAM), errno.EAFNOSUPPORT)
    expect_errno(lambda: stack.sock_create(AF_EXAMPLE, 0), errno.EINVAL)
    expect_errno(lambda: stack.sock_create(AF_EXAMPLE, std.SOCK_RAW), errno.ESOCKTNOSUPPORT)
    expect_errno(lambda: stack.sock_create(AF_EXAMPLE, std.SOCK_STREAM, 7), errno.EPROTONOSUPPORT)
    example.unregister()  # none of the failures left a user behind


def test_flag_bits_in_the_type_are_no_type(stack: Stack, example: ExampleFamily) -> None:
    flags = std.SOCK_NONBLOCK | std.SOCK_CLOEXEC
    sock = socket.socket(AF_EXAMPLE, std.SOCK_STREAM | flags, stack=stack)
    with sock:
        assert (sock.type, sock.getblocking()) == (std.SOCK_STREAM, False)


def test_create_makes_an_unconnected_socket(stack: Stack, example: ExampleFamily) -> None:
    sock = stack.sock_create(AF_EXAMPLE, std.SOCK_STREAM)
    assert (sock.state.name, sock.ops, sock.sk.sk_prot) == (
        "SS_UNCONNECTED",
        example.stream_ops,
        example.stream.prot,
    )
    assert sock.sk.sk_socket is sock
    sock_release(sock)


def test_a_protocol_must_be_registered_before_socks_are_made_of_it(stack: Stack) -> None:
    unregistered = ExampleStream(device.loopback(), "node").prot
    with pytest.raises(StateError, match="EXSTREAM is not registered"):
        steertag.family.sk_alloc(stack, AF_EXAMPLE, unregistered)


def test_unregistering_a_family_with_live_sockets_is_ebusy(
    stack: Stack, example: ExampleFamily
) -> None:
    with socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack):
        expect_errno(lambda: stack.sock_unregister(AF_EXAMPLE), errno.EBUSY)
        expect_errno(lambda: stack.proto_unregister(example.stream.prot), errno.EBUSY)
    example.unregister()
    assert (stack.families, stack.protocols, stack.devices) == ({}, [], {})


def test_accepted_sockets_hold_their_family_too(stack: Stack, example: ExampleFamily) -> None:
    with (
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as client,
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as server,
    ):
        server.bind(("node", 1))
        server.listen()
        client.connect(("node", 1))
        conn, _ = server.accept()
    with conn:
        expect_errno(lambda: stack.sock_unregister(AF_EXAMPLE), errno.EBUSY)
    example.unregister()


def test_unregistering_races_with_create_and_nothing_breaks(stack: Stack) -> None:
    """Whatever the order, a socket is made whole or refused, and the end state is clean."""
    unexpected: list[BaseException] = []
    made = [0]
    refused = [0]
    stop = threading.Event()

    def make() -> None:
        while not stop.is_set():
            try:
                sock = stack.sock_create(AF_EXAMPLE, std.SOCK_STREAM)
            except OSError as exc:
                refused[0] += 1
                if exc.errno != errno.EAFNOSUPPORT:
                    unexpected.append(exc)
                continue
            except BaseException as exc:  # noqa: BLE001  # reported by the main thread
                unexpected.append(exc)
                return
            made[0] += 1
            sock_release(sock)

    entry = ExampleFamily(stack, device.loopback(), "node")
    entry.register()
    makers = [threading.Thread(target=make) for _ in range(3)]
    for maker in makers:
        maker.start()
    turns = 0
    while turns < 30 or not made[0]:
        refusal = outcome_of(lambda: stack.sock_unregister(AF_EXAMPLE))
        if refusal is not None:
            assert isinstance(refusal, OSError)
            assert refusal.errno == errno.EBUSY
            continue
        stack.sock_register(NetProtoFamily(family=AF_EXAMPLE, create=entry.create, owner="test"))
        turns += 1
    stop.set()
    for maker in makers:
        maker.join()
    assert unexpected == []
    assert entry.stream.prot.inuse == 0
    entry.unregister()


def test_the_default_stack_serves_module_level_calls() -> None:
    prot = Proto(name="TEST-DEFAULT", owner="test")
    steertag.proto_register(prot)
    try:
        assert prot in steertag.default_stack().protocols
    finally:
        steertag.proto_unregister(prot)
    steertag.sock_register(family(120))
    steertag.sock_unregister(120)
    assert 120 not in steertag.default_stack().families


def test_init_and_destroy_frame_the_life_of_every_sock(stack: Stack) -> None:
    lives: list[str] = []
    entry = ExampleFamily(stack, device.loopback(), "node")
    start = entry.stream.prot.init
    entry.stream.prot.init = lambda sk: (start(sk), lives.append("init"))
    entry.stream.prot.destroy = lambda sk: lives.append("destroy")
    entry.register()
    with (
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as server,
        socket.socket(AF_EXAMPLE, std.SOCK_STREAM, stack=stack) as client,
    ):
        server.bind(("node", 1))
        server.listen()
        client.connect(("node", 1))
        assert lives == ["init"] * 3, "the child that the listener made is one too"
    assert lives == ["init"] * 3 + ["destroy"] * 3


def test_a_sock_that_init_refuses_leaves_nothing(stack: Stack) -> None:
    entry = ExampleFamily(stack, device.loopback(), "node")

    def refuse(sk: object) -> None:
        raise OSError(errno.ENOMEM, "no")

    entry.stream.prot.init = refuse
    entry.register()
    expect_errno(lambda: stack.sock_create(AF_EXAMPLE, std.SOCK_STREAM), errno.ENOMEM)
    entry.unregister()
    assert entry.stream.prot.sockets_allocated.value == 0


def test_two_stacks_know_nothing_of_each_other(stack: Stack, example: ExampleFamily) -> None:
    other = Stack(load_family=None)
    expect_errno(lambda: other.sock_create(AF_EXAMPLE, std.SOCK_STREAM), errno.EAFNOSUPPORT)


# -- families that installed packages bring ---------------------------------------------------

PACKAGE = '''
"""A third party's protocol family, as its package would bring it."""
from steertag import device
from new_protocol import ExampleFamily, AF_EXAMPLE
from steertag.family import NetProtoFamily

def register(stack):
    family = ExampleFamily(stack, device.loopback("acme0"), "acme")
    stack.proto_register(family.stream.prot)
    stack.proto_register(family.dgram)
    stack.sock_register(NetProtoFamily(family=77, create=family.create, owner=__name__))
    device.register_netdevice(stack, family.device, family.receive)
'''


def install(site: Path, entry: str, source: str = PACKAGE) -> None:
    packages.install(site, "acme_family", source, "steertag.families", entry)


def test_an_unknown_family_is_loaded_from_an_installed_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "net-pf-77 = acme_family:register")
    monkeypatch.syspath_prepend(str(tmp_path))
    stack = Stack()
    with (
        socket.socket(77, std.SOCK_STREAM, stack=stack) as server,
        socket.socket(77, std.SOCK_STREAM, stack=stack) as client,
    ):
        server.bind(("acme", 1))
        server.listen()
        client.connect(("acme", 1))
        conn, _ = server.accept()
        with conn:
            client.sendall(b"third party")
            assert conn.recv(100) == b"third party"
    expect_errno(lambda: stack.sock_create(78, std.SOCK_STREAM), errno.EAFNOSUPPORT)


def test_threads_that_ask_at_once_load_a_package_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "net-pf-77 = acme_family:register")
    monkeypatch.syspath_prepend(str(tmp_path))
    stack = Stack()
    start = threading.Barrier(4)
    outcomes: list[object] = []

    def ask() -> None:
        start.wait(30)
        outcomes.append(outcome_of(lambda: stack.sock_create(77, std.SOCK_STREAM)))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome for outcome in outcomes if isinstance(outcome, OSError)] == []
    for sock in outcomes:
        sock_release(sock)


def test_a_broken_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "net-pf-77 = acme_broken:register")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(OSError, match=r"net-pf-77 = acme_broken:register: No module") as caught:
        Stack().sock_create(77, std.SOCK_STREAM)
    assert caught.value.errno == errno.ENOEXEC


def test_our_own_families_are_announced_like_anybodys() -> None:
    stack = Stack()
    with socket.socket(std.AF_INET, std.SOCK_STREAM, stack=stack) as sock:
        assert sock.family == std.AF_INET
    loaded = Stack()
    assert set(loaded.load_announced_families()) >= {std.AF_UNIX}
    assert set(loaded.families) >= {std.AF_UNIX, std.AF_INET, std.AF_INET6}
