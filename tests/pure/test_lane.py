"""The lane is only a short way: with it and without it a guard does the same, step by step."""

from random import Random
from typing import Any

import pytest

from relay.pure.guard import Guard
from relay.pure.held import Lane
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling, Span
from relay.pure.sse import Decoder
from relay.pure.window import Cutting
from relay.testing import frames
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

PHRASES = Phrases([(word, Manner("word", "block")) for word in ("敏感词", "ass", "ab")], "lexicon")
MILD = Phrases([("词", Manner("word", "review")), ("x", Manner("word", "mask"))], "lexicon")

RULINGS = {
    "pass": Ruling("pass"),
    "block": Ruling("block", "label", 90, "model"),
    "mask": Ruling("mask", "label", 60, "model", masks=(Span(0, 1),)),
}

SEEDS = 300


class Plodding(Guard):
    """A guard that takes every frame the long way."""

    def _open_lane(self, index: int) -> Lane | None:
        return None


TEXTS = ["敏", "感", "词", "。", "词！", "好", "你敏", "感好", "好的", " a", "s ", "x", "a", "\u0301", "敏\u200b"]
ESCAPED = frames.text("敏").replace("敏".encode(), b"\\u654f")
ODD = [
    frames.text("x", id="x" * 300),
    frames.text("\u200b" * 40),
    frames.text("x").replace(b'"x"', b'"\\ud83d"'),
    ESCAPED,
    ESCAPED,
    frames.chunk([{"delta": {"content": "敏"}, "index": 0}, {"delta": {"role": "assistant"}, "index": 1}]),
    frames.chunk([{"delta": {"content": "敏", "reasoning_content": ""}, "index": 0}]),
    frames.chunk([{"delta": {"content": "敏"}, "index": 0}, {"delta": {"content": "感"}, "index": 0}]),
    frames.text("敏", index=1),
    frames.role(),
    frames.role(index=1),
    frames.delta({"reasoning_content": "敏"}),
    frames.finish(),
    frames.usage(),
    frames.chunk([]),
]
Step = tuple[str, Any]


def script(random: Random) -> list[Step]:
    """Mostly talk of one choice; sometimes something else, or a verdict."""
    steps: list[Step] = []
    for _ in range(random.randint(1, 8)):
        steps += [("feed", frames.text(random.choice(TEXTS))) for _ in range(random.randint(0, 8))]
        what = random.choice(["feed", "pass", "pass", "pass", "block", "mask", "fail", "tick"])
        steps.append((what, random.choice(ODD) if what == "feed" else random.randint(0, 3)))
    return steps


def policy(random: Random) -> Policy:
    return Policy(
        cutting=Cutting(
            holdback_chars=random.randint(1, 4),
            first_chars=random.randint(1, 6),
            sentence_chars=random.choice([2, 5, 64]),
            max_chars=random.randint(2, 9),
            max_wait_s=random.choice([0.5, 9.0]),
        ),
        depth=random.randint(1, 3),
        held_bytes=random.choice([200, 600, 262_144]),
        on_violation=random.choice(["finish", "replace", "error"]),
        hold=random.random() < 0.8,
    )


def looks(guard: Guard) -> tuple[Any, ...]:
    """Everything that a caller can see, and takes."""
    released, guard.released = [chunk.raw for chunk in guard.released], []
    checks = [(window.start, window.end, window.passage.copy, window.run.surface) for window in guard.checks]
    state = guard.in_flight, guard.over, guard.finished, guard.failure, guard.cut, guard.wants_pause, guard.deadline()
    return released, checks, state


def run(make: type[Guard], seed: int, *, remote: bool) -> list[Any]:
    """What a guard shows after each step, and at the end the sums."""
    random = Random(seed)
    lists = random.choice([[PHRASES], [PHRASES, MILD], [MILD], []])
    guard = make(
        policy(random),
        lambda: [PhraseScanner(phrases) for phrases in lists],
        remote=remote,
        usage=random.random() < 0.5,
        choices=random.randint(1, 2),
    )
    windows: list[Any] = []
    shown: list[Any] = []
    decoder = Decoder(Chunk)
    for now, (what, which) in enumerate(script(random)):
        if what == "feed":
            for chunk in decoder.feed(which):
                guard.feed(chunk, now * 0.25)
        elif what == "tick":
            guard.tick(now * 0.25)
        elif windows:
            window = windows.pop(which % len(windows))
            if what in RULINGS:
                guard.judged(window, RULINGS[what], now * 0.25)
            else:
                guard.failed(window, now * 0.25)
        shown.append(looks(guard))
        windows += guard.checks
        if random.random() < 0.7:
            for window in windows:
                guard.show(window, now * 0.25)
        guard.checks = []
    guard.end(99.0)
    while not guard.finished:
        shown.append(looks(guard))
        windows += guard.checks
        guard.checks = []
        guard.judged(windows.pop(0), Ruling("pass"), 99.0)
    shown.append(looks(guard))
    tally = guard.tally
    return [*shown, tally]


@pytest.mark.parametrize("remote", [False, True])
def test_with_the_lane_and_without_it(remote: bool) -> None:
    """What leaves and when, what is asked, what is counted."""
    for seed in range(SEEDS):
        assert run(Plodding, seed, remote=remote) == run(Guard, seed, remote=remote), seed


def talk(*pieces: str, policy: Policy | None = None, **options: Any) -> Guard:
    """A guard in whose lane these texts are, one a second."""
    guard = Guard(policy or Policy(), lambda: [PhraseScanner(PHRASES)], **options)
    for now, raw in enumerate([frames.role(), *map(frames.text, pieces)]):
        for chunk in Decoder(Chunk).feed(raw):
            guard.feed(chunk, float(now))
    return guard


def test_the_lane_is_taken() -> None:
    """By every text of a choice that says nothing else, from the first on; what came before it waits in the lane too."""
    guard = talk("x", "敏", "感")
    assert guard.lane is not None
    assert not guard._queue
    assert 3 == guard.lane.came
    assert guard.lane.bytes == len(frames.text("敏") + frames.text("感"))
    assert len(talk("x", "敏", "感").released) == 2
    for chunk in Decoder(Chunk).feed(frames.chunk([])):
        guard.feed(chunk, 9.0)
    assert guard.lane is None
    assert 3 == len(guard._queue)
    for chunk in Decoder(Chunk).feed(frames.text("x")):
        guard.feed(chunk, 9.0)
    assert guard.lane is None  # a frame of another kind waited
    assert not guard._queue


def test_the_lane_stays_open_over_verdicts_that_pass() -> None:
    """What is cleared leaves it; any other verdict is for the long way."""
    policy = Policy(cutting=Cutting(holdback_chars=1, first_chars=3))
    guard = talk("好", "好", "好", "好", policy=policy, remote=True)
    lane, [window] = guard.lane, guard.checks
    assert "好好好好" == guard.show(window, 4.0)
    assert lane is not None
    assert len(frames.text("好")) * 4 == lane.bytes
    guard.judged(window, RULINGS["pass"], 5.0)
    assert lane is guard.lane
    assert (0, 0) == (lane.bytes, guard.in_flight)
    assert [frames.role(), *[frames.text("好")] * 4] == [chunk.raw for chunk in guard.released]
    guard.failed(window, 6.0)
    assert guard.lane is None


def test_what_waits_already_goes_into_a_new_lane() -> None:
    """A frame that is not of the commonest kind closes the lane; the next one that is opens another."""
    guard = talk("敏", "x", "敏")
    for raw in (ESCAPED, frames.text("敏")):
        for chunk in Decoder(Chunk).feed(raw):
            guard.feed(chunk, 5.0)
    lane = guard.lane
    assert lane is not None
    assert not guard._queue
    assert len(guard.released) == 1 + 4
    assert [frames.text("敏")] == [held.chunk.raw for held in lane.held()]
    assert (len("敏敏"), len(frames.text("敏"))) == (lane.came, lane.bytes)


@pytest.mark.parametrize("pieces", [("x", "y"), ("敏", "感"), ("敏", "x")])
def test_a_lane_counts_what_waits_in_it(pieces: tuple[str, str]) -> None:
    """Bytes come and go with their frames."""
    guard = talk(*pieces * 50)
    assert guard.lane is not None
    waiting = list(map(frames.text, pieces * 50))[len(guard.released) - 1 :]
    assert guard.lane.bytes == len(b"".join(waiting))


def test_what_has_come_is_counted_where_a_sink_raises() -> None:
    """On the long way and on the short one, before the lane has told its run how far they have come and after."""

    def refuse(chunk: Chunk) -> None:
        raise RuntimeError

    guard = talk("好", "好", "好")
    lane = guard.lane
    assert lane is not None
    for count, text in enumerate(["好", "新", "好", "新"], 4):
        [chunk] = Decoder(Chunk).feed(frames.text(text))
        with pytest.raises(RuntimeError):
            lane.say(chunk, text, 9.0, refuse)
        assert count == lane.came
    guard.abandon()
    assert (7, 7) == (guard.tally.came, guard.tally.released)
