"""Branches of a chain: which one a request goes on in, and what is wrong with those that none would."""

import re
from pathlib import Path

import pytest

from relay.assembly import assemble
from relay.chain import Chain
from relay.config import parse
from relay.effect import branch_problems
from relay.effect import met as met_by
from relay.errors import Reject
from relay.exchange import CALLER, Exchange, Outcome
from relay.keys import API_KEY, ApiKey
from relay.match import Match
from relay.options import ConfigError
from relay.plugin import Plugin, Reply, Sink
from relay.pure.openai import Chunk
from relay.section import Link, Section
from relay.testing.reply import Kept, exchange


class Names(Plugin):
    """Says whose key it is."""

    gives = (CALLER, API_KEY)

    key: str = "work"

    async def on_request(self, ex: Exchange) -> None:
        ex[CALLER] = self.key
        ex[API_KEY] = ApiKey(name=self.key, labels={"tier": "free"})


class Seen(Plugin):
    """Writes down what it is shown."""

    answers: bool = False

    def __post_init__(self) -> None:
        self.saw: list[str] = []

    async def on_request(self, ex: Exchange) -> Reply | None:
        self.saw.append(f"request {ex.chain}")
        return Reply((Chunk.body(b"{}"),)) if self.answers else None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        self.saw.append("stream")
        return sink

    async def on_end(self, ex: Exchange) -> None:
        self.saw.append("end")


class Rig:
    """A chain with a head, a branch for some and one for the rest."""

    def __init__(self, match: Match, *, key: str = "work", answers: bool = False) -> None:
        self.head, self.some, self.rest = Seen(), Seen(answers=answers), Seen()
        self.chain = Chain(
            [("names", Names(key=key)), ("head", self.head)],
            branches=[
                Section([("some/seen", self.some)], name="some", match=match),
                Section([("rest/seen", self.rest)], name="rest"),
            ],
        )

    async def hold(self, ex: Exchange) -> list[Link]:
        entered: list[Link] = []
        try:
            answered = await self.chain.enter(ex, entered)
            self.chain.wrap(ex, entered[:-1] if answered else entered, Kept()).end(Outcome("completed"))
        finally:
            await self.chain.leave(ex, entered)
        return entered


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        (Match(keys=("work",)), True),
        (Match(keys=("school-*",)), False),
        (Match(labels={"tier": "free"}), True),
        (Match(models=("gpt-3*",)), True),
        (Match(models=("gpt-4",)), False),
        (Match(routes=("/v1/chat/completions",)), True),
        (Match(routes=("/ask",)), False),
    ],
)
async def test_one_branch_is_met(match: Match, taken: bool) -> None:
    """The first that fits, behind what all meet; of the others nobody hears."""
    rig = Rig(match)
    ex = exchange(model="gpt-3.5")
    ex.route = "/v1/chat/completions"
    entered = await rig.hold(ex)
    met, other = (rig.some, rig.rest) if taken else (rig.rest, rig.some)
    name = "some" if taken else "rest"
    assert rig.head.saw == ["request ", "stream", "end"]
    assert met.saw == [f"request {name}", "stream", "end"]
    assert other.saw == []
    assert [link.name for link in entered] == ["names", "head", f"{name}/seen"]
    assert [name for name, _, _ in ex.steps] == ["names", "head", f"{name}/seen"]
    asked = {"route": ex.route, "caller": "work", "labels": {"tier": "free"}, "model": "gpt-3.5"}
    assert met_by(rig.chain, **asked) == (name, tuple(entered))  # as `relay check` would have said


async def test_the_way_back() -> None:
    """Plugins of a branch see chunks before those of the head; their own early answer they do not see."""
    rig = Rig(Match(keys=("work",)), answers=True)
    entered = await rig.hold(exchange())
    assert rig.some.saw == ["request some", "end"]
    assert rig.head.saw == ["request ", "stream", "end"]
    assert [link.name for link in entered][-1] == "some/seen"


async def test_models_that_would_go_several_ways() -> None:
    """Who names a second model to be asked cannot choose the chain of the first by that."""
    rig = Rig(Match(models=("strict",)))
    with pytest.raises(Reject) as refused:
        await rig.hold(exchange(model="strict", models=["lenient"]))
    assert refused.value.code == "mixed_models"
    assert (rig.some.saw, rig.rest.saw) == ([], [])
    assert rig.head.saw == ["request ", "end"]
    await rig.hold(exchange(model="strict", models=["strict"]))
    assert rig.some.saw[0] == "request some"


async def test_no_branch_fits() -> None:
    """A chain that was built by hand may end with the head."""
    head = Seen()
    chain = Chain([("head", head)], branches=[Section([("seen", Seen())], name="x", match=Match(models=("other",)))])
    entered: list[Link] = []
    assert await chain.enter(exchange(), entered) is None
    assert [link.name for link in entered] == ["head"]


# What is wrong with a configuration

HEAD = """
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:1/v1"
models = ["gpt-4", "gpt-3"]
[store]
url = "memory:"
"""
AUTH = '[[plugins]]\nuse = "auth"\nkeys = [{ name = "n", key = "sk-test" }]\n'
REST = '[[chains]]\nname = "rest"\n'


def chain(name: str, match: str, plugins: str = "") -> str:
    return f'[[chains]]\nname = "{name}"\nmatch = {{ {match} }}\n{plugins}'


def problems(text: str, head: str = HEAD) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        assemble(parse(head + text, Path("/conf/relay.toml"), {}))
    return [re.sub(r"^/conf/relay\.toml:[0-9]+: ", "", problem, count=1) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (chain("a", 'keys = ["n"]') + REST, ["chains[0].match.keys: no plugin of [[plugins]] that may not be passed over says whose key a request came with; add `auth` there"]),
        (chain("a", 'labels = { t = "x" }') + REST, ["chains[0].match.labels: no plugin of [[plugins]] that may not be passed over says what is known of a key; add `auth` there"]),
        (chain("a", 'models = ["gpt4"]') + REST, ["chains[0].match.models: no upstream serves 'gpt4'; did you mean 'gpt-4'?"]),
        (chain("a", 'models = ["gtp*"]') + REST, ["chains[0].match.models: no upstream serves 'gtp*'; there are 'gpt-3', 'gpt-4'"]),
        (chain("a", 'routes = ["/v1/chat"]') + REST, ["chains[0].match.routes: nothing is served at '/v1/chat'; there are '/v1/chat/completions', '/v1/models', '/v1/quota'"]),
        (chain("a", 'routes = ["/v1/m*"], models = ["gpt-4"]') + REST, ["chains[0].match.models: a request at /v1/models asks no model, so none fits both; leave models or routes out"]),
        (chain("a", 'models = ["gpt-4"]'), ["chains[0].match: a request that fits no match would meet nothing more; add a last [[chains]] without match that says what is done then, with no plugins if nothing is to be"]),
        (REST + chain("a", 'models = ["gpt-4"]'), ["chains[1].match: the chain 'rest' before it takes all requests, as it has no match; move that to the end"]),
        (chain("a", 'models = ["gpt-*"]') + chain("b", 'models = ["gpt-4"]') + REST, ["chains[1].match: the chain 'a' before it takes all of these; move this one up, or remove one of them"]),
        (AUTH + chain("a", 'routes = ["/v1/*"]') + chain("b", 'keys = ["n"]') + REST, ["chains[1].match: the chain 'a' before it takes all of these; move this one up, or remove one of them"]),
        (chain("a", 'models = ["gpt-4"]') + chain("a", 'models = ["gpt-3"]') + REST, ["chains[1].name: 'a' is taken; give each its own"]),
        (chain("a", 'models = ["gpt-4"]', '[[chains.plugins]]\nuse = "moderatoin"\n') + REST, None),
        (chain("a", 'models = ["gpt-4"]', '[[chains.plugins]]\nuse = "bingcheng"\ndefault_model = "gpt-4"\n') + REST, None),
        (chain("a", 'models = ["gpt-4"]', '[[chains.plugins]]\nuse = "rate_limit"\nrequests_per_minute = 1\n') + REST, ["chains[0].plugins[0]: plugin 'a/rate_limit' needs 'caller' and no plugin before it gives it: add `auth`, or another plugin that does"]),
    ],
)  # fmt: skip
def test_what_is_wrong(text: str, expected: list[str] | None) -> None:
    """Each with the place that it is about, and what to do; above all chains that nothing would come to."""
    found = problems(text)
    if expected is None:
        assert len(found) == 1
        assert found[0].startswith("chains[0].plugins[0]: ")
    else:
        assert found == expected


LIMIT = 'use = "rate_limit"\nrequests_per_minute = 1\n'
SERVED = HEAD.replace('"memory:"', '"redis://127.0.0.1:1"')


def test_two_that_count_as_one() -> None:
    """In two chains no request meets both; in one, or in what all meet, it would be counted twice."""
    own = f"[[chains.plugins]]\n{LIMIT}"
    two = AUTH + chain("a", 'models = ["gpt-4"]', own) + REST + own
    assert assemble(parse(SERVED + two, Path("/x/relay.toml"), {})).branches
    twice = problems(AUTH + f"[[plugins]]\n{LIMIT}" + chain("a", 'models = ["gpt-4"]', own) + REST, SERVED)
    assert twice == [
        "chains[0].plugins[0]: 'rate_limit' would count each request once more as 'rate_limit default'; give one of them "
        'another name, as in name = "second"'
    ]


def test_who_gives_the_replies_of_others() -> None:
    """A cache that all meet would give what one chain lets pass to those of another."""
    cache = '[[plugins]]\nuse = "cache"\n'
    assert problems(AUTH + cache + chain("a", 'models = ["gpt-4"]') + REST) == [
        "plugins[1]: plugin 'cache' gives the replies of one chain to the requests of another; put it last in each of [[chains]]"
    ]
    own = '[[chains.plugins]]\nuse = "cache"\n'
    assert assemble(
        parse(HEAD + AUTH + chain("a", 'models = ["gpt-4"]', own) + REST, Path("/x/relay.toml"), {})
    ).branches


def test_who_says_the_key_may_not_be_passed_over() -> None:
    """Or its requests would go where nobody's go."""
    named = Names(over_budget="pass")
    config = parse(HEAD + chain("a", 'keys = ["n"]') + REST, Path("/x/relay.toml"), {})
    sections = [Section([], name="a", match=config.chains[0].match), Section([], name="rest")]
    [problem] = branch_problems(config, Chain([("names", named)], branches=sections))
    assert problem.startswith("chains[0].match.keys: no plugin of [[plugins]] that may not be passed over")
    assert branch_problems(config, Chain([("names", Names())], branches=sections)) == []


def test_what_all_meet_gives() -> None:
    """A plugin of a branch may need what one of the head gives; its name begins with the chain's."""
    limited = '[[chains.plugins]]\nuse = "rate_limit"\nrequests_per_minute = 1\n'
    built = assemble(
        parse(HEAD + AUTH + chain("a", 'keys = ["n"]', limited) + REST + limited, Path("/x/relay.toml"), {})
    )
    assert [link.name for link in built.links] == ["auth", "a/rate_limit", "rest/rate_limit"]


def test_no_secret_is_shown() -> None:
    """Of plugins' tables the names alone."""
    text = (
        HEAD + '[[chains]]\nname = "x"\n[[chains.plugins]]\nuse = "auth"\nkeys = [{ name = "n", key = "sk-canary" }]\n'
    )
    config = parse(text, Path("/x/relay.toml"), {})
    assert "sk-canary" not in repr(config)
    assert "auth" in repr(config.chains)
