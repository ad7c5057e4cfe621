"""What is counted of a reply: everything the model wrote for a reader, once, however the frames are cut and written."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.meter import Count, Reported, reported
from relay.pure.openai import Chunk, Frame, PlainChunk
from relay.pure.plain import plain_text
from relay.pure.surfaces import read
from relay.pure.tokens import estimate

USAGE = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}


def event(*deltas: object, **more: object) -> Chunk:
    choices = [{"index": index, "delta": delta} for index, delta in enumerate(deltas)]
    return Chunk.event({"id": "x", "choices": choices, **more})


SAYINGS = [
    pytest.param(event({"content": "你好, one"}), 7, id="content"),
    pytest.param(event({"content": "你好"}, {"content": "abcde"}), 7, id="choices"),
    pytest.param(event({"refusal": "I can’t"}), 7, id="refusal"),
    pytest.param(event({"content": "", "reasoning_content": "so then"}), 7, id="reasoning"),
    pytest.param(event({"reasoning_content": "so then", "reasoning": "so then"}), 7, id="reasoning said twice"),
    pytest.param(
        event({"reasoning": "so then", "reasoning_details": [{"type": "reasoning.text", "text": "so then"}]}),
        7,
        id="reasoning and its details",
    ),
    pytest.param(event({"reasoning": "so", "content": "there"}), 7, id="reasoning and content"),
    pytest.param(
        event({"content": None, "tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "look"}}]}),
        4,
        id="a tool's name",
    ),
    pytest.param(
        event({"tool_calls": [{"index": i, "function": {"arguments": a}} for i, a in enumerate(['{"a', '":1}'])]}),
        7,
        id="arguments of two calls",
    ),
    pytest.param(event({"tool_calls": [{"function": {"arguments": {"a": 1}}}]}), 7, id="arguments as an object"),
    pytest.param(
        event({"tool_calls": [{"type": "custom", "custom": {"name": "sh", "input": "ls -l"}}]}), 7, id="custom"
    ),
    pytest.param(event({"function_call": {"name": "f", "arguments": '{"a":1'}}), 7, id="function_call"),
    pytest.param(event({"audio": {"id": "audio_1", "transcript": "Hi then", "data": "QUJD"}}), 7, id="speech"),
    pytest.param(event({"content": ["ab", {"type": "text", "text": "cdefg"}]}), 7, id="parts"),
    pytest.param(
        event({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so then"}]}]}), 7, id="thinking"
    ),
    pytest.param(
        Chunk.event({"choices": [{"delta": {"content": "so then"}, "message": {"content": "so then"}}]}),
        7,
        id="a message beside the delta",
    ),
    pytest.param(Chunk.event({"choices": [{"text": "so then", "index": 0}]}), 7, id="a completion"),
    pytest.param(
        Chunk.event({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": [{"token": "a"}]}}]}),
        1,
        id="log probabilities",
    ),
    pytest.param(
        Chunk.body(b'{"choices": [{"message": {"content": "so", "tool_calls": null}}]}'), 2, id="a whole body"
    ),
    pytest.param(event({"role": "assistant", "content": ""}), 0, id="a role"),
    pytest.param(event(usage=USAGE), 0, id="usage"),
    pytest.param(Chunk(b"data: {", b"{"), 0, id="no JSON"),
    pytest.param(Chunk(b"data: []", b"[]"), 0, id="no object"),
]


@pytest.mark.parametrize(("chunk", "characters"), SAYINGS)
def test_what_counts(chunk: Chunk, characters: int) -> None:
    """Code points of what is shown to a reader, each once."""
    count = Count()
    assert characters == count.feed(chunk) == count.characters


def test_a_lone_surrogate() -> None:
    """Half a character, which JSON can spell, is one; its bytes are those of what stands in for it."""
    chunk = Chunk(b"", b'{"choices": [{"delta": {"content": "\\ud83d"}}]}')
    count = Count()
    assert 1 == count.feed(chunk)
    assert 1 == count.bytes


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)), st.data())
def test_plain_chunks_are_not_parsed(texts: list[str], data: st.DataObject) -> None:
    """What a chunk is known to say counts as what its frame says; the estimate is that of the whole text."""
    short, long = Count(), Count()
    for text in texts:
        whole = event({"content": text})
        plain = PlainChunk.of(b"data: not looked at", (0, text))
        if data.draw(st.booleans()):
            plain = whole
            plain.said = plain_text(whole.data)
        assert len(text) == short.feed(plain) == long.feed(event({"content": text}))
    assert (short.characters, short.bytes) == (long.characters, long.bytes)
    assert estimate("".join(texts)) == pytest.approx(short.estimated_tokens)


surfaces = st.dictionaries(
    st.sampled_from(["content", "refusal", "reasoning_content", "role"]), st.text("ab你🎉", max_size=4), max_size=4
)
calls = st.lists(
    st.fixed_dictionaries(
        {"function": st.fixed_dictionaries({}, optional={"name": st.text("ab"), "arguments": st.text('{"你')})}
    ),
    max_size=3,
)


@given(st.lists(st.tuples(surfaces, calls), max_size=3))
def test_as_moderation_reads_it(deltas: list[tuple[dict[str, Any], list[Frame]]]) -> None:
    """Of fields that say nothing twice, what counts is what the table of surfaces finds."""
    frame = json.loads(event(*({**said, "tool_calls": called} for said, called in deltas)).data)
    texts = [text for choice in read(frame).choices for _, _, text in choice.texts]
    assert sum(map(len, texts)) == Count().feed(Chunk.event(frame))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
NAMES = "content reasoning reasoning_details refusal tool_calls function_call audio text thinking function arguments".split()
odd = st.recursive(values, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner))


@given(st.dictionaries(st.sampled_from(["choices", "usage", "error"]), values | st.lists(values, max_size=3)), odd)
def test_nothing_does_harm(frame: Frame, delta: object) -> None:
    """Whatever an upstream sends is counted without an error, and counts nothing below zero."""
    count = Count()
    assert count.feed(Chunk.event(frame)) >= 0
    assert count.feed(event(delta)) >= 0
    assert count.reported is None or count.usage is not None


def test_deep_parts() -> None:
    """As deep as a chunk can be read."""
    delta: object = "a"
    for _ in range(98):
        delta = [{"thinking": delta}]
    assert 1 == Count().feed(event({"content": delta}))


# The upstream's own count


def test_the_last_usage_counts() -> None:
    """Some servers tell it with every frame; null and {} say nothing."""
    count = Count()
    count.feed(event({"content": "a"}, usage={"prompt_tokens": 12, "completion_tokens": 1}))
    count.feed(event(usage=USAGE))
    count.feed(event(usage=None))
    count.feed(event(usage={}))
    assert USAGE == count.usage
    assert Reported(12, 3) == count.reported


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"prompt_tokens": 1},
        {"prompt_tokens": "1", "completion_tokens": 1},
        {"prompt_tokens": True, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": -1},
        {"prompt_tokens": 1, "completion_tokens": 10**12},
        {"prompt_tokens": 1.5, "completion_tokens": 1},
    ],
)
def test_usage_that_cannot_be(usage: Frame) -> None:
    """An upstream may say anything; what is no plausible number is not believed."""
    assert reported(usage) is None
