"""Drives a Stack that keeps real time: takes frames from its devices, and runs its timers.

Whoever waits, drives. A thread that blocks in a call on a socket waits on the devices' descriptors
itself and takes the frames in, so that no frame has to pass from one thread to another before the
call goes on. Of several such threads one leads and drives, the others follow: each sleeps until
there is news for its own socket, or until the leader leaves and hands over. While nobody waits (the
program computes, or sits in an event loop), a background thread drives; it stands back while there
is a leader, and for a moment after one has left, since who has just left is usually back at once.

All that is kept here is guarded by the Stack's lock, which nobody holds while waiting.
"""

from __future__ import annotations

import atexit
import errno
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final, Protocol
from weakref import WeakSet

from steertag.device.base import Device
from steertag.errors import os_error
from steertag.family.const import SOCK_DEAD, TcpState
from steertag.family.net import sock_release
from steertag.family.sock import Sock
from steertag.family.socket import Socket
from steertag.family.stack import NETDEV_UNREGISTER, Stack
from steertag.runtime.sleep import NEVER, READ, WRITE, EventFd, Sleeper, Waiter

SPIN: Final = 50e-6
"""Seconds to look for a frame before sleeping for it, like the kernel's busy polling; only where
frames came that soon the last time, and where there is a second processor."""
GRACE: Final = 2e-3
LONGEST_GRACE: Final = 8e-3
"""Seconds that the background thread leaves the devices alone after a leader has left: the first
where leaders were rare of late, up to the second where they come and go."""
IDLE: Final = 5.0
"""Seconds after which a background thread with no descriptor and no timer to wait for ends."""
EXIT_LINGER: Final = 2.0
"""Seconds, at the interpreter's exit, for what sockets still have to deliver: the kernel closes
them and goes on with it when the process is gone."""
_LOOK: Final = 5e-3
"""Seconds between two looks, at the exit."""
_DELIVERING: Final = (
    TcpState.TCP_FIN_WAIT1,
    TcpState.TCP_CLOSING,
    TcpState.TCP_LAST_ACK,
)
_FAILURES: Final = 16
"""Turns of a device that may fail one after the other before it is taken down."""
_LONGEST: Final = 86400.0
"""Seconds of one sleep: epoll counts milliseconds in an int. Who waits longer sleeps again."""
_THREAD_NAME: Final = "steertag-net"
_OBSERVERS_NAME: Final = "steertag-observers"
_LOG: Final = logging.getLogger("steertag.runtime")
_SPINS: Final = len(os.sched_getaffinity(0)) > 1


class Driven(Protocol):
    """What is driven: a device, or anything else with a descriptor (runtime/reactor.py).

    Attributes:
        name: for the log.
        turn: to be called, with the Stack's lock held, when the descriptor is readable; True if
            anything came. None: not now.
    """

    @property
    def name(self) -> str: ...
    @property
    def turn(self) -> Callable[[], bool] | None: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class Lead(Waiter):
    """A loop of somebody's own that drives a Stack for good (`NetDriver.lead`).

    The loop polls `fileno()` for reading among its other descriptors, at most as long as `prepare`
    says, and calls `turn` afterwards. It sleeps without the Stack's lock.
    """

    __slots__ = ("_driver", "_front", "_kick")

    def __init__(self, driver: NetDriver, front: select.epoll, kick: EventFd) -> None:
        super().__init__(READ)
        self._driver = driver
        self._front = front
        self._kick = kick

    def fileno(self) -> int:
        return self._front.fileno()

    def before(self) -> float | None:
        """Seconds that the loop may sleep now; None is without end."""
        stack = self._driver.stack
        with stack.lock:
            until = stack.timers.deadline
            self.prepare(NEVER if until is None else until, self._kick)
        return None if until is None else min(max(0.0, until - time.monotonic()), _LONGEST)

    def turn(self) -> None:
        """Take in what there is and run the timers that are due."""
        self.asleep = False
        self._driver._turn_ready(self._front, self._kick)


class NetDriver:
    """What drives one Stack; made by `ensure_driver`. See the module for how it works.

    A Stack with another clock than time.monotonic isn't driven, whoever made the clock does that:
    here its sockets only wait for news.
    """

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self._real = stack.clock is time.monotonic
        self._spinning = _SPINS
        self._closed = self._announced = False
        self._reset()
        with stack.lock:
            stack.driver = self
            if self._real:
                stack.timers.on_earlier = self._earlier
                stack.netdev_chain.append(self._netdev_event)
                for device in tuple(stack.devices.values()):
                    self._netdev_event(0, device)
                if stack.timers.pending:
                    self._earlier()

    def _reset(self) -> None:
        self._leader: Waiter | None = None
        self._followers: dict[Waiter, None] = {}
        self._leaves = 0
        self._everything_by = 0.0
        self._devices: dict[int, Driven] = {}
        self._failures: dict[Driven, int] = {}
        self._front: select.epoll | None = None  # the leader's: its eventfd and the devices
        self._back: select.epoll | None = None  # the background thread's: likewise
        self._kick: EventFd | None = None
        self._wake: EventFd | None = None
        self._thread: threading.Thread | None = None
        self._idle = False  # the thread has found nothing to do before
        self._background = Sleeper()

    # -- waiting -------------------------------------------------------------------------------

    def wait(self, sock: Socket, seen: int, events: int, deadline: float | None) -> None:
        """Wait until there is news for `sock`, driving meanwhile.

        Args:
            seen: `sock.news` from before the call that found that it has to wait.
            events: READ or WRITE: what the call waits for.
            deadline: of time.monotonic; None waits without end.

        Raises:
            TimeoutError: the deadline passed first.
        """
        waiter = Waiter(events)
        lock, queue = self.stack.lock, sock.wait_queue
        wake = waiter.wake
        sk = sock.sk
        busy = None if sk is None or not self._real else sk.sk_prot.busy_loop
        if busy is not None and self._look(sock, seen, busy):
            return
        try:
            with lock:
                if sock.news != seen:
                    return
                queue.append(wake)
                if self._leader is None and self._real and not self._closed:
                    self._leader = waiter
            while not waiter.news:
                if self._leader is waiter:
                    self._lead(waiter, deadline, sock if busy is not None else None)
                else:
                    self._follow(waiter, deadline)
        finally:
            with lock:
                if wake in queue:
                    queue.remove(wake)
                if self._leader is waiter:
                    self._hand_over()

    def _look(self, sock: Socket, seen: int, busy_loop: Callable[[Sock], bool]) -> bool:
        """Look for what the socket itself waits for, a while where it says so. True: news."""
        lock = self.stack.lock
        now = time.monotonic()
        if now >= self._everything_by:
            # Who looks at one socket alone, again and again, drives the others all the same.
            self._everything_by = now + GRACE
            self._turn_all(now)
        self._leaves += 1  # as a leader who was there: the background stands back for a while
        until = 0.0
        while True:
            with lock:
                sk = sock.sk
                if sock.news != seen or sk is None:
                    return True
                again = busy_loop(sk)
                if sock.news != seen:
                    return True
            if not (again and _SPINS):
                return False
            now = time.monotonic()
            if not until:
                until = now + SPIN
            elif now >= until:
                return False

    def service(self) -> None:
        """Take in, without waiting, what the devices have: for a thread that sends a lot.

        The peer's acknowledgements come while it does; so they needn't rouse another thread, which
        would only wait for this one's lock.
        """
        if self._leader is None and self._devices and self._real:
            self._leaves += 1  # as a leader who was there: the background stands back for a while
            self._turn_all(time.monotonic())

    def _turn_all(self, now: float) -> None:
        self._poll(tuple(self._devices.values()))
        if self.stack.timers.due(now):
            self._run_timers(now)

    def lead(self) -> Lead:
        """Have a loop of the caller's own drive from now on, for good.

        Other threads can wait on the Stack's sockets all the same: they follow.
        """
        with self.stack.lock:
            front, kick = self._open_polls()
            self._leader = lead = Lead(self, front, kick)
            self._background.rouse()
        return lead

    def _turn_ready(self, front: select.epoll, kick: EventFd) -> None:
        self._poll(self._ready(front.poll(0), kick))  # what is left, the descriptor says again
        now = time.monotonic()
        if self.stack.timers.due(now):
            self._run_timers(now)

    def wait_until(self, sock: Socket, done: Callable[[], bool], deadline: float | None) -> bool:
        """Wait until `done()`, called with the lock held whenever there is news for `sock`.

        Returns False if the deadline passed first.
        """
        while True:
            with self.stack.lock:
                if done():
                    return True
                seen = sock.news
            try:
                self.wait(sock, seen, READ | WRITE, deadline)
            except TimeoutError:
                return False

    @property
    def drives_devices(self) -> bool:
        """Whether it has a device with a descriptor."""
        return bool(self._devices)

    def _follow(self, waiter: Waiter, deadline: float | None) -> None:
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise TimeoutError("timed out")
        stack = self.stack
        with stack.lock:
            if waiter.news or self._leader is waiter:
                return
            if self._leader is None and self._real and not self._closed:
                self._leader = waiter
                return
            self._followers[waiter] = None
            waiter.prepare(NEVER)
        try:
            waiter.sleep(stack, timeout)
        finally:
            with stack.lock:
                self._followers.pop(waiter, None)

    def _lead(self, waiter: Waiter, deadline: float | None, busy: Socket | None) -> None:
        """Take frames in and run timers, until there is news for the leader or its time is over.

        `busy`: the leader's socket, if it can be looked at by itself, as it has been.
        """
        clock, stack = time.monotonic, self.stack
        timers = stack.timers
        devices: Iterable[Driven] = tuple(self._devices.values())
        spin_until = clock() + SPIN if self._spinning and devices and busy is None else 0.0
        while True:
            moved = self._poll(devices)
            now = clock()
            if timers.due(now):
                self._run_timers(now)
            if waiter.news or self._leader is not waiter:
                return
            if deadline is not None and now >= deadline:
                raise TimeoutError("timed out")
            if not moved and now >= spin_until:
                devices = self._sleep_leading(waiter, now, deadline)
                if waiter.news or self._leader is not waiter:
                    return
                if busy is not None and devices:
                    with stack.lock:
                        if (sk := busy.sk) is not None and sk.sk_prot.busy_loop is not None:
                            sk.sk_prot.busy_loop(sk)
                    if waiter.news:
                        return  # the others' are left to whoever leads next

    def _sleep_leading(
        self, waiter: Waiter, now: float, deadline: float | None
    ) -> Iterable[Driven]:
        """Sleep until a device has something, a timer is due, or somebody rouses the leader."""
        stack = self.stack
        with stack.lock:
            if waiter.news or self._leader is not waiter:
                return ()
            until = stack.timers.deadline
            if deadline is not None and (until is None or deadline < until):
                until = deadline
            timeout = None if until is None else min(max(0.0, until - now), _LONGEST)
            front, kick = self._front, self._kick
            waiter.prepare(NEVER if until is None else until, kick)
        if front is None or kick is None:
            waiter.sleep(stack, timeout)
            return tuple(self._devices.values())
        ready = front.poll(timeout)
        waiter.asleep = False
        self._spinning = _SPINS and time.monotonic() - now < 2 * SPIN
        return self._ready(ready, kick)

    def _ready(self, ready: list[tuple[int, int]], eventfd: EventFd) -> list[Driven]:
        devices = []
        for fd, events in ready:
            if fd == eventfd.fd:
                eventfd.clear()
            elif (device := self._devices.get(fd)) is not None:
                if events & select.EPOLLIN:
                    devices.append(device)
                else:
                    self._failed(device, os_error(errno.ENETDOWN, "its descriptor hung up"))
        return devices

    def _hand_over(self) -> None:
        """The leader leaves: the follower who came last leads, or else nobody. Lock held."""
        self._leaves += 1
        if self._followers:
            follower, _ = self._followers.popitem()
            self._leader = follower
            follower.rouse()
            return
        self._leader = None
        background = self._background
        if self._thread is None:
            if self._devices or self.stack.timers.pending:
                self._start()
        elif background.asleep and (
            background.wake_at == NEVER or self.stack.timers.due(background.wake_at)
        ):
            background.rouse()

    # -- driving -------------------------------------------------------------------------------

    def _poll(self, devices: Iterable[Driven]) -> bool:
        """One turn of each device. True if any had something."""
        moved = False
        lock = self.stack.lock
        for device in devices:
            try:
                with lock:
                    if (turn := device.turn) is not None and turn():
                        moved = True
            except Exception as exc:  # noqa: BLE001 - whatever it is, the others go on
                self._failed(device, exc)
            else:
                if self._failures:
                    self._failures.pop(device, None)
        return moved

    def _failed(self, device: Driven, exc: Exception) -> None:
        """A device that fails is taken down; a bug met by one frame costs that frame alone."""
        count = self._failures[device] = self._failures.get(device, 0) + 1
        if isinstance(exc, OSError) or count >= _FAILURES:
            _LOG.error("device %s is taken down: %s", device.name, exc, exc_info=exc)
            self._failures.pop(device, None)
            with self.stack.lock:
                self._forget(device)
            device.close()
        else:
            _LOG.error("a bug in steertag; please report it", exc_info=exc)

    def _run_timers(self, now: float) -> None:
        stack = self.stack
        with stack.lock:
            while True:
                try:
                    stack.timers.run(now)
                    return
                except Exception:  # noqa: BLE001 - whatever it is, the others go on
                    # The timer that failed is not set any more: the others go on.
                    _LOG.exception("a bug in steertag; please report it")

    def _earlier(self) -> None:
        """The Stack's `deadline` has become an earlier one. With its lock held."""
        if self._closed:
            return
        leader = self._leader
        sleeper = self._background if leader is None else leader
        if leader is None and self._thread is None:
            self._start()
        elif sleeper.asleep and self.stack.timers.due(sleeper.wake_at):
            sleeper.rouse()

    # -- devices -------------------------------------------------------------------------------

    def _netdev_event(self, event: int, device: object) -> None:
        """A device was registered or unregistered. With the Stack's lock held."""
        if not isinstance(device, Device):
            return
        if event == NETDEV_UNREGISTER:
            self._forget(device)
        elif device.fileno() != -1:
            self.drive(device)

    def drive(self, device: Driven) -> None:
        """Drive something with a descriptor from now on. With the Stack's lock held."""
        if not self._closed:
            fd = device.fileno()
            self._open_polls()
            self._devices[fd] = device
            for epoll in (self._front, self._back):
                assert epoll is not None  # they are open
                epoll.register(fd, select.EPOLLIN)
            self._rouse_driver()

    def _open_polls(self) -> tuple[select.epoll, EventFd]:
        """The leader's epoll and its eventfd; the background's are made with them."""
        if self._front is None or self._kick is None:
            self._front, self._back = select.epoll(), select.epoll()
            self._kick, self._wake = EventFd(), EventFd()
            self._front.register(self._kick.fd, select.EPOLLIN)
            self._back.register(self._wake.fd, select.EPOLLIN)
        return self._front, self._kick

    def leave(self, device: Driven) -> None:
        """Drive it no more. With the Stack's lock held, before its descriptor is closed."""
        self._forget(device)

    def _forget(self, device: Driven) -> None:
        for fd, other in tuple(self._devices.items()):
            if other is device:
                del self._devices[fd]
                for epoll in (self._front, self._back):
                    try:
                        if epoll is not None:
                            epoll.unregister(fd)
                    except OSError:
                        continue  # it was closed, and is out of the epoll already
        self._rouse_driver()

    def _rouse_driver(self) -> None:
        """What there is to wait for has changed: have whoever sleeps for it look again."""
        if self._leader is not None:
            self._leader.rouse()
        elif self._thread is None:
            if self._devices:
                self._start()
        else:
            self._background.rouse()

    # -- the background thread -----------------------------------------------------------------

    def _announce(self) -> None:
        """The process has a network of its own from now on: observers may want to know."""
        try:
            self.stack.opened(self)
        except OSError as exc:
            _LOG.warning("steertag: %s", exc)
        except RuntimeError:
            if threading.main_thread().is_alive():
                raise
            # The interpreter ends, and what is loaded then can't be: nobody will observe anything.

    def _start(self) -> None:
        if self._closed:
            return
        thread = threading.Thread(target=self._run, name=_THREAD_NAME, daemon=True)
        self._thread, self._idle = thread, False
        try:
            thread.start()
            if self._devices and not self._announced:
                self._announced = True
                # No daemon: what it imports can't be imported while the interpreter ends.
                threading.Thread(target=self._announce, name=_OBSERVERS_NAME).start()
        except RuntimeError:
            self._thread = None  # the interpreter ends: whoever still waits drives

    def _run(self) -> None:
        seen = self._leaves
        grace = GRACE
        while self._thread is not None:
            if self._leaves != seen and not self._closed:
                # Leaders come and go: not even the lock is asked for, which they would wait for.
                seen = self._leaves
                time.sleep(grace)
                grace = min(2 * grace, LONGEST_GRACE)
                continue
            grace = GRACE
            try:
                self._run_once(seen)
            except Exception:  # noqa: BLE001 - work that others left to the lock's holder is run here
                _LOG.exception("a bug in steertag; please report it")

    def _run_once(self, seen: int) -> None:
        """Drive once, or sleep while a leader does; ends the thread where nothing is to be done."""
        stack, background = self.stack, self._background
        with stack.lock:
            now = time.monotonic()
            mine = self._leader is None and self._leaves == seen
            if self._leader is None and stack.timers.due(now):
                self._run_timers(now)
            idle = mine and self._is_idle()
            if self._closed or (idle and self._idle):
                self._thread = None
                return
            self._idle = idle
            until = self._until(mine, now)
            polling, wake = (self._back, self._wake) if mine else (None, None)
            background.prepare(until, wake)
        timeout = None if until == NEVER else min(max(0.0, until - now), _LONGEST)
        if polling is None or wake is None:
            background.sleep(stack, timeout)
            return
        ready = polling.poll(timeout)
        background.asleep = False
        for device in self._ready(ready, wake):
            with stack.lock:
                if self._leader is None and self._leaves == seen:
                    self._poll((device,))

    def _is_idle(self) -> bool:
        return not self._devices and self.stack.timers.deadline is None

    def _until(self, mine: bool, now: float) -> float:
        """How long the background thread sleeps now, at most."""
        if self._leader is not None:
            return NEVER  # until the leader leaves
        deadline = self.stack.timers.deadline
        if mine:
            if self._devices:
                return NEVER if deadline is None else deadline
            return min(NEVER if deadline is None else deadline, now + IDLE)
        return now + GRACE

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Drive no more. Who waits in a call goes on waiting for news from elsewhere."""
        with self.stack.lock:
            if self._closed:
                return
            self._closed = True
            if self._real:
                self.stack.timers.on_earlier = None
                self.stack.netdev_chain.remove(self._netdev_event)
            self._background.rouse()
            thread = self._thread
            leader, self._leader = self._leader, None
            if leader is not None:
                leader.rouse()
        if thread is not None and thread is not threading.current_thread():
            thread.join()
        with self.stack.lock:
            driven = [each for each in self._devices.values() if not isinstance(each, Device)]
            # Not closed: a leader may be on its way into one; the last who refers to it closes it.
            self._devices.clear()
            for each in driven:  # the Stack closes its devices itself
                each.close()
            self._front = self._back = self._kick = self._wake = None
            self._background = Sleeper()  # the other one has the eventfd

    def close_sockets(self) -> None:
        """Close every socket, as the kernel does for a process that ends.

        Those that are used from within are closed by their users.
        """
        for sk in tuple(self.stack.socks):
            sock = sk.sk_socket
            if sock is not None and not sk.sk_kern_sock:
                try:
                    sock_release(sock)
                except Exception:  # noqa: BLE001 - whatever it is, the others are closed
                    _LOG.exception("a socket could not be closed at the exit")

    def finish(self, deadline: float) -> None:
        """Wait until closed sockets have delivered what they had to, or the deadline passes."""
        stack = self.stack
        while time.monotonic() < deadline:
            with stack.lock:
                if not any(_delivers(sk) for sk in stack.socks):
                    return
            time.sleep(_LOOK)

    def after_fork(self) -> None:
        """In the child of a fork: it has a copy of everything, and the devices are the parent's.

        The copies of their descriptors are closed, so that nothing the child does disturbs the
        parent's connections; calls on its sockets find the network down.
        """
        devices = list(self._devices.values())
        self._reset()
        for device in devices:
            device.close()


def _delivers(sk: Sock) -> bool:
    """Its user is gone, and the peer has not acknowledged everything yet."""
    return bool(sk.sk_flags & SOCK_DEAD) and sk.sk_state in _DELIVERING


def ensure_driver(stack: Stack) -> NetDriver:
    """The Stack's driver; made now where it has none."""
    driver = stack.driver
    if isinstance(driver, NetDriver):
        return driver
    with stack.lock:
        driver = stack.driver
        if not isinstance(driver, NetDriver):
            driver = NetDriver(stack)
            _drivers.add(driver)
        return driver


_drivers: WeakSet[NetDriver] = WeakSet()
"""For the interpreter's exit and for forks, which are the process's."""
_forking: list[NetDriver] = []


def _at_exit() -> None:
    """The background threads may not be stopped by force while one holds a Stack's lock."""
    deadline = time.monotonic() + EXIT_LINGER
    drivers = list(_drivers)
    driving = [driver for driver in drivers if driver.drives_devices]
    for driver in driving:
        driver.close_sockets()
    for driver in driving:
        driver.finish(deadline)
    for driver in drivers:
        driver.close()


def _before_fork() -> None:
    # No Stack may be in the middle of something in the child, where its thread doesn't exist.
    _forking[:] = sorted(_drivers, key=id)
    for driver in _forking:
        driver.stack.lock.__enter__()


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop().stack.lock.__exit__(None, None, None)


def _after_fork_in_child() -> None:
    while _forking:
        driver = _forking.pop()
        driver.after_fork()
        driver.stack.lock.__exit__(None, None, None)


atexit.register(_at_exit)
os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
