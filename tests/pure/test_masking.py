"""What is masked: exactly the forbidden words, in the frames that say them, however the upstream cuts the text.

A reply is drawn, all of whose choices go on to their ends: forbidden words are to be masked. What has to come out is
worked out from the whole texts, frame by frame: each forbidden character a star, everything else as it came, and a frame
without a star in it byte for byte. The moderators are the lexicon, or a model of a remote one, which tells where the
words stand that it sees whole; sometimes it tells wrong places and the words, sometimes the words alone.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling, Span
from relay.pure.sse import Decoder
from relay.pure.window import Cutting, Window
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

WORDS: Final = ("敏感词", "赤", "forbidden", "bad apple", "aab", "😀笑")
_ALPHABETS: Final = ("天地玄黄赤敏感", "abf AB,", "。！？\n…", "😀笑é가ﷺ", "a\u200bb\u0301国\ufe0f", '"\\/{}:u*')

Frame = dict[str, Any]


# ---- What is said, and what of it has to come out ----


def drawn_variant(random: Random, word: str) -> str:
    """A word as somebody writes it who does not want it found."""
    pad = random.choice(("", "", "\u200b", "\u0301", "\u200b\ufe0f"))
    written = ""
    for char in word:
        ways = [char, char, char.upper(), char.translate(str.maketrans("词", "詞"))]
        if "!" <= char <= "~":
            ways.append(chr(ord(char) + 0xFEE0))  # fullwidth
        if "a" <= char <= "z":
            ways.append(chr(ord(char) - 97 + 0x1D41A))  # 𝐚
        written += (pad if written else "") + random.choice(ways)
    return written


def drawn_text(random: Random) -> str:
    parts = []
    for _ in range(random.choice((1, 2, 3, 5, 8))):
        word = random.choice(WORDS)
        match random.randrange(8):
            case 0 | 1:
                parts.append(drawn_variant(random, word))
            case 2:
                parts.append(word[: random.randrange(len(word))])
            case _:
                alphabet = random.choice(_ALPHABETS)
                parts.append("".join(random.choice(alphabet) for _ in range(random.choice((1, 2, 5)))))
    if random.randrange(20) == 0:
        parts.insert(0, "长" * random.choice((40, 450)))
    # No word goes on from one run to the next.
    return "|" + "".join(parts) + "|"


Places = Sequence[tuple[int, int]]


def starred(text: str, places: Places) -> str:
    """The text with a star for all that belongs to the places, in characters of its copy; worked out the slow way."""
    owners = [index for index, char in enumerate(text) for _ in fold(char)]
    stars = set()
    for start, end in places:
        stars.update(range(owners[start], owners[end - 1] + 1))
    return "".join("*" if index in stars else char for index, char in enumerate(text))


def places_of(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    copy = fold(text)
    return [(at, at + len(word)) for word in words for at in range(len(copy)) if copy.startswith(word, at)]


def pieces(random: Random, text: str) -> list[tuple[int, int]]:
    """Cuts of a text, none of them empty."""
    if random.randrange(4) == 0 and len(text) < 40:
        return list(pairwise(range(len(text) + 1)))
    cuts = {random.randrange(1, len(text)) for _ in range(random.choice((0, 1, 3, 6)))}
    return list(pairwise(sorted({0, *cuts, len(text)})))


def said_by(kind: str, piece: str, at: int) -> Frame:
    """The fields of a choice that say a piece of text. `at`: where an array has its border."""
    at %= len(piece) + 1
    match kind:
        case "parts":
            return {"delta": {"content": [{"type": "text", "text": piece[:at]}, piece[at:]]}}
        case "doubled":
            return {"delta": {"content": piece}, "message": {"role": "assistant", "content": piece}}
        case "logprobs":
            tokens = [{"token": piece, "logprob": -0.5, "bytes": None, "top_logprobs": []}]
            return {"delta": {"content": piece}, "logprobs": {"content": tokens}}
        case "text":
            return {"text": piece}
        case _:
            return {"delta": {kind: piece}}


@dataclass
class Said:
    """One choice's part of a frame, as it came and as it has to leave."""

    came: Frame
    leaves: Frame
    chars: int = 0
    hidden: int = 0


def drawn_choice(random: Random, find: Callable[[str], Places]) -> Iterator[Said]:
    if random.randrange(2):
        yield Said(fields := {"delta": {"role": "assistant", "content": ""}}, fields)
    finish = random.choice(("own", "last", "none"))
    said: list[Said] = []
    kinds = "content content parts doubled logprobs reasoning_content reasoning refusal text".split()
    for kind in random.choices(kinds, k=random.choice((1, 1, 2, 3))):
        text = drawn_text(random)
        left = starred(text, find(text))
        for start, end in pieces(random, text):
            before, after = text[start:end], left[start:end]
            at = random.randrange(8)
            came, leaves = said_by(kind, before, at), said_by(kind, after, at)
            if before != after:
                leaves.pop("logprobs", None)
            places = 2 if kind in ("doubled", "logprobs") else 1
            hidden = sum(old != new for old, new in zip(before, after, strict=True))
            said.append(Said(came, leaves, places * len(before), places * hidden))
    if finish == "last":
        said[-1].came["finish_reason"] = said[-1].leaves["finish_reason"] = "stop"
    yield from said
    if finish == "own":
        yield Said(fields := {"delta": {}, "finish_reason": "stop"}, fields)


@dataclass
class Upstream:
    """The frames of one reply."""

    n: int
    came: list[Frame] = field(default_factory=list)
    leaves: list[Frame] = field(default_factory=list)
    chars: int = 0
    hidden: int = 0


HEAD: Final = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def drawn_upstream(random: Random, find: Callable[[str], Places]) -> Upstream:
    upstream = Upstream(random.choice((1, 1, 2)))
    waiting = {index: drawn_choice(random, find) for index in range(upstream.n)}
    while waiting:
        came, leaves = [], []
        for index in random.sample([*waiting], random.choice((1, 1, len(waiting)))):
            said = next(waiting[index], None)
            if said is None:
                del waiting[index]
                continue
            entry = {"index": index, "finish_reason": None}
            came.append(entry | said.came)
            leaves.append(entry | said.leaves)
            upstream.chars += said.chars
            upstream.hidden += said.hidden
        upstream.came.append({**HEAD, "choices": came})
        upstream.leaves.append({**HEAD, "choices": leaves})
    return upstream


# ---- Who is asked ----


def told(random: Random, shown: str, words: Sequence[str]) -> tuple[Span, ...]:
    """What a service that masks says of a text: where words stand in it, or only which, or both and the place is wrong."""
    owners = [index for index, char in enumerate(shown) for _ in fold(char)]
    manner = random.choice(("places", "both", "wrong", "word", "listed", "mixed"))
    spans = []
    for start, end in places_of(shown, words):
        first, last = owners[start], owners[end - 1] + 1
        as_written, listed = shown[first:last], fold(shown)[start:end]
        match random.choice(("places", "both", "wrong", "word", "listed")) if manner == "mixed" else manner:
            case "places":
                spans.append(Span(first, last))
            case "both":
                spans.append(Span(first, last, random.choice((as_written, listed))))
            case "wrong":
                shift = random.choice((-50, -1, 1, 2, 50))
                right = fold(shown[max(0, first + shift) : last + shift]) == listed  # there it stands too
                spans.append(Span(0, 0, as_written) if right else Span(first + shift, last + shift, as_written))
            case "word":
                spans.append(Span(0, 0, as_written))
            case "listed":
                spans.append(Span(0, 0, listed))
    return tuple(spans)


@dataclass
class Setting:
    policy: Policy
    guard: Guard
    words: Sequence[str]  # that the remote moderator knows
    find: Callable[[str], Places]


def drawn_setting(random: Random, kind: str, *, whole: bool = False) -> Setting:
    cutting = Cutting(
        holdback_chars=random.choice((9, 9, 12, 16)),
        first_chars=random.choice((1, 2, 8, 32)),
        sentence_chars=random.choice((1, 3, 64)),
        max_chars=random.choice((1, 2, 7, 30, 400)),
        max_wait_s=random.choice((0.05, 0.3, 1.2)),
        context_chars=random.choice((0, 0, 1, 20, 300)),
    )
    policy = Policy(cutting=cutting, depth=random.choice((1, 2, 4)))
    words = random.sample(WORDS, random.choice((1, 3, len(WORDS))))
    own = [word for word in words if kind == "remote" or (kind == "both" and random.randrange(2))]
    phrases = Phrases([(word, Manner("label", "mask", False)) for word in words if word not in own], "lexicon")

    def scanners() -> Sequence[PhraseScanner]:
        return [PhraseScanner(phrases)] if kind != "remote" else ()

    def find(text: str) -> Places:
        """What has to be masked in a text that is seen whole."""
        scanner = PhraseScanner(phrases)
        hits = [*scanner.feed(fold(text)), *scanner.finish()] if kind != "remote" else []
        return [*places_of(text, own), *((hit.start, hit.end) for hit in hits)]

    remote = kind != "lexicon"
    guard = Guard(policy, scanners, remote=remote, choices=9, whole=whole)  # choices: nothing is over too soon
    return Setting(policy, guard, own, find)


def relay(random: Random, setting: Setting, chunks: Sequence[Chunk]) -> list[Chunk]:
    """What the guard releases, with verdicts that come in any order."""
    guard = setting.guard
    out: list[Chunk] = []
    asked: list[Window] = []
    now = 0.0

    def look() -> None:
        out.extend(guard.released)
        asked.extend(guard.checks)
        guard.released, guard.checks = [], []
        for window in asked:
            if not window.shown and random.random() < prompt:
                guard.show(window, now)

    def answer() -> None:
        window = asked.pop(random.randrange(len(asked)))
        shown = window.passage.shown if window.shown and random.randrange(4) else guard.show(window, now)
        spans = told(random, shown, setting.words)
        ruling = Ruling("mask", "label", 90, "model", "call-1", spans) if spans else Ruling("pass")
        guard.judged(window, ruling, now)
        look()

    prompt = random.choice((0.0, 0.3, 1.0))
    eager, patient = random.choice((0.0, 0.2, 0.5, 1.0)), random.choice((0.0, 0.1, 0.6))
    for chunk in chunks:
        guard.feed(chunk, now)
        look()
        while asked and random.random() < eager:
            answer()
        now += patient
        if (due := guard.deadline()) is not None and due <= now:
            guard.tick(now)
            look()
    guard.end(now)
    look()
    while asked:
        answer()
    assert guard.finished
    return out


def drawn_bytes(random: Random, frame: Frame) -> bytes:
    data = json.dumps(frame, ensure_ascii=random.random() < 0.5, separators=random.choice(((",", ":"), None)))
    return b"data: " + data.encode() + b"\n\n"


def check(random: Random, kind: str) -> int:
    """The property for one reply. Returns how many characters were masked."""
    setting = drawn_setting(random, kind)
    guard = setting.guard
    upstream = drawn_upstream(random, setting.find)
    events = [drawn_bytes(random, frame) for frame in upstream.came]
    out = relay(random, setting, Decoder(Chunk).feed(b"".join(events)))
    assert guard.failure is None
    assert not guard.cut
    assert len(out) == len(events)
    for event, came, leaves, chunk in zip(events, upstream.came, upstream.leaves, out, strict=True):
        assert json.loads(chunk.data) == leaves
        if came == leaves:
            assert chunk.raw == event
    tally = guard.tally
    assert (tally.came, tally.blocked, tally.released) == (
        upstream.chars,
        upstream.hidden,
        upstream.chars - upstream.hidden,
    )
    assert bool(tally.violations) == bool(upstream.hidden)
    return upstream.hidden


def check_whole(random: Random, kind: str) -> int:
    """The same for a reply that is not streamed."""
    setting = drawn_setting(random, kind, whole=True)
    came: list[Frame] = []
    hidden = 0
    for index in range(random.choice((1, 2))):
        message: Frame = {"role": "assistant"}
        for surface in random.sample(("content", "reasoning_content", "refusal"), random.choice((1, 2))):
            message[surface] = drawn_text(random)
        choice: Frame = {"index": index, "message": message, "finish_reason": "stop"}
        if random.randrange(3) == 0 and "content" in message:
            tokens = [{"token": message["content"][start:end]} for start, end in pieces(random, message["content"])]
            choice["logprobs"] = {"content": tokens}
        came.append(choice)
    leaves = deepcopy(came)
    for choice in leaves:
        for surface, text in choice["message"].items():
            left = starred(text, setting.find(text))
            choice["message"][surface] = left
            changes = sum(old != new for old, new in zip(text, left, strict=True))
            hidden += changes * (2 if surface == "content" and "logprobs" in choice else 1)
        if choice["message"] != came[choice["index"]]["message"]:
            choice.pop("logprobs", None)
    body = json.dumps({**HEAD, "choices": came}, ensure_ascii=False).encode()
    [out] = relay(random, setting, [Chunk.body(body)])
    assert json.loads(out.data)["choices"] == leaves
    if came == leaves:
        assert out.raw == body
    assert setting.guard.tally.blocked == hidden
    return hidden


KINDS: Final = ("lexicon", "remote", "both")
SEEDS: Final = 700


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random=st.randoms(use_true_random=False))
def test_exactly_the_forbidden_words_are_masked(kind: str, random: Random) -> None:
    check(random, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_in_the_replies_of_any_seed(kind: str) -> None:
    """The same ones every time; in many of them something is masked."""
    assert sum(check(Random(seed), kind) > 0 for seed in range(SEEDS)) > SEEDS / 4


@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_in_whole_replies(kind: str) -> None:
    assert sum(check_whole(Random(seed), kind) > 0 for seed in range(SEEDS)) > SEEDS / 4


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_so_they_are_in_the_long_run(kind: str) -> None:
    failed = []
    for seed in range(SEEDS, 40 * SEEDS):
        try:
            check(Random(seed), kind)
            check_whole(Random(seed), kind)
        except AssertionError:
            failed.append(seed)
    assert [] == failed


# ---- Rule by rule ----

BAD: Final = "敏感词"
PATIENT: Final = Cutting(holdback_chars=9, first_chars=999, sentence_chars=999, max_chars=999, max_wait_s=10.0)


def masking(*came: Frame, whole: bool = False, **options: Any) -> tuple[Guard, list[Frame]]:
    """A guard whose moderator masks a word wherever it is seen, and what it lets out of these frames."""
    guard = Guard(Policy(cutting=PATIENT, **options), remote=True, choices=9, whole=whole)
    out: list[Frame] = []

    def look() -> None:
        while guard.checks:
            window = guard.checks.pop(0)
            found = BAD in fold(guard.show(window, 0.0))
            ruling = Ruling("mask", "label", 90, "model", masks=(Span(0, 0, BAD),)) if found else Ruling("pass")
            guard.judged(window, ruling, 0.0)
        out.extend(json.loads(chunk.data) for chunk in guard.released)
        guard.released = []

    for frame in came:
        guard.feed(Chunk.body(json.dumps(frame).encode()) if whole else Chunk.event(frame), 0.0)
        look()
    guard.end(0.0)
    look()
    assert guard.finished
    return guard, out


def event(*choices: Frame) -> Frame:
    return {**HEAD, "choices": [{"index": 0, "finish_reason": None, **choice} for choice in choices]}


@pytest.mark.parametrize(
    "fields",
    [
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": BAD}}]}},
        {"delta": {"tool_calls": [{"index": 0, "function": {"name": BAD}}]}},
        {"delta": {"function_call": {"name": "f", "arguments": BAD}}},
        {"delta": {"vendor": {"note": BAD}}},
        {"hint": BAD},
        {"delta": {"content": [{"type": "text", "text": BAD, "index": 0}]}},
        {"delta": {"content": [{"type": "thinking", "thinking": [BAD]}]}},
        {"delta": {"audio": {"transcript": BAD}}},
    ],
)
def test_what_cannot_be_masked_is_blocked(fields: Frame) -> None:
    """A call with stars in it calls something else; and nobody knows what an unknown field is for."""
    guard, out = masking(event(fields))
    assert guard.cut
    assert [choice["finish_reason"] for frame in out for choice in frame["choices"]][-1] == "content_filter"
    assert BAD not in json.dumps(out, ensure_ascii=False)


def test_a_string_outside_the_choices_is_blocked() -> None:
    guard, out = masking(event({"delta": {"content": "Hi"}}), {**event(), "banner": BAD})
    assert guard.cut
    assert BAD not in json.dumps(out, ensure_ascii=False)


def test_halves_of_a_pair_are_blocked() -> None:
    """Where they stand is not counted."""
    guard, out = masking(event({"delta": {"content": "\ud83d"}}), event({"delta": {"content": f"\ude00 {BAD}"}}))
    assert guard.cut
    assert BAD not in json.dumps(out, ensure_ascii=False)


def test_what_else_stands_in_an_array_stays() -> None:
    """Its parts are masked where they stand."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]},
        {"type": "text", "text": "x" + BAD[:2]},
        BAD[2:] + "y",
        {"type": "text", "text": "z"},
    ]
    guard, out = masking(event({"delta": {"content": parts}}))
    masked = [parts[0], {"type": "text", "text": "x**"}, "*y", parts[3]]
    assert out == [event({"delta": {"content": masked}})]
    assert guard.tally.blocked == 3
    assert guard.tally.released == 6


def test_a_choice_that_stands_twice_in_a_frame() -> None:
    """Its text goes on in its second entry; one that stands there more often is masked whole."""
    said = {"delta": {"content": "x" + BAD[:1]}}, {"delta": {"content": BAD[1:] + "y"}}
    assert masking(event(*said))[1] == [event({"delta": {"content": "x*"}}, {"delta": {"content": "**y"}})]
    between = {"delta": {"reasoning_content": "hm"}}
    _, out = masking(event({"delta": {"content": "abc"}}, between, {"delta": {"content": BAD}}))
    assert out == [event({"delta": {"content": "***"}}, between, {"delta": {"content": "***"}})]


def test_logprobs_would_say_it_again() -> None:
    """They go from the frames that are masked, those of a token without text too, and stay in others."""

    def said(content: str, *tokens: str) -> Frame:
        return {"delta": {"content": content}, "logprobs": {"content": [{"token": token} for token in tokens]}}

    clean = said("Hello. ", "Hello", ". ")
    _, out = masking(event(clean), event(said("", BAD[:1])), event(said(BAD, BAD[1:])), event(clean))
    assert out == [
        event(clean),
        event({"delta": {"content": ""}}),
        event({"delta": {"content": "***"}}),
        event(clean),
    ]


def test_a_mask_beside_a_violation() -> None:
    """Of a whole reply that is cut, what is left is masked too."""
    policy = Policy(cutting=PATIENT)
    guard = Guard(policy, remote=True, whole=True)
    message = {"role": "assistant", "content": f"{BAD} and ", "refusal": "x"}
    guard.feed(Chunk.body(json.dumps({**HEAD, "choices": [{"index": 0, "message": message}]}).encode()), 0.0)
    guard.end(0.0)
    while guard.checks:
        window = guard.checks.pop(0)
        found = BAD in guard.show(window, 0.0)
        mask = Ruling("mask", "label", 90, "model", masks=(Span(0, 3, BAD),))
        guard.judged(window, mask if found else Ruling("block", "label", 90, "model"), 0.0)
    [chunk] = guard.released
    assert json.loads(chunk.data)["choices"][0]["message"]["content"] == "*** and "
    assert guard.tally.released == len(" and ")


def test_a_word_is_told_once() -> None:
    """Though two windows show it, the second as what stands before its own text."""
    guard = Guard(Policy(cutting=Cutting(holdback_chars=9, first_chars=1, max_chars=5)), remote=True)
    for piece in (f"It is this: {BAD}", " and it goes on"):
        guard.feed(Chunk.event(event({"delta": {"content": piece}})), 0.0)
        while guard.checks:
            window = guard.checks.pop()
            found = BAD in guard.show(window, 0.0)
            mask = Ruling("mask", "label", 90, "model", masks=(Span(0, 0, BAD),))
            guard.judged(window, mask if found else Ruling("pass"), 0.0)
    assert [violation.position for violation in guard.tally.violations] == [12]


def test_a_choice_keeps_its_number_when_one_before_it_is_dropped() -> None:
    """Of choices without an index a client counts for itself."""
    phrases = Phrases(
        [("forbidden", Manner("label", "block", False)), (BAD, Manner("label", "mask", False))], "lexicon"
    )
    guard = Guard(Policy(), lambda: [PhraseScanner(phrases)], choices=2)
    said = [{"delta": {"content": "forbidden"}}, {"delta": {"content": f"this: {BAD}"}}]
    guard.feed(Chunk.event({**HEAD, "choices": said}), 0.0)
    guard.end(0.0)
    texts = [
        (choice["index"], choice["delta"]["content"])
        for chunk in guard.released
        for choice in json.loads(chunk.data)["choices"]
        if choice["delta"].get("content")
    ]
    assert texts == [(1, "this: ***")]
