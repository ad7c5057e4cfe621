"""What holds for every test: the loop, no blocking call on it, and nothing left behind.

The loop is uvloop's where the platform has it, as `relay serve` runs. A blocking call with code of `relay` or
`relay_plugins` on its stack is an error while a loop runs; pytest's, hypothesis's and a test's own file access is not
looked at. After an async test and its fixtures no task and no socket may be left.

Hypothesis: HYPOTHESIS_PROFILE=default | ci (the same examples every time) | long.
"""

import asyncio
import builtins
import functools
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

import relay
import relay_plugins
from relay.testing.clock import JumpingLoop

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, database=None)
settings.register_profile("long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_TURNS = 50  # of the loop, after which what was closed is closed: a few are enough


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on the one loop; those marked `jumping_clock` on one that waits for no timer."""
    return {"loop": JumpingLoop if item.get_closest_marker("jumping_clock") else new_event_loop}


# What may wait for a disk, a name server, a process or the clock. (blockbuster knows more calls, and needs a package that
# is not to be had as a wheel.)
_BLOCKING = (
    (builtins, "open"),
    (io, "open"),
    *((os, name) for name in "listdir mkdir open remove rename replace rmdir scandir stat unlink".split()),
    (socket, "getaddrinfo"),
    (subprocess.Popen, "__init__"),
    (time, "sleep"),
)
_OURS = (*relay.__path__, *relay_plugins.__path__)
_MAY_BLOCK = (
    "/relay/assembly.py",  # the start: nothing is served yet
    "/relay/store/port.py",  # a script is read when its module is imported
    "/linecache.py",  # a traceback shows its lines
    "/relay/secret.py",  # one stat a second, to see that a key was changed
    "/prometheus_client/process_collector.py",  # /proc is on no disk
    "/relay/metrics/exposition.py",  # it sleeps for no time, in a thread of its own; tests read the counts in theirs
)


class Blocked(Exception):
    """A call that blocks, on a loop's thread, below our code."""


def _refusing(call: Callable[..., object]) -> Callable[..., object]:
    @functools.wraps(call)
    def refuse(*arguments: object, **options: object) -> object:
        if asyncio._get_running_loop() is not None and _below_ours():
            raise Blocked(call.__qualname__, *arguments)
        return call(*arguments, **options)

    return refuse


def _below_ours() -> bool:
    frame, ours = sys._getframe(2), False
    while frame is not None:
        if frame.f_code.co_filename.endswith(_MAY_BLOCK):
            return False
        ours = ours or frame.f_code.co_filename.startswith(_OURS)
        frame = frame.f_back
    return ours


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Watch an async test for blocking calls, and look round when it and its other fixtures are done."""
    if request.node.get_closest_marker("asyncio") is None:
        yield
        return
    request.getfixturevalue("_no_task_left")
    with pytest.MonkeyPatch.context() as patch:
        for where, name in _BLOCKING:
            patch.setattr(where, name, _refusing(getattr(where, name)))
        yield


# Set up in this order: the loop, the sockets, the tasks; so looked at in the other: tasks (which gives closed sockets
# their turns of the loop), sockets (while the loop stands still, since a running uvloop has two of its own), the loop.


@pytest.fixture
async def _loop() -> None:
    """Have the test's loop made."""


@pytest.fixture
def _no_socket_left(_loop: None) -> Iterator[None]:
    before = _sockets()
    yield
    assert set() == _sockets() - before, "the test left sockets open"


@pytest.fixture
async def _no_task_left(_no_socket_left: None) -> AsyncIterator[None]:
    yield
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    assert set() == asyncio.all_tasks() - {asyncio.current_task()}, "the test left tasks"


def _sockets() -> set[str]:
    """The open sockets of this process by inode ("socket:[4711]"); none where there is no /proc."""
    found = set()
    try:
        descriptors = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return found
    for descriptor in descriptors:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
