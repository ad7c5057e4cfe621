"""What holds for every test: the loop, no blocking call on it, and nothing left behind.

The loop is uvloop's where the platform has it, as `relay serve` runs. A blocking call with code of `relay` or
`relay_plugins` on its stack is an error while a loop runs; pytest's, hypothesis's and a test's own file access is not
looked at. After an async test and its fixtures no task and no socket may be left.

Hypothesis: HYPOTHESIS_PROFILE=default | ci (the same examples every time) | long.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping

import pytest
from hypothesis import HealthCheck, settings

import relay
import relay_plugins
from relay.testing.clock import JumpingLoop
from relay.testing.tidy import open_sockets, refusing_to_block, tasks_left

try:
    from uvloop import new_event_loop
except ImportError:
    from asyncio import new_event_loop

settings.register_profile("default", deadline=None, max_examples=60)
settings.register_profile("ci", deadline=None, max_examples=100, derandomize=True, database=None)
settings.register_profile("long", deadline=None, max_examples=5000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run every async test on the one loop; those marked `jumping_clock` on one that waits for no timer."""
    return {"loop": JumpingLoop if item.get_closest_marker("jumping_clock") else new_event_loop}


_OURS = (*relay.__path__, *relay_plugins.__path__)


@pytest.fixture(autouse=True)
def _watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """Watch an async test for blocking calls, and look round when it and its other fixtures are done."""
    if request.node.get_closest_marker("asyncio") is None:
        yield
        return
    request.getfixturevalue("_no_task_left")
    with refusing_to_block(_OURS):
        yield


# Set up in this order: the loop, the sockets, the tasks; so looked at in the other: tasks (which gives closed sockets
# their turns of the loop), sockets (while the loop stands still, since a running uvloop has two of its own), the loop.


@pytest.fixture
async def _loop() -> None:
    """Have the test's loop made."""


@pytest.fixture
def _no_socket_left(_loop: None) -> Iterator[None]:
    before = open_sockets()
    yield
    assert set() == open_sockets() - before, "the test left sockets open"


@pytest.fixture
async def _no_task_left(_no_socket_left: None) -> AsyncIterator[None]:
    yield
    assert set() == await tasks_left(), "the test left tasks"
