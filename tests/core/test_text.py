"""Text of a reply that a plugin changes: the same whatever chunks it comes in."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import Plugin
from relay.testing import frames
from relay.testing.run import run
from relay.text import MAX_HELD_CHARS, TextSink, begun


class Swap(Plugin):
    """Puts another word in the place of one."""

    word: str = "cat"
    by: str = "dog"

    def on_stream(self, ex, sink):
        return TextSink(sink, self._swap)

    def _swap(self, text, last):
        *whole, rest = text.split(self.word)
        held = "" if last else begun(rest, self.word)
        return self.by.join([*whole, rest.removesuffix(held)]), held


@pytest.mark.parametrize(
    ("text", "word", "end"),
    [("a c", "cat", "c"), ("a ca", "cat", "ca"), ("cat", "cat", ""), ("aab", "abab", "ab"), ("", "cat", ""), ("x", "x", "")],
)  # fmt: skip
def test_begun(text, word, end):
    assert end == begun(text, word)


@given(st.lists(st.text("cat dog", max_size=5)), st.booleans())
def test_however_it_comes(pieces, streamed):
    """The text is the one that it would be in one piece, and the reply ends as it did."""
    reply = asyncio.run(run(Swap(), stream=streamed, answer=pieces)).reply
    assert "".join(pieces).replace("cat", "dog") == reply.text
    if streamed:
        assert "stop" == reply.events[-1]["choices"][0]["finish_reason"]
        assert 1 == sum(bool(event["choices"][0]["finish_reason"]) for event in reply.events)


async def test_what_is_not_changed_leaves_as_it_came():
    """Byte for byte, in the chunks that it came in."""
    pieces = ["A do", "g, ", "two ", "dogs", "."]
    reply = (await run(Swap(), answer=pieces)).reply
    assert b"".join(frames.stream(pieces)).removesuffix(frames.done()) == reply.data


async def test_each_choice_has_its_own_text():
    events = [
        frames.role(), frames.text("a c"), frames.text("a ca", index=1), frames.text("at"), frames.text("b", index=1),
        frames.finish(), frames.finish("length", index=1), frames.usage(), frames.done(),
    ]  # fmt: skip
    reply = (await run(Swap(), answer=b"".join(events))).reply
    texts = ["", ""]
    for event in reply.events:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    assert ["a dog", "a cab"] == texts
    assert [41, 6] == [reply.events[-1]["usage"][f"{each}_tokens"] for each in ("prompt", "completion")]


async def test_what_is_held_leaves_before_the_end():
    """Of a choice before its finish, in a chunk of its own; of a reply that breaks off before the error."""
    reply = (await run(Swap(), answer=["a ca"])).reply
    assert ["a ", "ca", None] == [event["choices"][0]["delta"].get("content") for event in reply.events[1:]]
    reply = (await run(Swap(), answer=b"".join([frames.role(), frames.text("a ca")]))).reply
    assert "a ca" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events if "choices" in e)
    assert "error" in reply.events[-1]


async def test_other_fields_pass():
    """Calls of tools, reasoning, a role beside the text, and what is no chunk at all."""
    events = [
        frames.delta({"role": "assistant", "content": "ca"}), frames.delta({"reasoning_content": "cat"}),
        frames.tool('{"cat": 1}', name="cat"), frames.text("t"), frames.data('{"object":"cat"}'), frames.comment("cat"),
        frames.finish(), frames.done(),
    ]  # fmt: skip
    reply = (await run(Swap(), answer=b"".join(events))).reply
    assert "dog" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events if "choices" in e)
    assert "assistant" == reply.events[0]["choices"][0]["delta"]["role"]
    for each in (events[1], events[2], events[4]):
        assert json.loads(each[6:]) in reply.events


async def test_one_that_never_lets_go():
    """It does, when it holds too much; and at the end."""

    class Holds(Plugin):
        def on_stream(self, ex, sink):
            return TextSink(sink, lambda text, last: ("", text))

    text = "a" * MAX_HELD_CHARS
    reply = (await run(Holds(), answer=[text, "b", "c"])).reply
    assert [text + "b", "c"] == [
        event["choices"][0]["delta"]["content"] for event in reply.events if event["choices"][0]["delta"].get("content")
    ]


async def test_what_it_raises_is_the_plugins():
    class Raises(Plugin):
        def on_stream(self, ex, sink):
            return TextSink(sink, lambda text, last: 1 / 0)

    ran = await run(Raises())
    assert [("Raises", "feed")] == [(error.plugin, error.hook) for error in ran.raised]
