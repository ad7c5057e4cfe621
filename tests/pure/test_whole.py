"""A whole reply that is looked at as a whole: with this short way and without it a guard does the same."""

from random import Random
from typing import Any

import pytest

from relay.pure.guard import MAX_CHOICES, Guard
from relay.pure.openai import Chunk, dump
from relay.pure.policy import Policy
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


def told(random: Random, *, short: bool) -> tuple[list[Any], bool]:
    """What a guard does with a whole reply, and whether it has made runs of it."""
    phrases = random.choice((LISTS, LISTS[:1], LISTS[1:], []))
    guard = Guard(
        Policy(
            hold=random.random() < 0.8,
            on_violation=random.choice(("finish", "replace", "error")),
            notice="no",
            unknown_fields=random.choice(("check", "check", "drop", "pass")),
        ),
        lambda: [PhraseScanner(each) for each in phrases],
        (lambda text: any(each.hits(text, "", "") for each in phrases)) if short else None,
        usage=random.random() < 0.5,
        choices=random.randint(1, 2),
        whole=True,
    )
    guard.feed(Chunk.body(body(random)), 1.0)
    guard.end(1.0)
    state = (
        guard.over,
        guard.failure,
        guard.cut,
        guard.finished,
        guard.deadline(),
        guard.tally,
        guard.tally.unverified(),
    )
    return [[chunk.raw for chunk in guard.released], *state], bool(guard._choices)


def test_with_the_short_way_and_without_it() -> None:
    """What leaves, and what is counted."""
    taken = 0
    for seed in range(3000):
        with_it, runs = told(Random(seed), short=True)
        without, _ = told(Random(seed), short=False)
        assert without == with_it, seed
        taken += not runs
    assert 300 < taken < 2900


def clean(*choices: dict[str, Any]) -> Guard:
    """A guard that has been fed a reply in which nothing is found."""
    guard = Guard(Policy(), tuple, lambda text: False, whole=True)
    guard.feed(Chunk.body(dump({"choices": list(choices)})), 0.0)
    return guard


def test_nothing_is_made_of_a_clean_reply() -> None:
    guard = clean({"index": 0, "message": {"role": "assistant", "content": "Hi: you"}, "finish_reason": "stop"})
    assert not guard._choices
    assert 1 == len(guard.released)
    assert (7, 7, 0.0) == (guard.tally.came, guard.tally.released, guard.tally.first_hold_s)


def test_what_follows_a_clean_reply_is_not_read() -> None:
    """It is one frame: a second could go on with what the first has begun."""
    said = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": None}
    guard = clean(said)
    guard.feed(Chunk.body(dump({"choices": [said]})), 0.0)
    assert 1 == len(guard.released)


@pytest.mark.parametrize(("count", "fails"), [(MAX_CHOICES, None), (MAX_CHOICES + 1, "upstream_malformed")])
def test_it_has_no_more_choices_than_any(count: int, fails: str | None) -> None:
    assert fails == clean(*({"index": index, "message": {"content": "Hi"}} for index in range(count))).failure


@pytest.mark.parametrize(("count", "fails"), [(255, None), (256, None), (257, "upstream_malformed")])
def test_and_no_more_surfaces(count: int, fails: str | None) -> None:
    logprobs = {f"field{number}": ["Hi"] for number in range(count)}
    assert fails == clean({"index": 0, "message": {}, "logprobs": logprobs}).failure
