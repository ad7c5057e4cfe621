"""Personal data is masked in requests and replies, and everything else goes on as it came."""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.exchange import Key
from relay.options import ConfigError, Context, build
from relay.pure.request import ChatRequest
from relay.testing import frames
from relay.testing.run import run
from relay_plugins.pii import INLINE_BYTES, MASKED, Pii

TEXT = "电话13812345678，邮箱zhang.san@example.com，卡号4111 1111 1111 1111。"
LEFT = "电话[phone]，邮箱[email]，卡号[bank_card]。"


def said(reply, field="content"):
    return "".join(e["choices"][0].get("delta", {}).get(field) or "" for e in reply.events)


# Replies


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("pieces", [[TEXT], list(TEXT), [TEXT[:7], TEXT[7:]]])
async def test_a_stream(cuts, pieces):
    ran = await run(Pii(), answer=pieces, cuts=cuts)
    assert LEFT == ran.reply.text
    assert [] == ran.raised
    assert {"phone": 1, "email": 1, "bank_card": 1} == ran.exchange[MASKED]


@pytest.mark.parametrize("style", ["label", "partial"])
async def test_a_reply_that_is_not_streamed(style):
    left = {"label": LEFT, "partial": "电话138****5678，邮箱z***@example.com，卡号**** **** **** 1111。"}[style]
    assert left == (await run(Pii(style=style), answer=[TEXT], stream=False)).reply.text


@given(st.lists(st.integers(0, 2000), max_size=20), st.lists(st.integers(0, len(TEXT)), max_size=6))
def test_however_it_is_cut(cuts, places):
    bounds = [0, *sorted(places), len(TEXT)]
    pieces = [TEXT[start:end] for start, end in itertools.pairwise(bounds)]
    assert LEFT == asyncio.run(run(Pii(), answer=pieces, cuts=cuts)).reply.text


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "refusal"])
async def test_every_text_of_a_choice(field):
    events = [frames.delta({field: each}) for each in ("电话1381", "2345", "678。")]
    reply = (await run(Pii(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    assert "电话[phone]。" == said(reply, field)


async def test_arguments_stay_json():
    pieces = ['{"name": "\\u5f20", "pho', 'ne": 1381234', '5678, "mail": "\\u5f20a@b.c', 'om"}']
    events = [frames.tool(name="call", call_id="a"), *(frames.tool(each) for each in pieces)]
    reply = (await run(Pii(), answer=b"".join([*events, frames.finish("tool_calls"), frames.done()]))).reply
    calls = [call for e in reply.events for call in e["choices"][0]["delta"].get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert {"name": "张", "phone": "[phone]", "mail": "张[email]"} == json.loads(arguments)


@pytest.mark.parametrize(
    "between", [frames.tool("{}", name="g", call=1, call_id="b"), frames.delta({"reasoning_content": "hm"})]
)
@pytest.mark.parametrize("pieces", [['{"a": "tel ', '13812345678 now"}'], ['{"a": "tel 13812', '345678 now"}']])
async def test_arguments_stay_json_whatever_stands_between(pieces, between):
    events = [frames.tool(pieces[0], name="f"), between, frames.tool(pieces[1]), frames.finish("tool_calls")]
    reply = (await run(Pii(), answer=b"".join([*events, frames.done()]))).reply
    calls = [call for e in reply.events for call in e["choices"][0]["delta"].get("tool_calls", ())]
    arguments = "".join(call["function"]["arguments"] for call in calls if call["index"] == 0)
    assert {"a": "tel [phone] now"} == json.loads(arguments)


@pytest.mark.parametrize("grows", [True, False])
async def test_messages_in_a_stream(grows):
    """Nothing of a number is seen before it is whole, whether a frame says all again or only what is new."""
    pieces, events = ["tel ", "1381", "2345", "678", ". ok "], []
    for number, piece in enumerate(pieces):
        content = "".join(pieces[: number + 1]) if grows else piece
        events.append(frames.chunk([{"index": 0, "message": {"content": content}, "finish_reason": None}]))
    reply = (await run(Pii(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    said = [e["choices"][0]["message"]["content"] for e in reply.events if "message" in e["choices"][0]]
    assert "tel [phone]. ok " == (said[-1] if grows else "".join(said))
    assert not any("1" in each for each in said)


async def test_nothing_stays_in_logprobs():
    """They would say the text again."""
    logprobs = {"content": [{"token": "13812345678", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}
    choice = {"index": 0, "delta": {"content": "13812345678"}, "logprobs": logprobs, "finish_reason": None}
    reply = (await run(Pii(), answer=frames.chunk([choice]) + frames.finish() + frames.done())).reply
    assert "[phone]" == reply.text
    assert b"1381234" not in reply.data


@pytest.mark.parametrize(
    "pieces", [["今天", "天气，", "100元。"], ["In", " 20", "24", ", a", "@", "b", " is no", " address", "."]]
)
async def test_text_without_any_leaves_as_it_came(pieces):
    answer = frames.stream(pieces)
    assert b"".join(answer[:-1]) == (await run(Pii(), answer=b"".join(answer))).reply.data


async def test_a_reply_that_breaks_off():
    """What was held leaves before the error; half of a number is none."""
    reply = (await run(Pii(), answer=b"".join([frames.role(), frames.text("tel 1381")]))).reply
    assert "tel 1381" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events[:-1])
    assert "error" in reply.events[-1]


# Requests


async def sent(*messages, **options):
    ran = await run(Pii(**options), messages=list(messages))
    assert [] == ran.raised
    return ran.sent["messages"]


async def test_every_text_of_a_request():
    """System prompts, parts, names, results and arguments of tools, definitions of tools, and who asks."""
    call = {"id": "call_13812345678", "type": "function", "function": {"name": "f", "arguments": '{"p": 13812345678}'}}
    image = {"type": "image_url", "image_url": {"url": "https://x.cn/13812345678.png"}}
    messages = [
        {"role": "system", "content": TEXT},
        {"role": "user", "content": [{"type": "text", "text": TEXT}, image], "name": "a@b.cn"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "13812345678"},
        {"role": "tool", "tool_call_id": "call_13812345678", "content": json.dumps({"电话": "电13812345678"})},
    ]
    tools = [{"type": "function", "function": {"name": "f", "description": TEXT, "parameters": {"type": "object"}}}]
    ran = await run(Pii(), messages=messages, tools=tools, user="a@b.cn", metadata={"who": "13812345678"})
    assert [
        {"role": "system", "content": LEFT},
        {"role": "user", "content": [{"type": "text", "text": LEFT}, image], "name": "[email]"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{**call, "function": {"name": "f", "arguments": '{"p": "[phone]"}'}}],
            "reasoning_content": "[phone]",
        },
        {"role": "tool", "tool_call_id": "call_13812345678", "content": json.dumps({"电话": "电13812345678"}).replace("13812345678", "[phone]")},
    ] == ran.sent["messages"]  # fmt: skip
    assert LEFT == ran.sent["tools"][0]["function"]["description"]
    assert ("[email]", {"who": "[phone]"}) == (ran.sent["user"], ran.sent["metadata"])


async def test_a_long_request_is_masked_in_a_thread():
    content = "今天" * INLINE_BYTES + TEXT
    assert content.replace(TEXT, LEFT) == (await sent({"role": "user", "content": content}))[0]["content"]


@pytest.mark.parametrize(
    ("options", "request_left", "reply_left"), [({"requests": False}, TEXT, LEFT), ({"replies": False}, LEFT, TEXT)]
)
async def test_one_way_only(options, request_left, reply_left):
    ran = await run(Pii(**options), messages=[{"role": "user", "content": TEXT}], answer=[TEXT])
    assert (request_left, reply_left) == (ran.sent["messages"][0]["content"], ran.reply.text)


async def test_two_of_them_count_together():
    """One for requests and one for replies, with a moderator between them."""
    both = Pii(replies=False), Pii(requests=False)
    ran = await run(both[1], messages=[{"role": "user", "content": TEXT}], answer=[TEXT], before=[both[0]])
    assert (LEFT, LEFT) == (ran.sent["messages"][0]["content"], ran.reply.text)
    assert {"phone": 2, "email": 2, "bank_card": 2} == ran.exchange[MASKED]


def test_a_request_without_any_goes_on_as_it_came():
    body = b'{"messages" : [{"role":"user", "content":"Hi \\u4f60"}],"x": 123456789012345678901234567890, "y": "2024"}'
    request = ChatRequest(body)
    Pii()._mask(request, {})
    assert body == request.encode()


def test_messages_without_any_go_on_as_they_came():
    number = b"123456789012345678901234567890"
    kept = b'{"role" : "user","content":"\\u4f60", "n": [1.50, %b]}' % number
    masked = b'{"role":"user","content":"13812345678","n":%b}' % number
    request = ChatRequest(b'{"seed" : %b, "messages":[%b , %b]}' % (number, kept, masked))
    Pii()._mask(request, {})
    assert b'{"seed":%b,"messages":[%b,%b]}' % (number, kept, masked.replace(b"13812345678", b"[phone]")) == (
        request.encode()
    )


# Options


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"kinds": []}, "kinds is empty"),
        ({"requests": False, "replies": False}, "both off"),
        ({"kinds": ["phones"]}, "phones"),
        ({"style": "hash"}, "hash"),
    ],
)
def test_options_that_make_no_sense(table, problem):
    with pytest.raises(ConfigError, match=problem):
        build(Pii, table, "plugins[0]", context=Context(folder=Path(), environ={}))


def test_what_others_may_read():
    assert isinstance(MASKED, Key)
    assert (MASKED,) == Pii.gives
