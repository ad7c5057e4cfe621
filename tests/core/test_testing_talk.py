"""The model that talks and the callers that ask: as much of chance as they were told, and never more than they may."""

import asyncio
import json

import aiohttp
import pytest

from relay.testing import Gate, Head, Script, ScriptedUpstream, Send, whole
from relay.testing.__main__ import KEYS, main, parser, phrases
from relay.testing.load import WAYS, Callers, Load
from relay.testing.talker import SENTENCES, Talker

FAST = {"first_ms": 0.01, "pace_ms": 0.01, "chars": (20, 60)}


def body(**fields):
    return {"model": "demo-large", "messages": [{"role": "user", "content": "hello"}], **fields}


async def said(upstream, **fields):
    """The text of one reply, streamed or not."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(upstream.base_url + "/chat/completions", json=body(**fields)) as response,
    ):
        assert response.status == 200
        if not fields.get("stream"):
            return (await response.json())["choices"][0]["message"]["content"]
        events = [line[6:] for line in (await response.read()).splitlines() if line.startswith(b"data: {")]
    chunks = [json.loads(event) for event in events]
    assert {"demo-large"} == {chunk["model"] for chunk in chunks}
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])


@pytest.mark.parametrize("stream", [True, False])
async def test_a_talker_says_sentences(stream):
    """A reply is made of whole sentences and as long as was asked for, whichever way it comes."""
    async with ScriptedUpstream(Talker(**FAST)) as upstream:
        text = await said(upstream, stream=stream)
    assert 20 <= len(text) < 60 + max(map(len, SENTENCES))
    for sentence in SENTENCES:
        text = text.replace(sentence, "")
    assert text == ""


async def test_a_talker_counts_only_for_who_asks():
    """The usage comes with a stream if it was asked for, as OpenAI has it."""
    async with ScriptedUpstream(Talker(**FAST)) as upstream, aiohttp.ClientSession() as session:
        for options, usages in ({"include_usage": True}, 1), (None, 0):
            asked = body(stream=True, stream_options=options)
            async with session.post(upstream.base_url + "/chat/completions", json=asked) as response:
                assert usages == (await response.read()).count(b'"usage"')


def test_a_talker_says_phrases_as_often_as_told():
    """All replies hold one, or none does; the same seed says the same."""
    always, never = Talker(phrases=["forbidden"], phrase_share=1.0), Talker(phrases=["forbidden"])
    assert all("forbidden" in always.reply() for _ in range(50))
    assert not any("forbidden" in never.reply() for _ in range(50))
    assert [Talker(seed=3).reply() for _ in range(3)] == [Talker(seed=3).reply() for _ in range(3)]
    assert Talker(seed=3).reply() != Talker(seed=4).reply()


@pytest.mark.parametrize("stream", [True, False])
async def test_a_talker_breaks_off(stream):
    """A reply that breaks off resets its connection; one that is refused is a 503."""
    async with ScriptedUpstream(Talker(break_share=1.0, **FAST)) as upstream:
        with pytest.raises(aiohttp.ClientError):
            await said(upstream, stream=stream)
    async with ScriptedUpstream(Talker(refuse_share=1.0, **FAST)) as upstream, aiohttp.ClientSession() as session:
        async with session.post(upstream.base_url + "/chat/completions", json=body(stream=stream)) as response:
            assert response.status == 503


def test_callers_do_what_their_way_says():
    """Of each way the request shows what is odd about it."""
    callers = Callers(keys=["sk-a"], models=["m"], phrases=["forbidden"])
    asks = {way: callers.ask(way) for way in WAYS}
    bodies = {way: json.loads(ask.body) for way, ask in asks.items()}
    assert {"whole"} == {way for way in WAYS if not bodies[way]["stream"]}
    assert {"stranger"} == {way for way in WAYS if asks[way].key != "sk-a"}
    assert {"leaves"} == {way for way in WAYS if asks[way].leaves_after is not None}
    assert {"forbidden"} == {way for way in WAYS if "forbidden" in asks[way].body.decode()}
    assert {"nonsense"} == {way for way in WAYS if "temperature" in bodies[way]}
    for fields in bodies.values():
        assert fields["messages"][-1]["role"] == "user"
        assert len(fields["messages"]) % 2 == 1
    assert sum(WAYS.values()) == 100


async def test_load_sends_as_many_as_told():
    """Each caller comes, gets its answer and is counted; who leaves has closed the connection."""
    async with ScriptedUpstream(Talker(**FAST)) as upstream:
        load = Load(url=upstream.base_url, callers=Callers(keys=["sk-a"], models=["m"]), rate=1000)
        await load.run(60)
        assert upstream.received == 60
    assert load.ended.total() == 60
    assert {"200"} <= set(load.ended) <= {"200", "left"}


async def test_load_keeps_to_its_streams():
    """Who would be one too many does not come: the upstream never holds more."""
    gate = asyncio.Event()
    async with ScriptedUpstream(Script(Head(), Send(b"data: [DONE]\n\n"), Gate(gate))) as upstream:
        load = Load(url=upstream.base_url, callers=Callers(keys=["sk-a"], models=["m"]), rate=1000, streams=3)
        running = asyncio.ensure_future(load.run(40))
        while load.ended.total() < 37:  # all but those who hold the three places
            await asyncio.sleep(0.001)
        assert upstream.open_connections <= 3 + load.ended["left"]
        gate.set()
        await running
    assert load.ended["skipped"] + upstream.received == load.ended.total() == 40
    assert load.ended["skipped"] > 0


async def test_load_bears_a_relay_that_is_away():
    """Nobody is there, or the answer breaks off: it is counted, and the next one comes."""
    async with ScriptedUpstream(whole(b"{}")) as upstream:
        url = upstream.base_url
    load = Load(url=url, callers=Callers(keys=["sk-a"], models=["m"]), rate=1000)
    await load.run(5)
    assert load.ended == {"unreachable": 5}
    async with ScriptedUpstream(Talker(break_share=1.0, **FAST)) as upstream:
        load = Load(url=upstream.base_url, callers=Callers(keys=["sk-a"], models=["m"]), rate=1000)
        await load.run(20)
    assert set(load.ended) <= {"broken", "left", "unreachable"}


def test_phrases_of_a_file(tmp_path):
    """Comments and empty lines are none."""
    (tmp_path / "words.txt").write_text("# a list\nforbidden fruit  # and why\n\n敏感词\n")
    words = ["upstream", "--phrase", "casino", "--phrase-file", str(tmp_path / "words.txt")]
    assert phrases(parser().parse_args(words)) == ["casino", "forbidden fruit", "敏感词"]


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["load"], KEYS),
        (["load", "--rate", "1000"], "at most 50"),
        (["load", "--requests", "0"], "from 1"),
        (["upstream", "--phrase-share", "2"], "between 0 and 1"),
        (["upstream", "--pace-ms", "0"], "above 0"),
        (["upstream", "--phrase-file", "/nowhere"], "--phrase-file"),
    ],
)
def test_a_wrong_command_line_says_what_to_do(words, remedy, capsys, monkeypatch):
    """It ends with status 2 and names the option or variable."""
    monkeypatch.delenv(KEYS, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert remedy in capsys.readouterr().err
