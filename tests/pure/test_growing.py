"""Windows that grow while they wait to be shown, and what is counted of those that nobody judged."""

from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.sse import Decoder
from relay.pure.transcript import MAX_SHOWN_CHARS
from relay.pure.window import Cutting, Window
from relay.testing import frames

# ﷺ has a copy of 18 characters, … of three, 가 of two; three of the last have none.
PIECES = st.lists(st.text("ab世。ﷺ…가❤\u200b\u0301\ufe0f", min_size=1, max_size=8), min_size=1, max_size=20)
CUTTING = st.builds(
    Cutting,
    holdback_chars=st.sampled_from([1, 4, 16]),
    first_chars=st.sampled_from([1, 8]),
    sentence_chars=st.sampled_from([1, 5, 64]),
    max_chars=st.sampled_from([1, 3, 30]),
    context_chars=st.sampled_from([0, 20]),
)


class Asked:
    """A guard, and all the windows that it has cut."""

    def __init__(self, policy: Policy, *, choices: int = 1) -> None:
        self.guard = Guard(policy, remote=True, choices=choices)
        self.windows: list[Window] = []
        self.open: list[Window] = []
        self.out: list[Chunk] = []

    def feed(self, *events: bytes) -> None:
        for chunk in Decoder(Chunk).feed(b"".join(events)):
            self.guard.feed(chunk, 0.0)
            self.look()

    def end(self) -> None:
        self.guard.end(0.0)
        self.look()

    def look(self) -> None:
        guard = self.guard
        self.windows += guard.checks
        self.open += guard.checks
        self.out += guard.released
        guard.checks, guard.released = [], []

    def shown(self) -> str:
        """Show the oldest window that is open."""
        return self.guard.show(self.open[0], 0.0)

    def unjudged(self) -> None:
        self.guard.unjudged(self.open.pop(0), "timeout", Ruling("pass"), 0.0)
        self.look()

    def passed(self) -> None:
        self.guard.judged(self.open.pop(0), Ruling("pass"), 0.0)
        self.look()

    @property
    def text(self) -> str:
        """What a client has."""
        deltas = (choice["delta"] for chunk in self.out for choice in (chunk.json or {})["choices"])
        return "".join(delta.get("reasoning_content") or delta.get("content") or "" for delta in deltas)


@given(pieces=PIECES, cutting=CUTTING, random=st.randoms())
def test_windows_cover_a_text_whenever_they_are_shown(pieces: list[str], cutting: Cutting, random: Random) -> None:
    """Each begins where the one before it ends, and together they show all there is."""
    asked = Asked(Policy(cutting=cutting, depth=random.choice((1, 2))))
    shown: list[tuple[Window, str]] = []

    def answer() -> None:
        shown.append((asked.open[0], asked.shown()))
        if random.random() < 0.5:  # it grows no more
            asked.feed(frames.role())
        asked.passed()

    for piece in pieces:
        asked.feed(frames.text(piece))
        while asked.open and random.random() < 0.3:
            answer()
    asked.end()
    while asked.open:
        answer()
    copy = fold("".join(pieces))
    assert [window.fresh for window in asked.windows[:1]] == [0][: len(copy)]
    assert all(before.end == after.fresh for before, after in pairwise(asked.windows))
    assert asked.text == "".join(pieces)
    if copy:
        assert asked.windows[-1].end == len(copy)
    for window, text in shown:
        assert fold(text).startswith(copy[window.start : window.end])


def test_a_window_that_waits_grows() -> None:
    """One window for all that comes until it is shown; what comes afterwards is for the next."""
    asked = Asked(Policy(cutting=Cutting(holdback_chars=4, first_chars=1, max_chars=5)))
    asked.feed(*(frames.text("Hello ") for _ in range(9)))
    assert len(asked.windows) == 1
    assert asked.shown() == "Hello " * 9
    asked.feed(frames.text("world, again"))
    assert len(asked.windows) == 2
    assert asked.shown() == "Hello " * 9
    asked.passed()
    assert asked.shown() == "lo world, again"


@pytest.mark.parametrize("piece", ["word ", "世界。", "ﷺ", "a\u200b", "ﷺ\u200bx", "𝐛ad…"])
@pytest.mark.parametrize("context_chars", [0, 5000])
def test_it_grows_no_longer_than_a_service_takes(piece: str, context_chars: int) -> None:
    asked = Asked(Policy(cutting=Cutting(context_chars=context_chars), held_bytes=2**24))
    text = piece * (30_000 // len(piece))
    asked.feed(*(frames.text(text[at : at + 400]) for at in range(0, len(text), 400)))
    asked.end()
    windows = 0
    while asked.open:
        assert len(asked.shown()) <= MAX_SHOWN_CHARS
        asked.passed()
        windows += 1
    assert asked.text == text
    assert windows <= 2 + len(fold(text)) // (MAX_SHOWN_CHARS - max(15, context_chars) - 18)


@given(pieces=PIECES, cutting=CUTTING, random=st.randoms())
def test_what_nobody_judged_is_counted_in_characters(pieces: list[str], cutting: Cutting, random: Random) -> None:
    """Every character that left without a verdict once, whatever windows it stood in."""
    asked = Asked(Policy(cutting=cutting, depth=random.choice((1, 2))))
    for piece in pieces:
        surface = random.choice(("content", "content", "reasoning_content"))
        asked.feed(frames.delta({surface: piece}))
        while asked.open and random.random() < 0.3:
            asked.shown()
            asked.unjudged()
    asked.end()
    while asked.open:
        asked.shown()
        asked.unjudged()
    assert asked.text == "".join(pieces)
    if all(map(fold, pieces)):  # in no window stands what has no copy
        assert asked.guard.tally.unverified() == {"timeout": len("".join(pieces))}


@pytest.mark.parametrize("context_chars", [0, 50])
def test_what_left_before_a_violation_is_counted(context_chars: int) -> None:
    """A violation behind it does not make it judged."""
    cutting = Cutting(holdback_chars=4, first_chars=1, max_chars=10, context_chars=context_chars)
    asked = Asked(Policy(cutting=cutting))
    asked.feed(*map(frames.text, "It is a long story. And here is more of it. "))
    asked.shown()
    asked.unjudged()
    left = len(asked.text)
    assert left >= 20
    asked.feed(*map(frames.text, "And here is the violation."))
    asked.shown()
    asked.guard.judged(asked.open.pop(0), Ruling("block", "label", 90, "model"), 0.0)
    asked.look()
    assert asked.guard.tally.unverified() == {"timeout": left}
