"""What plugin authors are given beside `run` and the contract: stores, a clock, a watch for what is left, and pytest's fixtures."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from subjects import SwallowsTheEnd

from relay.store.port import Script, StoreError
from relay.testing import ScriptedUpstream, answers
from relay.testing.clock import START_S, jump
from relay.testing.run import run
from relay.testing.store import ScriptedStore, StoreOf, embedded_store
from relay.testing.tidy import Blocked, refusing_to_block, tasks_left

COUNT = Script.of("count", "return redis.call('INCRBY', KEYS[1], ARGV[1])")


async def test_a_scripted_store():
    """Answers by the name of the script, and remembers what it was asked."""
    store = ScriptedStore({"count": lambda keys, args: args[0] + 1, "away": StoreError("away", acted=False), "one": 1})
    key = store.key("a b", "c")
    assert 6 == await store.run(COUNT, [key], [5])
    assert 1 == await store.run(Script.of("one", ""), [key])
    with pytest.raises(StoreError, match="away"):
        await store.run(Script.of("away", ""), [key])
    with pytest.raises(LookupError, match="no answer is given for the script 'other'; there are count, away, one"):
        await store.run(Script.of("other", ""), [key])
    assert ("count", ("test:{a%20b}:c",), (5,)) == store.asked[0]
    assert 4 == len(store.asked)


async def test_an_embedded_store():
    """Runs scripts of one's own on a real server; each is empty, also within another."""
    async with embedded_store() as store:
        assert [5, 10] == [await store.run(COUNT, [store.key("a")], [5]) for _ in range(2)]
        own = StoreOf(store, "own")
        assert 1 == await own.run(COUNT, [own.key("a")], [1])
    async with embedded_store() as other:
        assert 1 == await other.run(COUNT, [other.key("a")], [1])


def test_a_clock_that_jumps():
    async def an_hour():
        await asyncio.sleep(3600)
        return asyncio.get_running_loop().time()

    assert START_S + 3600 == jump(an_hour())


async def test_who_keeps_the_end_is_named():
    """`run` comes back, as a relay does once the client has left."""
    ran = await run(SwallowsTheEnd(), patience_s=0.01)
    assert [("SwallowsTheEnd", "end")] == [(error.plugin, error.hook) for error in ran.raised]
    assert "client_gone" == ran.exchange.outcome.kind
    assert "Hello" == ran.reply.text


async def test_who_blocks_is_told():
    """On the loop, below the folders that are named; nobody else."""
    here = str(Path(__file__).parent)
    with refusing_to_block([here]):
        with pytest.raises(Blocked, match="sleep"):
            time.sleep(0)
        await asyncio.to_thread(time.sleep, 0)
    with refusing_to_block([here], but=[__file__]):
        time.sleep(0)
    for other in ("/nowhere", here[:-1]):
        with refusing_to_block([other]):
            time.sleep(0)


async def test_tasks_that_are_left_are_told():
    forever = asyncio.create_task(asyncio.Event().wait())
    ended = asyncio.create_task(asyncio.sleep(0))
    assert {forever} == await tasks_left()
    assert ended.done()
    forever.cancel()


# The fixtures


async def test_the_upstream_and_the_store(relay_upstream, relay_store):
    upstream = await relay_upstream(answers(["Hello"]))
    assert isinstance(upstream, ScriptedUpstream)
    assert 1 == await relay_store.run(COUNT, [relay_store.key("a")], [1])


def test_the_clock(relay_jump):
    assert "done" == relay_jump(asyncio.sleep(3600, "done"))


def tried(folder: Path, *words: str) -> str:
    """What pytest says of the tests in a project of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:schemathesis", "-p", "no:cacheprovider", *words],
        check=False,
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("PYTEST")},
    ).stdout


UNTIDY = """\
import asyncio, mine

async def test_leaves(relay_tidy):
    asyncio.get_running_loop().kept = asyncio.create_task(asyncio.Event().wait())

async def test_is_tidy(relay_tidy):
    await asyncio.sleep(0)
    open(__file__).close()

async def test_blocks(relay_tidy):
    mine.read()
"""


def test_who_is_untidy_fails(tmp_path: Path):
    """A task that is left; a loop that is blocked by the project's own code, but not by the test itself."""
    (tmp_path / "mine.py").write_text("def read():\n    return open('pytest.ini').read()\n")
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\npythonpath = .\n"
    )
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(UNTIDY)
    (tmp_path / "test_beside.py").write_text(UNTIDY)
    for where in ("tests", "test_beside.py"):
        said = tried(tmp_path, where)
        assert "the test left tasks" in said
        assert "Blocked: ('open', 'pytest.ini')" in said
        assert "1 failed, 2 passed, 1 error" in said


TIDY = """\
async def test_reads(relay_store, relay_tidy):
    open(__file__).close()
"""


def test_what_is_not_the_projects(tmp_path: Path):
    """What is installed below its folder, as pytest and the relay are; and tasks of fixtures that end later."""
    (tmp_path / "test_it.py").write_text(TIDY)
    options = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
    said = tried(tmp_path, f"--rootdir={sys.prefix}", *options, "test_it.py")
    assert "1 passed" in said, said


def test_it_brings_nothing_where_it_is_not_used(tmp_path: Path):
    """Neither the relay, nor a need for a plugin that runs async tests."""
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n    assert 'relay_pytest' in sys.modules and 'relay' not in sys.modules\n"
    )
    assert "1 passed" in tried(tmp_path, "-W", "error", "-p", "no:asyncio", "-p", "no:aiohttp")
