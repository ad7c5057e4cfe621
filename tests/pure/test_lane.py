"""The lane is only a short way: with it and without it a guard does the same, step by step."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.guard import Guard
from relay.pure.held import Lane
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.sse import Decoder
from relay.pure.window import Cutting
from relay.testing import frames
from relay_plugins.lexicon import Phrases
from relay_plugins.lexicon.phrases import PhraseScanner

PHRASES = Phrases(["敏感词", "ass", "ab"], label="word", blocks=True, moderator="lexicon")
MILD = Phrases(["词", "b"], label="word", blocks=False, moderator="lexicon")


class Plodding(Guard):
    """A guard that takes every frame the long way."""

    def _open_lane(self, index: int) -> Lane | None:
        return None


texts = st.text("敏感词asb\u200b\u0301. ", min_size=1, max_size=4)
said = st.one_of(
    texts.map(frames.text),
    texts.map(frames.text),
    texts.map(frames.text),
    texts.map(lambda text: frames.text(text, index=1)),
    st.just(frames.text("x", id="x" * 300)),
    st.just(frames.text("\u200b" * 40)),
    st.just(frames.text("x").replace(b'"x"', b'"\\ud83d"')),
    st.just(frames.role()),
    st.just(frames.role(index=1)),
    st.just(frames.delta({"reasoning_content": "敏"})),
    st.just(frames.finish()),
    st.just(frames.usage()),
    st.just(frames.chunk([])),
)
steps = st.lists(
    st.one_of(
        said.map(lambda frame: ("feed", frame)),
        said.map(lambda frame: ("feed", frame)),
        said.map(lambda frame: ("feed", frame)),
        st.tuples(st.sampled_from(["pass", "block", "fail"]), st.integers(0, 3)),
        st.just(("tick", 0)),
    ),
    max_size=30,
)
policies = st.builds(
    Policy,
    cutting=st.builds(
        Cutting,
        holdback_chars=st.integers(1, 4),
        first_chars=st.integers(1, 6),
        max_chars=st.integers(2, 9),
        max_wait_s=st.sampled_from([0.5, 9.0]),
    ),
    depth=st.integers(1, 3),
    held_bytes=st.sampled_from([200, 600, 262_144]),
    on_violation=st.sampled_from(["finish", "replace", "error"]),
    hold=st.booleans(),
)


def looks(guard: Guard) -> tuple[Any, ...]:
    """Everything that a caller can see, and takes."""
    released, guard.released = [chunk.raw for chunk in guard.released], []
    checks = [(window.start, window.end, window.text, window.run.surface) for window in guard.checks]
    state = guard.in_flight, guard.over, guard.finished, guard.failure, guard.cut, guard.wants_pause, guard.deadline()
    return released, checks, state


def run(
    make: Callable[..., Guard], policy: Policy, script: list[tuple[str, Any]], options: dict[str, Any]
) -> list[Any]:
    """What a guard shows after each step, and at the end the sums."""
    guard = make(policy, lambda: [PhraseScanner(phrases) for phrases in options["phrases"]], **options["guard"])
    windows: list[Any] = []
    shown: list[Any] = []
    decoder = Decoder(Chunk)
    for now, (what, which) in enumerate(script):
        if what == "feed":
            for chunk in decoder.feed(which):
                guard.feed(chunk, now * 0.25)
        elif what == "tick":
            guard.tick(now * 0.25)
        elif windows:
            window = windows.pop(which % len(windows))
            if what == "block":
                guard.blocked(window, "label", "model", now * 0.25)
            else:
                (guard.passed if what == "pass" else guard.failed)(window, now * 0.25)
        shown.append(looks(guard))
        windows += guard.checks
        guard.checks = []
    guard.end(99.0)
    while not guard.finished:
        shown.append(looks(guard))
        windows += guard.checks
        guard.checks = []
        guard.passed(windows.pop(0), 99.0)
    shown.append(looks(guard))
    tally = guard.tally
    return [*shown, tally]


@given(
    policies,
    steps,
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from([[], [PHRASES], [PHRASES, MILD], [MILD]]),
)
def test_with_the_lane_and_without_it(
    policy: Policy, script: list[tuple[str, Any]], remote: bool, usage: bool, two: bool, phrases: list[Phrases]
) -> None:
    """What leaves and when, what is asked, what is counted."""
    options = {"phrases": phrases, "guard": {"remote": remote, "usage": usage, "choices": 1 + two}}
    assert run(Plodding, policy, script, options) == run(Guard, policy, script, options)


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
    assert guard._lane is not None
    assert not guard._queue
    assert 3 == guard._lane.came
    assert guard._lane.bytes == len(frames.text("敏") + frames.text("感"))
    assert len(talk("x", "敏", "感").released) == 2
    for chunk in Decoder(Chunk).feed(frames.chunk([])):
        guard.feed(chunk, 9.0)
    assert guard._lane is None
    assert 3 == len(guard._queue)
    for chunk in Decoder(Chunk).feed(frames.text("x")):
        guard.feed(chunk, 9.0)
    assert guard._lane is None  # a frame of another kind waited
    assert not guard._queue


@pytest.mark.parametrize("pieces", [("x", "y"), ("敏", "感"), ("敏", "x")])
def test_a_lane_counts_what_waits_in_it(pieces: tuple[str, str]) -> None:
    """Bytes come and go with their frames."""
    guard = talk(*pieces * 50)
    assert guard._lane is not None
    waiting = list(map(frames.text, pieces * 50))[len(guard.released) - 1 :]
    assert guard._lane.bytes == len(b"".join(waiting))
