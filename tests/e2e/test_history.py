"""What a trimmed conversation looks like to the upstream, byte for byte, and to the client."""

import io
import json

import pytest

from relay.pure.request import MAX_BRACKETS
from relay.testing import answers, frames, streamed

HEADER = "X-Relay-Trimmed-Messages"
METRIC = "relay_history_trimmed_messages_total"
DIGITS = b"123456789012345678901234567890123456789012345678901234567890"

# A conversation as no encoder of ours would write it.
SYSTEM = rb'{"role" : "system","content":"\u4f60\/\ud83d\ude00", "n": [1.50, 1e2, -0, %b]}' % DIGITS
OLD = [
    rb'{"role":"user","content":"old one"}',
    rb'{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{}"}}]}',
    rb'{"role":"tool","tool_call_id":"a","content":"old result"}',
]
CALL = [
    rb'{ "role":"user","content":"what is it?" }',
    rb'{"role":"assistant","content":null,"x":%b,"tool_calls":[' % DIGITS
    + rb'{"id":"b","type":"function","function":{"name":"f","arguments":"{\"q\": [1]}"}}, '
    + rb'{"id":"c","type":"function","function":{"name":"g","arguments":"{}"}}]}',
    rb'{"role":"tool","tool_call_id":"c","content":"\u00e9"}',
]
NEW = [
    rb'{"content":[{"type":"text","text":"and"} ],"role":"user"}',
    rb'{"role":"tool","content":"late","tool_call_id":"b"}',
    b'{"role":"user","content":"\xe4\xbd\xa0"}',
]


def chain(**options):
    return [
        {"use": "auth", "keys": [{"name": "tester", "key": "sk-canary-client-2f6b1c90d7e84a53"}]},
        {"use": "history", **options},
    ]


def written(*messages, stream):
    return (
        b'{"model":"gpt-4", "seed" : %b, "messages": [ ' % DIGITS
        + b", ".join(messages)
        + b' ],\n"stream":%b}' % json.dumps(stream).encode()
    )


async def ask(rig, data):
    """The status, the number in the header, and the answer."""
    async with rig.session.post(rig.chat_url, data=io.BytesIO(data)) as response:  # aiohttp warns of long bytes
        return response.status, response.headers.get(HEADER), await response.read()


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    ("max_turns", "left"),
    [
        pytest.param(1, [SYSTEM, *NEW[2:]], id="a turn"),
        # The result of a call comes a turn later, so two turns that belong together do not fit into two.
        pytest.param(2, [SYSTEM, *NEW[2:]], id="half of a pair"),
        pytest.param(3, [SYSTEM, *CALL, *NEW], id="a pair"),
    ],
)
async def test_what_the_upstream_receives(serve, stream, max_turns, left):
    """The messages that stay, and every other field, to the last digit; a call never without its results."""
    rig = await serve(answers(["Hel", "lo"]), chain=chain(max_turns=max_turns))
    given = [*OLD, SYSTEM, *CALL, *NEW]
    status, trimmed, data = await ask(rig, written(*given, stream=stream))
    assert (200, str(len(given) - len(left))) == (status, trimmed)
    assert b"Hel" in data
    assert data.endswith(frames.done()) is stream
    received = await rig.upstream.request()
    assert (
        b'{"model":"gpt-4","seed":%b,"messages":[%b],"stream":%b}'
        % (DIGITS, b",".join(left), json.dumps(stream).encode())
    ) == received.body
    assert len(given) - len(left) == (await rig.metrics())[METRIC]


@pytest.mark.parametrize("options", [{"max_turns": 4}, {"max_tokens": 1000}, {"max_tokens": 1000, "count": "exact"}])
async def test_what_fits_goes_on_as_it_came(serve, options):
    """White space between the messages included; no header."""
    rig = await serve(answers(["Hello"]), chain=chain(**options))
    data = written(*OLD, SYSTEM, *CALL, *NEW, stream=False)
    assert (200, None) == (await ask(rig, data))[:2]
    assert data == (await rig.upstream.request()).body
    assert METRIC not in await rig.metrics()


async def test_a_newest_turn_over_the_budget_is_sent_all_the_same(serve):
    """The upstream is to say so, not we."""
    rig = await serve(answers(["Hello"]), chain=chain(max_tokens=1, max_chars=1))
    assert (200, "6") == (await ask(rig, written(*OLD, *CALL, *NEW[2:], stream=True)))[:2]
    assert b'"messages":[%b]' % NEW[2] in (await rig.upstream.request()).body


async def test_the_usage_of_a_stream_is_learned(serve):
    """What the upstream counts in one reply decides what stays of the next request. It is asked for that while nothing
    is known of its model, and the client does not see the answer."""
    prose = "The quick brown fox. " * 60  # some 300 tokens, estimated
    messages = [{"role": "user", "content": f"{prose} {number}"} for number in range(3)]
    data = frames.stream(["Hel", "lo"], tokens=(3000, 2))
    rig = await serve(streamed(data), chain=chain(max_tokens=1200))
    first, second = [
        await ask(rig, json.dumps({"model": "m", "messages": messages, "stream": True}).encode()) for _ in range(2)
    ]
    assert (200, None, b"".join(data[:-2] + data[-1:])) == first
    assert (200, "2", b"".join(data)) == second
    assert [True, False] == ["stream_options" in request.json for request in rig.upstream.requests]


@pytest.mark.parametrize(
    ("count", "status"),
    [
        pytest.param(1_000_000, 413, id="a million"),
        pytest.param(500_000, 400, id="as many as a body holds"),
        pytest.param(MAX_BRACKETS - 2, 200, id="as many as there may be"),
    ],
)
@pytest.mark.parametrize("options", [{"max_tokens": 3000}, {"max_tokens": 3000, "count": "exact"}, {"max_turns": 20}])
async def test_very_many_messages(serve, count, status, options):
    """A body of too many messages is refused before any of them is looked at; of as many as may be, a few stay."""
    rig = await serve(answers(["Hello"]), chain=chain(**options))
    user = b'{"role":"user"}' if status == 200 else b"{}"
    answered, trimmed, _ = await ask(rig, written(*[user] * count, stream=False))
    assert status == answered
    if status == 200:
        stay = 20 if "max_turns" in options else 750  # a message costs four tokens
        assert str(count - stay) == trimmed
        assert stay == (await rig.upstream.request()).body.count(user)
    else:
        assert 0 == rig.upstream.received
