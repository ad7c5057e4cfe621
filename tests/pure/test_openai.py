"""Chunks, exact JSON, repeated keys and the frames that we make ourselves."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.openai import (
    MAX_DEPTH,
    MOST_TOKENS,
    Chunk,
    Frame,
    delta_frame,
    dump,
    envelope,
    error_body,
    error_event,
    has_repeated_key,
    load_exactly,
    nests_deeply,
    told_tokens,
    usage_frame,
)
from relay.pure.sse import Decoder

DIGITS = "123456789" * 7  # 63 of them


@pytest.mark.parametrize(
    ("data", "value", "lenient"),
    [
        pytest.param(b'{"a":1}', {"a": 1}, False, id="plain"),
        pytest.param(b' \n{"a": "\\ud83d\\ude00"}\t', {"a": "😀"}, False, id="white space and a pair"),
        pytest.param(b'{"a":"\\ud83d"}', {"a": "\ud83d"}, True, id="half a pair"),
        pytest.param(b'{"\\udc00":1}', {"\udc00": 1}, True, id="half a pair in a key"),
        pytest.param(b'{"a":"\xe4\xbd"}', {"a": "\ufffd"}, True, id="cut UTF-8"),
        pytest.param(b'{"a":"\xed\xa0\xbd"}', {"a": "\ufffd" * 3}, True, id="half a pair as UTF-8"),
        pytest.param(b'{"a":-Infinity}', {"a": -math.inf}, True, id="infinity"),
        pytest.param(b'{"a":%b}' % (b"1" * 400), {"a": int("1" * 400)}, True, id="400 digits"),
        pytest.param(b'{"a":%b}' % (b"1" * 5000), None, True, id="5,000 digits"),
        pytest.param(b'\xef\xbb\xbf{"a":1}', None, True, id="byte order mark"),
        pytest.param(b'{"a":"\n"}', None, True, id="a raw line end"),
        pytest.param(b'{"a":1}{"a":1}', None, True, id="two objects"),
        pytest.param(b"<html>502 Bad Gateway</html>", None, True, id="HTML"),
        pytest.param(b"", None, True, id="nothing"),
        pytest.param(b"[1]", None, False, id="an array"),
        pytest.param(b"null", None, False, id="null"),
        pytest.param(b'{"a":' + b"[" * 900 + b"]" * 900 + b"}", None, False, id="deep"),
        pytest.param(b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", None, True, id="deeper than any parser"),
        pytest.param(b'{"a":[' + b"{}," * 5000 + b"{}]}", {"a": [{}] * 5001}, False, id="wide"),
    ],
)
def test_json(data: bytes, value: Frame | None, lenient: bool) -> None:
    """What the payload is read as, and whether only the standard library could read it."""
    chunk = Chunk.body(data)
    assert value == chunk.json
    assert lenient == chunk.lenient


def test_not_a_number() -> None:
    """NaN is read as one, leniently."""
    chunk = Chunk.body(b'{"a":NaN}')
    assert chunk.json is not None
    assert math.isnan(chunk.json["a"])
    assert chunk.lenient


@pytest.mark.parametrize("data", [b'{"a":{}}', b"{}", b"[]", b'{"a":"\\ud83d"}'])
def test_json_is_parsed_once(data: bytes) -> None:
    """The same object comes back each time, also where there is none."""
    chunk = Chunk.body(data)
    assert chunk.json is chunk.json


def test_chunks_of_our_own() -> None:
    """A frame becomes an event that a decoder reads; a body is its own payload."""
    frame = {"a": "你\n", "b": 1}
    event = Chunk.event(frame)
    [read] = Decoder(Chunk).feed(event.raw)
    assert (event.raw, event.data, True, "") == (read.raw, read.data, read.plain, read.name)
    assert frame == read.json
    body = Chunk.body(b'{"a":1}')
    assert (b'{"a":1}', b'{"a":1}') == (body.raw, body.data)


# Exact JSON

ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**70), 10**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None), max_size=6),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=4), below, max_size=4),
    max_leaves=15,
)
OBJECTS = st.dictionaries(st.text(max_size=4), ANY, max_size=4)


@given(OBJECTS)
def test_what_is_loaded_exactly_is_dumped_exactly(value: Frame) -> None:
    """Every digit of an integer, every half pair and the order of the keys stay."""
    again = json.loads(dump(load_exactly(json.dumps(value).encode())))
    assert value == again
    assert [*value] == [*again]


@pytest.mark.parametrize(
    ("value", "data"),
    [
        pytest.param({"b": 1, "a": "你"}, '{"b":1,"a":"你"}', id="compact, in order"),
        pytest.param({"a": int(DIGITS), "b": "你"}, f'{{"a":{DIGITS},"b":"你"}}', id="63 digits"),
        pytest.param({"a": "你\ud83d"}, '{"a":"\\u4f60\\ud83d"}', id="half a pair"),
        pytest.param({"\udc00": int(DIGITS)}, f'{{"\\udc00":{DIGITS}}}', id="half a pair and 63 digits"),
        pytest.param({"a": math.nan}, '{"a":null}', id="not a number"),
        pytest.param([[[]]] * 2, "[[[]],[[]]]", id="an array"),
    ],
)
def test_dump(value: object, data: str) -> None:
    """What the bytes are: UTF-8, but for what has none."""
    assert data.encode() == dump(value)


def test_dump_of_all_that_can_be_read() -> None:
    """Whatever nests no deeper than can be read can be written, by the one writer or the other."""
    text = '{"a":' * (MAX_DEPTH - 1) + '{"n":%s}' + "}" * (MAX_DEPTH - 1)
    for number in ("1", DIGITS):
        data = (text % number).encode()
        assert Chunk.body(data).json is not None
        assert data == dump(load_exactly(data))


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b"", b"{", b"<html>"])
def test_load_exactly_refuses(data: bytes) -> None:
    """What holds no object is a ValueError."""
    with pytest.raises(ValueError):
        load_exactly(data)


def test_load_exactly_reads_what_is_no_utf_8() -> None:
    """Bytes that are no UTF-8 are U+FFFD, as every client reads them."""
    assert {"a": "\ufffd"} == load_exactly(b'{"a":"\xff"}')


# Keys and depth. A `Pairs` is an object that may say a key twice.


class Pairs(list[tuple[str, Any]]):
    pass


def pairs(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(st.tuples(st.sampled_from(["a", "b", ":", 'a":1,"b', "é"]), below), max_size=4).map(Pairs)


TREES = st.recursive(
    st.sampled_from([None, 1, -0.5, int("1" * 400), math.nan, "", ":", '{"a":1,"a":1}', "\\", '"', "::"]),
    lambda below: st.lists(below, max_size=3) | pairs(below),
    max_leaves=15,
)


def escaped(key: str) -> str:
    return '"' + "".join(f"\\u{ord(char):04x}" for char in key) + '"'


def written(value: Any, draw: Any) -> str:
    """JSON text, each string and key spelt in one of several ways."""
    if isinstance(value, Pairs):
        colon = draw(st.sampled_from([":", " : "]))
        return "{" + ",".join(f"{written(key, draw)}{colon}{written(below, draw)}" for key, below in value) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(below, draw) for below in value) + "]"
    if isinstance(value, str) and draw(st.booleans()):
        return escaped(value)
    return json.dumps(value, ensure_ascii=False)


def repeats(value: Any) -> bool:
    if isinstance(value, Pairs):
        keys = [key for key, _ in value]
        return len(set(keys)) < len(keys) or any(repeats(below) for _, below in value)
    return isinstance(value, list) and any(map(repeats, value))


@given(pairs(TREES), st.data())
def test_repeated_keys(value: Any, data: st.DataObject) -> None:
    """A key said twice in one object is found at any depth and in any spelling; colons in strings are no keys."""
    text = written(value, data.draw).encode()
    frame = Chunk.body(text).json
    assert repeats(value) == has_repeated_key(text, frame)


def test_repeated_keys_in_what_is_read_leniently() -> None:
    """Two keys that come to be one by U+FFFD are one."""
    text = b'{"\xff":1,"\xfe":2}'
    frame = Chunk.body(text).json
    assert has_repeated_key(text, frame)


def depth(value: object) -> int:
    below = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if below is None else 1 + max(map(depth, below), default=0)


@given(OBJECTS, st.integers(MAX_DEPTH - 8, MAX_DEPTH + 2), st.sampled_from(["[%s]", '{"a":%s}', '[{},{"b":[0]},%s]']))
def test_depth(value: Frame, levels: int, level: str) -> None:
    """More than MAX_DEPTH containers in one another are too many, however many stand side by side."""
    text = json.dumps(value)
    for _ in range(levels):
        text = level % text
    parsed = json.loads(text)
    assert (depth(parsed) > MAX_DEPTH) == nests_deeply(text.encode(), parsed)


# Frames of our own


def test_a_frame_of_our_own_says_what_the_others_say() -> None:
    """What all frames of a stream share is taken from one of them, and only that."""
    frame = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "system_fingerprint": None,
        "service_tier": "default",
        "choices": [],
        "usage": {"total_tokens": 1},
        "x": 1,
    }
    shared = {name: frame[name] for name in [*frame][:6]}
    assert shared == envelope(frame)
    assert {} == envelope({"choices": []})
    assert {
        **shared,
        "choices": [{"index": 2, "delta": {"content": "a"}, "finish_reason": None}],
    } == delta_frame(shared, 2, {"content": "a"})
    assert "content_filter" == delta_frame(shared, 0, {}, "content_filter")["choices"][0]["finish_reason"]
    assert {**shared, "choices": [], "usage": {"total_tokens": 2}} == usage_frame(shared, {"total_tokens": 2})


def test_errors() -> None:
    """An error has the four fields both SDKs read, as a body and as an event."""
    body = error_body("Unsupported model.", type="talk_api_error", code="invalid_model")
    expected = '{"error":{"message":"Unsupported model.","type":"talk_api_error","param":null,"code":"invalid_model"}}'
    assert expected.encode() == body
    assert b"data: " + body + b"\n\n" == error_event(body)
    assert "messages" == json.loads(error_body("", type="t", code=None, param="messages"))["error"]["param"]


def test_an_error_may_quote_anything() -> None:
    """A message with half a pair in it, such as a header may hold, is still an error body."""
    assert "a\udcff" == json.loads(error_body("a\udcff", type="t", code=None))["error"]["message"]


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        ({"prompt_tokens": 12, "completion_tokens": 0}, (12, 0)),
        ({"prompt_tokens": MOST_TOKENS, "completion_tokens": MOST_TOKENS + 1}, (MOST_TOKENS, None)),
        ({"prompt_tokens": 10**400, "completion_tokens": -1}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": "7"}, (None, None)),
        ({"prompt_tokens": 1.5}, (None, None)),
        ({}, (None, None)),
        (None, (None, None)),
    ],
)
def test_told_tokens(usage: Frame | None, told: tuple[int | None, int | None]) -> None:
    """What can be a number of tokens."""
    assert told == told_tokens(usage)
