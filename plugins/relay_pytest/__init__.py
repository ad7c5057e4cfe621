"""What pytest has wherever moderelay is installed: fixtures for the tests of plugins (docs/plugins.md, *Testing it*).

pytest loads this in every run there, also of projects that have nothing to do with a relay: so nothing is imported before
a fixture is asked for, and all have names that begin with `relay_`. The async ones want `pytest-aiohttp` or
`pytest-asyncio` with `asyncio_mode = "auto"`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from relay.store.redis import RedisStore
    from relay.testing import ScriptedUpstream, Scripts


@pytest.fixture
def relay_run() -> Callable[..., Any]:
    """`await relay_run(plugin, answer=[…])`: one request through one plugin. It is `relay.testing.run.run`."""
    from relay.testing.run import run  # noqa: PLC0415 - see the head

    return run


@pytest.fixture
def relay_contract() -> Callable[..., Any]:
    """`await relay_contract(plugin)`: an AssertionError if it breaks a promise. It is `relay.testing.contract.keeps_contract`."""
    from relay.testing.contract import keeps_contract  # noqa: PLC0415

    return keeps_contract


@pytest.fixture
def relay_jump() -> Callable[..., Any]:
    """`relay_jump(coroutine)`, in a test that is not async: its result, on a loop that waits for no timer."""
    from relay.testing.clock import jump  # noqa: PLC0415

    return jump


@pytest.fixture
async def relay_upstream() -> AsyncIterator[Callable[[Scripts], Awaitable[ScriptedUpstream]]]:
    """`upstream = await relay_upstream(script)`: a server on loopback that follows a script, until the test ends."""
    from contextlib import AsyncExitStack  # noqa: PLC0415

    from relay.testing import ScriptedUpstream  # noqa: PLC0415

    async with AsyncExitStack() as stack:

        async def start(script: Scripts, **options: Any) -> ScriptedUpstream:
            return await stack.enter_async_context(ScriptedUpstream(script, **options))

        yield start


@pytest.fixture
async def relay_store() -> AsyncIterator[RedisStore]:
    """A store that is empty, on a server of its own: `Lent(store=relay_store)`."""
    from relay.testing.store import embedded_store  # noqa: PLC0415

    async with embedded_store() as store:
        yield store


@pytest.fixture
def relay_unblocked(request: pytest.FixtureRequest) -> Iterator[None]:
    """An async test that uses it fails where code of this project blocks the loop: reads a file, sleeps, starts a process."""
    from relay.testing.tidy import of_tests, refusing_to_block  # noqa: PLC0415

    root = request.config.rootpath
    with refusing_to_block([str(root)], but=of_tests(request.path, root)):
        yield


@pytest.fixture
async def relay_tidy(relay_unblocked: None) -> AsyncIterator[None]:
    """The same, and it fails if it leaves a task."""
    from relay.testing.tidy import tasks_left  # noqa: PLC0415

    before = await tasks_left()  # of fixtures that end after this one
    yield
    left = await tasks_left() - before
    assert not left, f"the test left tasks: {left}"
