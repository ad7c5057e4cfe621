"""How long a plugin may keep a request, and what becomes of one for which that was not enough."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from relay.assembly import assemble
from relay.chain import Chain
from relay.config import parse
from relay.errors import PluginError, RelayError
from relay.exchange import CALLER, Exchange, Outcome
from relay.options import ConfigError
from relay.plugin import Plugin, Reply, Sink
from relay.section import Link
from relay.testing.reply import Kept, exchange


class Waits(Plugin):
    """Waits for what never comes, or makes something of being told to stop."""

    then: str = ""

    def __post_init__(self) -> None:
        self.seen: list[str] = []

    async def on_request(self, ex: Exchange) -> Reply | None:
        try:
            await ex.loop.create_future()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            if self.then == "goes on":
                return None
            raise
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self.seen.append("stream")
        return sink

    async def on_end(self, ex: Exchange) -> None:
        self.seen.append("end")


class Passes(Plugin):
    def __post_init__(self) -> None:
        self.seen: list[str] = []

    async def on_request(self, ex: Exchange) -> Reply | None:
        self.seen.append("request")
        return None

    async def on_end(self, ex: Exchange) -> None:
        self.seen.append("end")


class Rig:
    def __init__(self, plugin: Plugin) -> None:
        self.plugin, self.before, self.after = plugin, Passes(), Passes()
        self.raised: list[tuple[PluginError, BaseException]] = []
        self.ex = exchange()
        self.chain = Chain(
            [("before", self.before), ("subject", plugin), ("after", self.after)],
            lambda error, cause: self.raised.append((error, cause)),
        )

    async def hold(self) -> RelayError | None:
        entered: list[Link] = []
        error = None
        try:
            await self.chain.enter(self.ex, entered)
            self.chain.wrap(self.ex, entered, Kept()).end(Outcome("completed"))
        except RelayError as refusal:
            error = refusal
        await self.chain.leave(self.ex, entered)
        return error

    @property
    def steps(self) -> list[tuple[str, str]]:
        return [(name, did) for name, did, _ in self.ex.steps]


async def test_refused() -> None:
    """It is cancelled, named, and the request is refused; those behind it are not asked, those before it have their end."""
    rig = Rig(Waits(budget_ms=1))
    error = await rig.hold()
    assert error is not None
    assert (error.status, error.code) == (503, "overdue")
    assert rig.steps == [("before", "passed"), ("subject", "overdue")]
    assert rig.plugin.seen == ["cancelled"]
    assert rig.before.seen == ["request", "end"]
    assert rig.after.seen == []
    [(named, cause)] = rig.raised
    assert (named.plugin, named.hook, named.request_id) == ("subject", "on_request", rig.ex.id)
    assert str(cause) == "has taken longer than 0.001 s"


async def test_passed() -> None:
    """The request goes on as if the plugin were not there; it is named all the same."""
    rig = Rig(Waits(budget_ms=1, over_budget="pass"))
    assert await rig.hold() is None
    assert rig.steps == [("before", "passed"), ("subject", "overdue"), ("after", "passed")]
    assert rig.plugin.seen == ["cancelled"]
    assert rig.before.seen == rig.after.seen == ["request", "end"]
    assert len(rig.raised) == 1


class Raises(Plugin):
    """Makes something else of being told to stop."""

    async def on_request(self, ex: Exchange) -> Reply | None:
        try:
            await ex.loop.create_future()
        finally:
            raise ZeroDivisionError


@pytest.mark.parametrize("make", [lambda **options: Waits(then="goes on", **options), Raises])
async def test_who_does_not_stop_when_told(make: Callable[..., Plugin]) -> None:
    """Whatever a plugin makes of it: its time is over, and it is named."""
    rig = Rig(make(budget_ms=1))
    error = await rig.hold()
    assert error is not None
    assert error.code == "overdue"
    assert rig.steps[-1] == ("subject", "overdue")
    assert len(rig.raised) == 1
    assert await Rig(make(budget_ms=1, over_budget="pass")).hold() is None


async def test_nothing_of_what_it_gave_stays() -> None:
    """Of one that is passed over nobody behind it hears."""

    class Half(Plugin):
        gives = (CALLER,)

        async def on_request(self, ex: Exchange) -> Reply | None:
            ex[CALLER] = "admin"
            await ex.loop.create_future()
            return None

    rig = Rig(Half(budget_ms=1, over_budget="pass"))
    assert await rig.hold() is None
    assert CALLER not in rig.ex


async def test_its_own_time_out() -> None:
    """A plugin that waits in vain for somebody else has failed; it is not overdue."""

    class GivesUp(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            async with asyncio.timeout(0):
                await ex.loop.create_future()
            return None

    rig = Rig(GivesUp(over_budget="pass"))
    error = await rig.hold()
    assert isinstance(error, PluginError)
    assert rig.steps[-1] == ("subject", "failed")


async def test_who_waits_for_nothing_needs_no_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(Passes())
    monkeypatch.setattr("asyncio.timeout", None)
    assert await rig.hold() is None


async def test_what_it_answers_is_kept() -> None:
    """A plugin that waits and answers in time: its answer is the answer."""
    given = Reply(())

    class Answers(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            await asyncio.sleep(0)
            return given

    assert await Chain([("answers", Answers())]).enter(exchange(), []) is given


async def test_a_client_that_leaves() -> None:
    """It is no plugin's fault."""
    rig = Rig(Waits(over_budget="pass"))
    asking = asyncio.create_task(rig.hold())
    await asyncio.sleep(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert rig.steps[-1] == ("subject", "cancelled")
    assert rig.raised == []


# What may not be passed over


class Gives(Plugin):
    gives = (CALLER,)


class Needs(Plugin):
    needs = (CALLER,)


def test_what_others_need() -> None:
    """A plugin that others need is not one to do without."""
    with pytest.raises(ConfigError) as caught:
        Chain([("gives", Gives(over_budget="pass")), ("needs", Needs())])
    [problem] = caught.value.problems
    assert problem == (
        "plugin 'gives' may be passed over, and 'needs' needs caller of it; write over_budget = \"refuse\""
    )


GUARDS: dict[str, str] = {
    "auth": 'keys = [{ name = "n", key = "sk-test" }]',
    "moderation": 'moderators = [{ use = "lexicon", words = ["x"] }]',
}


@pytest.mark.parametrize("name", GUARDS)
def test_guards(name: str) -> None:
    """Nothing goes on without those that guard."""
    text = f"""
        [[upstreams]]
        name = "main"
        base_url = "http://127.0.0.1:1/v1"
        models = ["*"]
        [[plugins]]
        use = "{name}"
        over_budget = "pass"
        {GUARDS[name]}
    """
    with pytest.raises(ConfigError) as caught:
        assemble(parse(text, Path("/x/relay.toml"), {}))
    [problem] = caught.value.problems
    assert re.search(r"\d+: plugins\[0\]: plugin .* may not be passed over", problem)


@pytest.mark.parametrize("options", [{"budget_ms": 0}, {"over_budget": "skip"}])
def test_options(options: dict[str, Any]) -> None:
    """They are checked as all options are."""
    from relay.options import Context, build

    with pytest.raises(ConfigError):
        build(Passes, options, "plugins[0]", context=Context(folder=Path(), environ={}))
