"""Who blocks the loop is named."""

import asyncio
import sys
import threading
import types
from pathlib import Path
from time import monotonic

import pytest

from relay.config import parse
from relay.generations import Generations
from relay.testing.reply import Lent
from relay.watchdog import found, watched

CODE = """
from time import monotonic

class Slow:
    def feed(self, until):
        self.compute(until)

    def compute(self, until):
        while not until():
            pass
"""


def module(name):
    """A plugin's module."""
    made = types.ModuleType(name)
    exec(CODE, vars(made))
    return made


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr("relay.watchdog.BEAT_S", 0.01)


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_plugin_that_blocks(quick):
    """With its function and line, once in a while; what it is called in the chain is asked when it is seen."""
    lent, slow = Lent(), module("stranger.inner").Slow()
    told = []
    async with watched(lambda: {"stranger": "slow#2"}, lent.services.log, told.append):
        for _ in range(2):
            end = monotonic() + 0.2
            slow.feed(lambda end=end: monotonic() > end)
            await asyncio.sleep(0.03)
        await until(lambda: lent.lines)
        await until(lambda: len(told) == 2)
    [line] = lent.lines
    assert {"slow#2"} == set(told)
    assert ("plugin blocks", "error", "slow#2") == (line["event"], line["level"], line["plugin"])
    assert line["function"] in ("Slow.compute", "Slow.feed")
    assert line["held_up_s"] > 0


async def test_who_is_no_plugin(quick):
    """The relay's own work, and others', is told by the metric of the lag alone."""
    lent, slow = Lent(), module("stranger").Slow()
    async with watched(lambda: {"other": "other"}, lent.services.log):
        end = monotonic() + 0.1
        slow.feed(lambda: monotonic() > end)
        await asyncio.sleep(0.03)
    assert [] == lent.lines


async def test_nothing_is_left(quick):
    async with watched(dict, Lent().services.log):
        assert "relay-watchdog" in [each.name for each in threading.enumerate()]
    assert "relay-watchdog" not in [each.name for each in threading.enumerate()]


MODERATED = """
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:1/v1"
models = ["*"]
[[plugins]]
use = "parameters"
[[plugins]]
use = "moderation"
moderators = [{ use = "lexicon", words = ["x"] }, { use = "relay.testing.moderator:ScriptedModerator" }]
"""


async def test_whose_a_module_is():
    """A moderator goes by the name of its plugin, and so does a package in which there is no other one."""
    lent = Lent()
    generations = Generations(lambda _: None, lent.metrics, lent.services.log, lent.told)
    generations.begin(parse(MODERATED, Path("/x/relay.toml")))
    assert {
        "relay_plugins.parameters": "parameters",
        "relay_plugins.moderation": "moderation",
        "relay_plugins.lexicon.moderator": "moderation",
        "relay_plugins.lexicon": "moderation",
        "relay.testing": "moderation",
        "relay.testing.moderator": "moderation",
    } == generations.modules()


def test_the_innermost_counts():
    frames = []
    outer, inner = module("outer"), module("inner.deep")

    def look():
        frames.append(found(sys._getframe(), {"outer": "a", "inner": "b"}))
        return True

    outer.Slow().feed(lambda: inner.Slow().feed(look) is None)
    assert ["b"] == [each.plugin for each in frames]
    assert found(None, {}) is None
