"""Text of a reply that a plugin changes: the same whatever chunks it comes in."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import steps

from relay import Plugin
from relay.exchange import Outcome
from relay.pure.openai import Chunk
from relay.pure.request import MAX_CHOICES
from relay.testing import frames
from relay.testing.reply import Kept
from relay.testing.run import run
from relay.text import MAX_HELD_CHARS, MAX_TEXTS, MAX_WAITING_CHARS, TextSink, begun


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


@given(st.lists(st.text("ca ", max_size=5)))
def test_what_is_held_and_not_changed_leaves_as_it_came(pieces):
    """A frame of which some text is held waits whole."""
    pieces = [piece for piece in pieces if piece]
    if "cat" not in "".join(pieces):
        reply = asyncio.run(run(Swap(), answer=pieces)).reply
        assert b"".join(frames.stream(pieces)).removesuffix(frames.done()) == reply.data


async def test_a_long_frame_is_parted():
    """So that most of it is not late, and what is held no later than it has to be; those behind it are whole again."""
    long = "a" * (MAX_WAITING_CHARS + 1)
    reply = (await run(Swap(), answer=[long + " c", "b, a c", "b"])).reply
    contents = [event["choices"][0]["delta"].get("content") for event in reply.events[1:]]
    assert [long + " ", "c", "b, a c", "b", None] == contents


async def test_a_text_that_ends_in_the_frame_of_its_finish():
    events = [frames.text("a ca"), frames.delta({"content": "t."}, finish_reason="stop"), frames.done()]
    reply = (await run(Swap(), answer=b"".join(events))).reply
    assert ("a dog.", "stop") == (reply.text, reply.events[-1]["choices"][0]["finish_reason"])


async def test_a_role_is_not_lost_with_its_text():
    events = [frames.delta({"role": "assistant", "content": "c"}), frames.text("a"), frames.text("t"), frames.finish()]
    reply = (await run(Swap(), answer=b"".join([*events, frames.done()]))).reply
    assert [{"role": "assistant", "content": "dog"}, {}] == [event["choices"][0]["delta"] for event in reply.events]


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
    """Of a choice before its finish, in the frame that said it; of a reply that breaks off before the error."""
    reply = (await run(Swap(), answer=["a ca"])).reply
    assert ["a ca", None] == [event["choices"][0]["delta"].get("content") for event in reply.events[1:]]
    reply = (await run(Swap(), answer=b"".join([frames.role(), frames.text("a ca")]))).reply
    assert "a ca" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events if "choices" in e)
    assert "error" in reply.events[-1]


async def test_other_fields_pass():
    """Calls of tools, reasoning, a role beside the text, and what is no chunk at all."""
    events = [
        frames.delta({"role": "assistant", "content": "ca"}), frames.text("t"), frames.delta({"reasoning_content": "cat"}),
        frames.tool('{"cat": 1}', name="cat"), frames.data('{"object":"cat"}'), frames.comment("cat"),
        frames.finish(), frames.done(),
    ]  # fmt: skip
    reply = (await run(Swap(), answer=b"".join(events))).reply
    assert "dog" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events if "choices" in e)
    assert "assistant" == reply.events[0]["choices"][0]["delta"]["role"]
    for each in events[2:5]:
        assert json.loads(each[6:]) in reply.events


@pytest.mark.parametrize("other", [frames.tool("", name="f"), frames.delta({"reasoning_content": "so"})])
async def test_what_is_held_leaves_before_what_the_choice_says_next(other):
    """A call of a tool that follows a text in another frame follows it still; a frame that says nothing ends nothing."""
    nothing = frames.delta({"content": "", "reasoning_content": None, "tool_calls": []})
    events = [frames.text("a ca"), nothing, other, frames.text("t"), frames.finish(), frames.done()]
    reply = (await run(Swap(), answer=b"".join(events))).reply
    assert ["", "a ca", None, "t", None] == [e["choices"][0]["delta"].get("content") for e in reply.events]
    assert json.loads(other[6:]) == reply.events[2]


async def test_an_empty_finish_reason_ends_nothing():
    """Some servers send one in every frame."""
    events = [frames.delta({"content": each}, finish_reason="") for each in ("a c", "at")]
    reply = (await run(Swap(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    assert "a dog" == reply.text


@pytest.mark.parametrize("part", [lambda text: [{"type": "text", "text": text}], lambda text: [text]])
async def test_content_in_parts(part):
    """As some models send it: what is held is neither lost nor late."""
    events = [frames.delta({"content": part(each)}) for each in ("a c", "at, a ca")]
    reply = (await run(Swap(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    assert "a dog, a ca" == "".join(strings(e["choices"][0]["delta"]) for e in reply.events)
    body = json.loads(frames.body(""))
    body["choices"][0]["message"]["content"] = [*part("a c"), *part("at")]
    reply = (await run(Swap(), stream=False, answer=json.dumps(body).encode())).reply
    assert [*part("a "), *part("dog")] == reply.json["choices"][0]["message"]["content"]


async def test_a_changed_frame_keeps_the_rest():
    """Integers of any length, the name and the id of the event, comments; not its logprobs, which say the text again."""
    number = 2**80 + 1
    choice = {
        "index": 0,
        "delta": {"content": "cat"},
        "logprobs": {"content": [{"token": "cat"}]},
        "finish_reason": None,
    }
    event = b": hello\nevent: message\nid: 7\n" + frames.chunk([choice], extra={"seed": number})
    reply = (await run(Swap(), answer=event + frames.finish() + frames.done())).reply
    changed = {"index": 0, "delta": {"content": "dog"}, "finish_reason": None}
    assert b": hello\nevent: message\nid: 7\n" + frames.chunk([changed], extra={"seed": number}) == (
        reply.data.removesuffix(frames.finish())
    )


class Each(Plugin):
    """The same for every text but refusals, and each with its surface before it."""

    def on_stream(self, ex, sink):
        return TextSink.each(sink, self._begin)

    def _begin(self, surface):
        said = []

        def swap(text, last):
            leaves, held = Swap()._swap(text, last)
            if leaves and not said:
                said.append(surface)
                leaves = f"<{surface}>{leaves}"
            return leaves, held

        return swap if surface != "refusal" else None


SURFACES = {
    "content": lambda text: {"content": text},
    "reasoning_content": lambda text: {"reasoning_content": text},
    "reasoning": lambda text: {"reasoning": text},
    "content.thinking": lambda text: {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": text}]}]},
    "reasoning_details": lambda text: {"reasoning_details": [{"type": "reasoning.text", "text": text}]},
    "reasoning_details.summary": lambda text: {"reasoning_details": [{"type": "reasoning.summary", "summary": text}]},
    "audio.transcript": lambda text: {"audio": {"transcript": text}},
    "function_call.arguments": lambda text: {"function_call": {"arguments": text}},
    "tool_calls.1.arguments": lambda text: {"tool_calls": [{"index": 1, "function": {"arguments": text}}]},
    "tool_calls.1.input": lambda text: {"tool_calls": [{"index": 1, "custom": {"input": text}}]},
}


def strings(value):
    """All texts of a delta, joined."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return "".join(strings(below) for key, below in value.items() if key not in ("type", "index", "role"))
    return "".join(map(strings, value)) if isinstance(value, list) else ""


@pytest.mark.parametrize("surface", SURFACES)
async def test_each_surface(surface):
    """A text is one text on each, however it is cut, and what is held at the end is said as it would have been."""
    said = SURFACES[surface]
    events = [frames.delta(said(each)) for each in ("a c", "at, a c", "a")]
    reply = (await run(Each(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    deltas = [event["choices"][0]["delta"] for event in reply.events]
    assert f"<{surface}>a dog, a ca" == "".join(map(strings, deltas))
    assert said("ca") == deltas[-2]
    body = json.loads(frames.body(""))
    body["choices"][0]["message"] = {"role": "assistant", **said("a cat, a ca")}
    reply = (await run(Each(), stream=False, answer=json.dumps(body).encode())).reply
    assert f"<{surface}>a dog, a ca" == strings(reply.json["choices"][0]["message"])


async def test_an_empty_piece_ends_nothing():
    pieces = [frames.tool(each) for each in ("a c", "", "at")]
    reply = (await run(Each(), answer=b"".join([*pieces, frames.finish(), frames.done()]))).reply
    assert "<tool_calls.0.arguments>a dog" == "".join(strings(e["choices"][0]["delta"]) for e in reply.events)


@pytest.mark.parametrize("surface", SURFACES)
async def test_an_empty_piece_in_the_frame_of_the_finish_loses_nothing(surface):
    said = SURFACES[surface]
    events = [frames.delta(said("a ca")), frames.delta(said(""), finish_reason="length"), frames.done()]
    reply = (await run(Each(), answer=b"".join(events))).reply
    assert f"<{surface}>a ca" == "".join(strings(event["choices"][0]["delta"]) for event in reply.events)
    assert "length" == reply.events[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("choice", "left"),
    [
        ({"index": 0, "text": "a ca"}, {"index": 0, "text": "a ca"}),
        ({"index": 0, "text": "a cat"}, {"index": 0, "text": "a dog"}),
        (
            {"message": {"content": "cat"}, "delta": {"content": "a ca"}},
            {"message": {"content": "dog"}, "delta": {"content": "a ca"}},
        ),
    ],
)
async def test_a_body_is_whole(choice, left):
    """Whatever stands in it: nothing of it is held, and it stays a body."""
    plugin = Texts() if "text" in choice else Swap()
    ran = await run(plugin, stream=False, answer=json.dumps({"choices": [choice]}).encode())
    assert {"choices": [left]} == ran.reply.json


class Texts(Plugin):
    """The same for the texts of completions."""

    def on_stream(self, ex, sink):
        return TextSink.each(sink, lambda surface: Swap()._swap if surface == "text" else None)


@pytest.mark.parametrize("part", ["message", "delta"])
def test_the_work_grows_with_the_texts_of_a_frame_and_no_faster(part):
    """Twice the texts are twice the steps."""

    def work(texts):
        calls = [{"index": number, "function": {"arguments": "{}"}} for number in range(texts)]
        said = {"content": [{"type": "text", "text": "a"}] * texts, "tool_calls": calls}
        sink = TextSink.each(Kept(), lambda surface: lambda text, last: (text, ""))
        chunk = Chunk.event({"choices": [{"index": 0, part: said, "finish_reason": "stop"}]})
        return steps(lambda: sink.feed(chunk))

    assert work(400) <= 2.2 * work(200)


@pytest.mark.parametrize("surface", ["function_call.arguments", "tool_calls.1.arguments", "tool_calls.1.input"])
@pytest.mark.parametrize("between", [frames.tool("{}", name="f"), frames.text("so"), frames.delta({"reasoning": "so"})])
async def test_a_tool_call_is_one_text_whatever_stands_between_its_pieces(surface, between):
    """Clients join it by its index."""
    said = SURFACES[surface]
    events = [frames.delta(said("a c")), between, frames.delta(said("at")), between, frames.delta(said(", ca"))]
    reply = (await run(Each(), answer=b"".join([*events, frames.finish("tool_calls"), frames.done()]))).reply
    root = surface.split(".")[0]
    deltas = [event["choices"][0]["delta"] for event in reply.events]
    pieces = [delta for delta in deltas if root in delta and 'index": 0' not in json.dumps(delta)]
    assert f"<{surface}>a dog, ca" == "".join(map(strings, pieces))


@pytest.mark.parametrize("odd", ["x", ["x"], 1, True, None, {}, {"arguments": 1, "input": []}])
@pytest.mark.parametrize("key", ["function", "custom", "function_call", "audio", "tool_calls", "content", "reasoning"])
async def test_what_nobody_sends_passes(key, odd):
    """As it came, and is no error."""
    said = {"tool_calls": [{"index": 0, key: odd}]} if key in ("function", "custom") else {key: odd}
    events = [frames.delta(said), frames.finish(), frames.done()]
    ran = await run(Texts(), answer=b"".join(events))
    assert (b"".join(events[:-1]), []) == (ran.reply.data, ran.raised)


def test_choices_and_texts_are_bounded():
    """The oldest are finished: nothing of them is lost."""
    kept = Kept()
    sink = TextSink.each(kept, lambda surface: Swap()._swap)
    for number in range(2 * MAX_CHOICES):
        sink.feed(Chunk.event({"choices": [{"index": number, "delta": {"content": "a ca"}, "finish_reason": None}]}))
        assert len(sink._texts) <= MAX_CHOICES
    for number in range(2 * MAX_TEXTS):
        call = {"index": number, "function": {"arguments": "a ca"}}
        sink.feed(Chunk.event({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}))
        assert len(sink._texts[0]) <= MAX_TEXTS + 1
    sink.end(Outcome("completed"))
    said = {}
    for chunk in kept.chunks:
        choice = chunk.json["choices"][0]
        key = choice["index"], *(call["index"] for call in choice["delta"].get("tool_calls", ()))
        said[key] = said.get(key, "") + strings(choice["delta"])
    assert {**{(n,): "a ca" for n in range(2 * MAX_CHOICES)}, **{(0, n): "a ca" for n in range(2 * MAX_TEXTS)}} == said


def messages(reply):
    """What each frame says of its message."""
    return [e["choices"][0]["message"]["content"] for e in reply.events if "message" in e["choices"][0]]


def message(text, finish_reason=None):
    choice = {"index": 0, "delta": {}, "message": {"content": text}, "finish_reason": finish_reason}
    return frames.chunk([choice])


@pytest.mark.parametrize("pieces", [["a c", "at", ", ca", "b"], list("a cat, cab"), ["a cat, cab"]])
@pytest.mark.parametrize("whole", [True, False])
async def test_messages_in_a_stream_that_grow(pieces, whole):
    """What may be the beginning of a match is not shown, and all is when the choice ends, with it or behind it."""
    grown = ["".join(pieces[: number + 1]) for number in range(len(pieces))]
    events = [message(each, "stop" if whole and each == grown[-1] else None) for each in grown]
    reply = (await run(Swap(), answer=b"".join([*events, frames.finish() if not whole else b"", frames.done()]))).reply
    said = messages(reply)
    assert "a dog, cab" == said[-1]
    assert all("a dog, cab".startswith(each) for each in said)
    assert "stop" == reply.events[-1]["choices"][0]["finish_reason"]


@pytest.mark.parametrize("pieces", [["a c", "at", ", c", "ab, ca"], list("a cat, cab, ca")])
async def test_messages_in_a_stream_that_are_pieces(pieces):
    reply = (await run(Swap(), answer=b"".join([*map(message, pieces), frames.finish(), frames.done()]))).reply
    assert "a dog, cab, ca" == "".join(messages(reply))


async def test_messages_beside_deltas():
    """As some servers send them; each is read for itself."""
    pieces, events = ["a c", "at", ", ca"], []
    for number, piece in enumerate(pieces):
        grown = {"role": "assistant", "content": "".join(pieces[: number + 1])}
        events.append(
            frames.chunk([{"index": 0, "delta": {"content": piece}, "message": grown, "finish_reason": None}])
        )
    reply = (await run(Swap(), answer=b"".join([*events, frames.finish(), frames.done()]))).reply
    assert "a dog, ca" == "".join(e["choices"][0]["delta"].get("content") or "" for e in reply.events)
    assert ["a ", "a dog", "a dog, ", "a dog, ca"] == messages(reply)


async def test_a_surface_that_nobody_wants():
    events = [frames.delta({"refusal": "a cat"}), frames.finish(), frames.done()]
    ran = await run(Each(), answer=b"".join(events))
    assert b"".join(events[:2]) == ran.reply.data


async def test_each_text_begins_anew():
    """Of another choice, of another call, and after something else was said."""
    call = [frames.tool("cat", call=number, name=None) for number in (0, 1)]
    events = [
        frames.text("cat"),
        frames.text("cat", index=1),
        *call,
        frames.text("cat"),
        frames.finish(),
        frames.done(),
    ]
    reply = (await run(Each(), answer=b"".join(events))).reply
    assert [
        "<content>dog", "<content>dog", "<tool_calls.0.arguments>dog", "<tool_calls.1.arguments>dog", "<content>dog", ""
    ] == [strings(event["choices"][0]["delta"]) for event in reply.events]  # fmt: skip


async def test_one_that_never_lets_go():
    """It does, when it holds too much; and at the end."""

    class Holds(Plugin):
        def on_stream(self, ex, sink):
            return TextSink(sink, lambda text, last: ("", text))

    text = "a" * MAX_HELD_CHARS
    reply = (await run(Holds(), answer=[text, "b", "c"])).reply
    assert [text, "b", "c"] == [
        event["choices"][0]["delta"]["content"] for event in reply.events if event["choices"][0]["delta"].get("content")
    ]


async def test_what_it_raises_is_the_plugins():
    class Raises(Plugin):
        def on_stream(self, ex, sink):
            return TextSink(sink, lambda text, last: 1 / 0)

    ran = await run(Raises())
    assert [("Raises", "feed")] == [(error.plugin, error.hook) for error in ran.raised]
