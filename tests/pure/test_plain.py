"""The short cut reads what the long way reads, and nothing that a client could read differently."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.openai import Chunk, has_repeated_key
from relay.pure.plain import plain_text
from relay.pure.surfaces import CHOICE_METADATA, FRAME_METADATA, Kind, read
from relay.testing import frames

scalars = st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from(["", "bad", "x", 'c"', "é", "坏"]))
values = st.one_of(scalars, st.lists(scalars, max_size=1), st.dictionaries(st.sampled_from("ab"), scalars, max_size=1))


def objects(names: list[str], **known: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """JSON objects as text, with keys that may repeat, in any order."""
    written = values.map(lambda value: json.dumps(value, ensure_ascii=False))
    member = st.one_of(
        *(st.tuples(st.just(name), text) for name, text in known.items()), st.tuples(st.sampled_from(names), written)
    )
    return st.lists(member, min_size=1, max_size=4).map(
        lambda members: "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in members) + "}"
    )


parts = st.sampled_from(
    [
        '[{"type":"text","text":"bad"}]',
        '[{"text":"bad","type":"text"}]',
        '[{"type":"text","text":"bad","text":"x"}]',
        '[{"type":"text","text":"bad","type":"text"}]',
        '[{"type":"text","text":"text"}]',
        '[{"type":"text","text":"a"},{"type":"text","text":"b"}]',
        '[{"type":"image","text":"bad"}]',
        '[{"type":"text","text":"bad","index":1}]',
        '[{"type":"text","text":""}]',
        "[]",
    ]
)
texts = st.one_of(st.sampled_from(['"你好"', '"bad"', '"a\\u0062"', '""', "null", '["bad"]', '"a:b"']), parts)
deltas = objects(["role", "reasoning_content", "refusal", "tool_calls", "extra"], content=texts)
choices = objects(
    ["finish_reason", "logprobs", "text", "message", *sorted(CHOICE_METADATA)[:3]],
    delta=deltas,
    index=st.sampled_from(["0", "1", "-1", "0.0", "true", "128", "99999999999999999999"]),
)
bodies = objects(
    ["usage", "text", *sorted(FRAME_METADATA)[:4]],
    choices=st.lists(choices, max_size=2).map(lambda c: f"[{','.join(c)}]"),
)


@given(bodies)
def test_what_the_short_cut_reads_the_long_way_reads_too(body: str) -> None:
    """A frame that is read in one step says that text and nothing else, and repeats no key on the way to it."""
    data = body.encode()
    found = plain_text(data)
    if found is not None:
        index, text = found
        frame = Chunk(b"", data).json
        assert frame is not None
        reading = read(frame)
        [choice] = reading.choices
        assert (index, [("content", Kind.PLAIN, text)]) == (choice.index, choice.texts)
        assert not choice.finished
        assert not reading.loose
        for key in ("choices", "delta", "content", "index"):
            assert data.count(f'"{key}"'.encode()) == 1


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"obfuscation": "KJH2"},
        {"usage": None, "service_tier": "default"},
        {"provider": "Groq", "x_groq": None},
    ],
)
def test_the_frames_of_common_servers_are_read_in_one_step(extra: dict[str, object]) -> None:
    """More content with known metadata beside it is what the short cut is for."""
    frame = frames.chunk([{"delta": {"content": "你好"}, "index": 2, "finish_reason": None}], extra=extra)
    assert (2, "你好") == plain_text(frame.removeprefix(b"data: ").strip())


def test_an_array_of_one_text_is_read_in_one_step() -> None:
    """As Mistral's models send it."""
    content = [{"type": "text", "text": "你好"}]
    frame = frames.chunk([{"delta": {"content": content}, "index": 0, "finish_reason": None}], extra={"p": "abc"})
    assert (0, "你好") == plain_text(frame.removeprefix(b"data: ").strip())


@pytest.mark.parametrize(
    "data",
    [
        b'{"choices":[{"delta":{"content":"a","content":"b"},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a","c\\u006fntent":"b"},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":0,"index":1}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":0}],"choices":[]}',
        b'{"choices":[{"delta":{"content":"a"},"delta":{},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a","reasoning_content":"b"},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":0,"text":"b"}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":0,"finish_reason":"stop"}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":0}],"extra":"b"}',
        b'{"choices":[{"delta":{"content":"a"},"index":0},{"delta":{},"index":1}]}',
        b'{"choices":[{"delta":{"content":""},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a"},"index":128}]}',
        b'{"choices":[{"delta":{"content":"a\xff"},"index":0}]}',
        b'{"choices":[{"delta":{"content":"a"}}]}',
        b"[DONE]",
        b"",
    ],
)
def test_every_other_frame_is_left_to_the_long_way(data: bytes) -> None:
    """Repeated or escaped keys, other texts, a finish, several choices, odd indexes, bad bytes: not in one step."""
    assert plain_text(data) is None


def test_keys_repeated_beside_the_way_say_nothing() -> None:
    """Metadata that stands twice is the only repetition that the short cut lets pass."""
    data = b'{"model":"a","model":"b","choices":[{"delta":{"content":"a"},"index":0}]}'
    assert (0, "a") == plain_text(data)
    assert has_repeated_key(data, Chunk(b"", data).json)
