"""A whole reply that is looked at as a whole: what is clean is what a guard releases as it came."""

from random import Random
from typing import Any

import pytest

from relay.pure.guard import MAX_CHOICES, Guard
from relay.pure.openai import Chunk, dump
from relay.pure.policy import Policy
from relay.pure.tally import Tally
from relay.pure.whole import clean
from relay.pure.window import MAX_NOTHING
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

LISTS = [
    Phrases([(word, Manner("word", "block")) for word in ("敏感词", "ass", "ab", "bad apple")], "lexicon"),
    Phrases([("词", Manner("word", "review")), ("x", Manner("word", "mask", whole_words=False))], "lexicon"),
]
TEXTS = (
    "",
    "你好。",
    "今天天气很好,我们去公园散步,然后在湖边吃午饭。" * 4,
    "Nothing to see here: 3 apples, 4 pears.\n" * 3,
    "敏感词",
    "这是敏 感 词。",
    "a-s-s",
    "the glass",
    "an ass",
    "@ss ab",
    "4b",
    "b-a-d apple",
    "词",
    "x",
    "敏感",
    "ASS",
    "🇦🇧",
    "😀",
    "\u200b" * MAX_NOTHING,
    "好" + "\u200b" * (MAX_NOTHING + 1),
    "\u0301" * 80 + "好",
    "\ud83d",
    "\ud83d\ude00",
)


def drawn(random: Random) -> str:
    return "".join(random.choice(TEXTS) for _ in range(random.choice((1, 1, 2, 3))))


def message(random: Random) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": "assistant", "content": random.choice((drawn(random), None))}
    kind = random.randrange(8)
    if kind == 0:
        fields["reasoning_content"] = drawn(random)
    elif kind == 1:
        fields["content"] = [{"type": "text", "text": drawn(random)} for _ in range(2)]
    elif kind == 2:
        fields["tool_calls"] = [
            {"id": "1", "function": {"name": "f", "arguments": dump({"q": drawn(random)}).decode()}}
        ]
    elif kind == 3:
        fields["mood"] = drawn(random)
    return fields


def body(random: Random) -> bytes:
    n = random.choice((1, 1, 1, 2, 3))
    indexes = list(range(n)) if random.randrange(6) else [0] * n
    finish = random.choice(("stop", "stop", None))
    reply: dict[str, Any] = {
        "id": "1",
        "object": "chat.completion",
        "choices": [{"index": index, "message": message(random), "finish_reason": finish} for index in indexes],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    if random.randrange(8) == 0:
        reply["banner"] = drawn(random)
    written = dump(reply)
    return written.replace(b'"id":', b'"id":"2","id":', 1) if random.randrange(8) == 0 else written


def test_what_is_clean_a_guard_releases() -> None:
    """As it came, and counts it as that."""
    taken = 0
    for seed in range(3000):
        random = Random(seed)
        phrases = random.choice((LISTS, LISTS[:1], LISTS[1:], []))
        guard = Guard(
            Policy(
                hold=random.random() < 0.8,
                on_violation=random.choice(("finish", "replace", "error")),
                notice="no",
                unknown_fields=random.choice(("check", "check", "drop", "pass")),
            ),
            lambda phrases=phrases: [PhraseScanner(each) for each in phrases],
            usage=random.random() < 0.5,
            choices=random.randint(1, 2),
            whole=True,
        )
        chunk = Chunk.body(body(random))
        said = clean(chunk, lambda text, phrases=phrases: any(each.whole(text) for each in phrases))
        if said is None:
            continue
        taken += 1
        guard.feed(chunk, 1.0)
        guard.end(1.0)
        assert [chunk] == guard.released, seed
        assert Tally(came=said, released=said, first_hold_s=0.0 if said else None) == guard.tally, seed
        assert (True, False, None, False) == (guard.finished, guard.over, guard.failure, guard.cut)
    assert 300 < taken < 2900


def says(*choices: dict[str, Any]) -> Chunk:
    return Chunk.body(dump({"model": "a:b", "choices": list(choices)}))


def counted(chunk: Chunk) -> int | None:
    return clean(chunk, lambda text: False)


def test_a_clean_reply() -> None:
    """How much it says, with colons in its strings too."""
    assert 7 == counted(says({"index": 0, "message": {"role": "assistant", "content": "Hi: you"}, "finish_reason": ""}))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"choices":[{"message":{"content":"a","content":"b"}}]}',
        b'{"choices":[{"message":{"content":":","c\\u006fntent":"b"}}]}',
        b'{"choices":[{"message":{"content":"\\u003a","content":"b"}}]}',
        b'{"choices":[{"message":{"content":"a"}}],"banner":"b"}',
        b'{"choices":[{"message":{"content":"a","mood":"b"}}]}',
        b'{"choices":[{"message":{"content":"a"}}],"choices":[{"message":{"content":"b"}}]}',
        b'{"usage":{"a":1,"a":2},"choices":[{"message":{"content":"a"}}]}',
        b'{"usage":null,"usage":{"a":1},"choices":[{"message":{"content":"a:"}}]}',
        b'{"choices":[{"index":9007199254740993,"message":{"content":"a"}}]}',
        b'{"choices":[{"message":{"role":["b"],"content":"a"}}]}',
        b'{"choices":[{"message":{"refusal":"b","refusal":null,"content":"a"}}]}',
        b'{"choices":[{"index":true,"message":{"content":"a"}}]}',
        b'{"choices":[{"index":0,"message":{"content":"a"}},{"index":0,"message":{"content":"b"}}]}',
        b'{"choices":[{"message":{"content":"a\xff"}}]}',
        b'{"choices":[{"message":{"content":"\\ud83d"}}]}',
    ],
)
def test_what_a_guard_has_to_look_at(body: bytes) -> None:
    """What cannot be read, what readers could read differently, and what no table knows."""
    assert counted(Chunk.body(body)) is None


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"usage": {"prompt_tokens": 1}},
        {"usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 0}}},
        {"model": "a:b"},
        {"x_groq": {"id": "a"}},
    ],
)
@pytest.mark.parametrize("content", ["Hi", "Hi: you", 'a\n"b"', ""])
@pytest.mark.parametrize("more", [{}, {"refusal": None}, {"tool_calls": []}])
def test_what_common_servers_send(content: str, extra: dict[str, Any], more: dict[str, Any]) -> None:
    """Colons in strings, metadata in objects, fields that say nothing."""
    message = {"role": "assistant", "content": content, **more}
    for choice in ({"message": message}, {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}):
        assert len(content) == counted(Chunk.body(dump({"id": "1", "choices": [choice], **extra})))


def test_so_has_an_event_with_more_than_its_data() -> None:
    data = dump({"choices": []})
    assert 0 == counted(Chunk(data, data))
    assert counted(Chunk(b": bad\n" + data, data, plain=False)) is None


@pytest.mark.parametrize(("count", "fits"), [(MAX_CHOICES, True), (MAX_CHOICES + 1, False)])
def test_it_has_no_more_choices_than_any(count: int, fits: bool) -> None:
    assert fits == (
        counted(says(*({"index": index, "message": {"content": "Hi"}} for index in range(count)))) == 2 * count
    )


@pytest.mark.parametrize(("count", "fits"), [(255, True), (256, True), (257, False)])
def test_and_no_more_surfaces(count: int, fits: bool) -> None:
    logprobs = {f"field{number}": ["Hi"] for number in range(count)}
    assert fits == (counted(says({"index": 0, "message": {}, "logprobs": logprobs})) == 2 * count)
