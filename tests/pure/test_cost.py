"""What a message says, as those see it who count."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.cost import said

IMAGE = "data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 40
BYTES = "iVBORw0KGgoAAAANSUhEUgAA" * 40


@pytest.mark.parametrize(
    ("message", "texts"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param({"role": "user", "content": "Hi"}, ["Hi"], id="content"),
        pytest.param({"role": "user", "content": ""}, [], id="empty"),
        pytest.param({"role": "assistant", "content": None}, [], id="null"),
        pytest.param({"content": "Hi", "name": "Ann"}, ["Hi", "Ann"], id="name"),
        pytest.param({"content": "Hi", "name": "user"}, ["Hi", "user"], id="two fields, no role"),
        pytest.param({"role": "tool", "tool_call_id": "call_1", "content": "5 °C"}, ["5 °C"], id="ids are free"),
        pytest.param({"role": "r" * 65, "content": "Hi"}, ["Hi"], id="so is the role"),
        pytest.param({"id": "x" * 65, "content": "Hi"}, ["Hi", "x" * 65], id="but no long text in their place"),
        pytest.param({"content": "A" * 1000}, ["A" * 1000], id="content is text, however it looks"),
        pytest.param({"refusal": "No", "reasoning_content": "Hm", "x": {"y": ["z"]}}, ["No", "Hm", "z"], id="others"),
        pytest.param(
            {"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"q":1}'}}]},
            ["f", '{"q":1}'],
            id="a tool call",
        ),
        pytest.param({"function_call": {"name": "f", "arguments": "{}"}}, ["f", "{}"], id="function_call"),
        pytest.param(
            {"tool_calls": [{"function": {"name": "f", "arguments": {"你": [1, True, "é"]}}}]},
            ["f", '{"你":[1,true,"é"]}'],
            id="arguments as an object",
        ),
        pytest.param(
            {"content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": " you"}]}, ["Hi", " you"], id="parts"
        ),
        pytest.param({"content": ["Hi", {"text": "x"}, " you"]}, ["Hi you", "x"], id="parts that are strings"),
        pytest.param({"content": [{"type": "file", "file": "x", "text": "Hi"}]}, ["x", "Hi"], id="a part with text"),
        pytest.param({"content": {"text": "Hi"}}, ["Hi"], id="a content that is a part"),
        pytest.param({"content": [[["deep"]], 5, None, True]}, ["deep"], id="odd"),
        pytest.param({"content": 5, "x": [1.5, "a", "b"]}, ["a", "b"], id="numbers"),
    ],
)
def test_texts(message: dict[str, Any], texts: list[str]) -> None:
    """Every string but ids; and nothing else in it is a thing."""
    assert (Counter(texts), 0) == (Counter(said(message).texts), said(message).media)


@pytest.mark.parametrize(
    ("message", "texts", "media"),
    [
        pytest.param({"content": [{"type": "image_url", "image_url": {"url": IMAGE}}]}, [], 1, id="image"),
        pytest.param({"content": [{"type": "image_url", "image_url": "https://x.example/a.png"}]}, [], 1, id="address"),
        pytest.param({"content": [{"type": "input_audio", "input_audio": {"data": BYTES}}] * 2}, [], 2, id="audio"),
        pytest.param(
            {"content": [{"type": "text", "text": "Hi"}, {"type": "file", "file": {"filename": "a.pdf"}}]},
            ["Hi"],
            1,
            id="file",
        ),
        pytest.param({"content": [{"type": "image", "source": {"data": BYTES}}]}, [], 1, id="another dialect"),
        pytest.param({"content": "Hi", "images": [BYTES, BYTES]}, ["Hi"], 2, id="beside the content"),
        pytest.param({"content": "Hi", "x": {"file": "you"}}, ["Hi", "you"], 0, id="not in a content"),
    ],
)
def test_media(message: dict[str, Any], texts: list[str], media: int) -> None:
    """Images, sounds and files are counted by the piece, and their bytes are no text."""
    assert (Counter(texts), media) == (Counter(said(message).texts), said(message).media)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=3),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["content", "text", "function", "x"]), below, max_size=3)
    ),
    max_leaves=10,
)


def strings(value: Any) -> str:
    if isinstance(value, str):
        return value
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return "".join(map(strings, below))


@given(st.dictionaries(st.sampled_from(["content", "name", "x"]), JSON, max_size=3))
def test_all_text_is_counted_once(message: dict[str, Any]) -> None:
    """The letters that came out are those that stand in the message; nothing is there twice or for nothing."""
    texts, media = said(message)
    assert Counter(strings(message)) == Counter("".join(texts))
    assert 0 == media
    assert all(texts)


PARTS = st.dictionaries(st.sampled_from(["type", "text", "image_url", "file", "arguments", "id"]), JSON, max_size=3)


@given(st.fixed_dictionaries({"content": JSON | st.lists(PARTS), "tool_calls": JSON | st.lists(PARTS)}))
def test_no_message_does_harm(message: dict[str, Any]) -> None:
    """Whatever stands in a message can be counted."""
    texts, media = said(message)
    assert all(texts)
    assert media >= 0
