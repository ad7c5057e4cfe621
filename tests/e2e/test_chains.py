"""Different chains for different keys, models and routes, in a relay that is served."""

import copy

import pytest
from click.testing import CliRunner

from relay.cli import main
from relay.testing import frames, streamed

EVENT_STREAM = "text/event-stream"
TESTER = "sk-canary-client-2f6b1c90d7e84a53"
CHILD = "sk-canary-child-77aa01"
AUTH = {"use": "auth", "keys": [{"name": "tester", "key": TESTER}, {"name": "school-1", "key": CHILD}]}
SWEARS = list(frames.stream(["Oh ", "dam", "n", " it."]))


def moderated(*words, **options):
    return {"use": "moderation", "moderators": [{"use": "lexicon", "words": list(words)}], **options}


CHAINS = [
    {"name": "children", "match": {"keys": ["school-*"]}, "plugins": [moderated("damn", "forbidden")]},
    {"name": "coding", "match": {"models": ["code*"]}, "plugins": []},
    {"name": "others", "plugins": [moderated("forbidden")]},
]


@pytest.fixture
async def rig(serve):
    return await serve(streamed(SWEARS), chain=[AUTH], chains=CHAINS)


def as_child():
    return {"Authorization": f"Bearer {CHILD}"}


async def test_each_is_served_by_its_own(rig):
    """What is stopped for one key leaves for another; the log says which chain it was."""
    adult, child = await rig.ask(), await rig.ask(headers=as_child())
    assert adult.texts() == {0: "Oh damn it."}
    assert "damn" not in child.data.decode()
    assert child.finishes() == {0: "content_filter"}
    lines = await rig.ended(2)
    assert [line["chain"] for line in lines] == ["others", "children"]
    assert ["children/moderation" in line["plugins_ms"] for line in lines] == [False, True]


async def test_a_model_has_a_chain(rig):
    """A prompt that is refused for one model is taken for another."""
    said = [{"role": "user", "content": "forbidden"}]
    refused, taken = await rig.ask(messages=said), await rig.ask(messages=said, model="code-1")
    assert refused.status == 400
    assert taken.texts() == {0: "Oh damn it."}
    child = await rig.ask(messages=said, model="code-1", headers=as_child())
    assert child.status == 400  # the first chain that fits is the one


async def test_what_is_no_chat(rig):
    """A list of models asks none, and is answered as ever."""
    async with rig.session.get(rig.url + "/v1/models") as response:
        assert response.status == 200


async def test_nobody_gets_past_auth(rig):
    """The chain is chosen behind it: who is not let in meets no other plugin."""
    nobody = await rig.ask(headers={"Authorization": "Bearer sk-nobody"})
    assert nobody.status == 401
    [line] = await rig.ended(1)
    assert "chain" not in line or line["chain"] is None


async def test_limits_in_two_chains(serve):
    """Each counts what it sees, by what it says."""
    limit = {"use": "rate_limit", "requests_per_minute": 1}
    chains = [
        {"name": "a", "match": {"models": ["a"]}, "plugins": [limit]},
        {"name": "b", "plugins": [{**limit, "requests_per_minute": 3}]},
    ]
    rig = await serve(streamed(SWEARS), chain=[AUTH], chains=chains)
    statuses = [(await rig.ask(model=model)).status for model in ("a", "a", "b", "b", "b", "b")]
    assert statuses == [200, 429, 200, 200, 200, 429]


async def test_limits_in_two_chains_with_a_store(serve, tmp_path):
    """A key's requests count together, by what each chain says."""
    limit = {"use": "rate_limit", "requests_per_minute": 2}
    chains = [
        {"name": "a", "match": {"models": ["a"]}, "plugins": [limit]},
        {"name": "b", "plugins": [{**limit, "requests_per_minute": 4}]},
    ]
    rig = await serve(streamed(SWEARS), chain=[AUTH], chains=chains, store=f"embedded:{tmp_path}/data")
    statuses = [(await rig.ask(model=model)).status for model in ("a", "a", "a", "b", "b", "b")]
    assert statuses[:3] == [200, 200, 429]
    assert statuses[3:].count(200) == 2


async def test_it_is_reloaded(serve, tmp_path):
    """A chain that is changed is met by whoever asks from then on."""
    rig = await serve(streamed(SWEARS), chain=[AUTH], chains=copy.deepcopy(CHAINS), folder=tmp_path)
    assert (await rig.ask()).texts() == {0: "Oh damn it."}
    rig.document["chains"][2]["plugins"] = [moderated("damn")]
    await rig.reload()
    assert (await rig.ask()).finishes() == {0: "content_filter"}


# relay check

FILE = """
[store]
url = "memory:"
[[upstreams]]
name = "spare"
base_url = "http://127.0.0.1:2/v1"
models = ["chat"]
priority = 1
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:1/v1"
models = { chat = "big-chat", code-1 = "code-1" }
[[plugins]]
use = "auth"
keys = [{ name = "tester", key = "sk-canary-tester" }]
[[chains]]
name = "children"
match = { keys = ["school-*"] }
[[chains.plugins]]
use = "moderation"
moderators = [{ use = "lexicon", words = ["damn"] }]
[[chains]]
name = "coding"
match = { models = ["code-*"], labels = { tier = "paid" } }
[[chains]]
name = "others"
[[chains.plugins]]
use = "history"
max_tokens = 1000
"""


def checked(tmp_path, *words):
    (tmp_path / "relay.toml").write_text(FILE)
    done = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "relay.toml"), *words])
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("words", "chain", "met", "asked"),
    [
        (("--key", "school-7", "--model", "chat"), "'children' (keys school-*)", ["auth", "children/moderation"], ["main", "spare"]),
        (("--key", "tester", "--model", "code-1"), "'others' (all that no other chain takes)", ["auth", "others/history"], ["main"]),
        (("--key", "tester", "--label", "tier=paid", "--model", "code-1"), "'coding' (models code-*; label tier = paid)", ["auth"], ["main"]),
        (("--key", "tester", "--route", "/v1/models"), "'others'", ["auth"], []),
    ],
)  # fmt: skip
def test_what_a_request_would_meet(tmp_path, words, chain, met, asked):
    """The chain and why, each plugin in order, and who would be asked."""
    status, said = checked(tmp_path, *words)
    assert status == 0, said
    assert f"the chain {chain}" in said
    plugins, _, upstreams = said.partition("and then")
    assert [line.split()[0] for line in plugins.splitlines() if line.startswith("  ")] == met
    assert [line.split()[0] for line in upstreams.splitlines()[1:]] == asked


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--key", "tester"), "give --model"),
        (("--model", "chat"), "give the key's name as --key"),
        (("--key", "tester", "--model", "chat", "--route", "/v1/chat"), "nothing is served at '/v1/chat'"),
    ],
)
def test_too_little_is_said(tmp_path, words, says):
    status, said = checked(tmp_path, *words)
    assert (status, True) == (2, says in said)


def test_a_model_that_nobody_serves(tmp_path):
    status, said = checked(tmp_path, "--key", "tester", "--model", "gpt-9")
    assert (status, True) == (0, "none serves 'gpt-9'" in said)


def test_the_whole(tmp_path):
    """Without a request all chains are shown."""
    status, said = checked(tmp_path)
    assert status == 0
    for line in (
        "behind it, for keys school-*: children",
        "behind it, for all others: others",
        "  children/moderation",
    ):
        assert line in said.splitlines()
    assert "sk-canary" not in said
