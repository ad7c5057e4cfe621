"""The theorem of the guard, at bytes: no character of a violating span reaches the client, however the upstream cuts it.

What is drawn is in `drawn.py`, and what is checked of it in `theorem.py`.
"""

from collections import Counter, deque
from collections.abc import Callable, Sequence
from random import Random
from typing import Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from theorem import Leak, Stuck, check

from relay.pure.surfaces import Kind
from relay.pure.window import ALL, Cutting, Hit, Run, Window
from relay_plugins.lexicon import PhraseScanner

# ---- The properties ----

KINDS: Final = ("lexicon", "remote")
SEEDS: Final = 1000  # as many as each mutant gets
LONG_SEEDS: Final = 100_000


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random=st.randoms(use_true_random=False))
def test_no_character_of_a_violating_span_gets_out(kind: str, random: Random) -> None:
    """And clean text comes out as it came, and every ending is clean."""
    check(random, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_one_of_any_seed(kind: str) -> None:
    """The same for some thousands of replies, the same ones every time; each ending is among them."""
    endings = {check(Random(seed), kind) for seed in range(SEEDS)}
    assert endings >= {"clean", "blocked", "content_filter", "moderation_stalled", "upstream_malformed"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_one_in_the_long_run(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for many more, with all failures counted before any is raised."""
    endings: Counter[str] = Counter()
    failed: dict[str, list[int]] = {}
    for seed in range(SEEDS, SEEDS + LONG_SEEDS):
        try:
            endings[check(Random(seed), kind)] += 1
        except AssertionError as error:
            failed.setdefault(type(error).__name__, []).append(seed)
    with capsys.disabled():
        leaked, altered = (len(failed.get(name, ())) for name in ("Leak", "Altered"))
        print(f"\n{kind}: {LONG_SEEDS:,} streams tried, {leaked} leaked, {altered} altered; {dict(endings)}")
    assert {} == failed


# ---- The mutants: a property that no fault breaks proves nothing ----


def _short_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """K - 1 made K - 2."""
    monkeypatch.setattr(Cutting, "overlap", property(lambda self: self.holdback_chars - 2))


def _short_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is shown again is one character too short, not what is held back."""
    monkeypatch.setattr(Cutting, "shown_again", property(lambda self: max(0, self.overlap - 1)))


def _out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that passes clears the text of those before it."""

    def passed(self: Run, window: Window) -> None:
        self._passed = max(self._passed, window.end)
        self.windows = deque(other for other in self.windows if other is not window)
        self._clear()

    monkeypatch.setattr(Run, "passed", passed)


def _unchecked_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has ended is released, whatever its last window has yet to show."""
    clear = Run._clear

    def released(self: Run) -> None:
        clear(self)
        if self.ended and not self.stopped:
            self.horizon = ALL

    monkeypatch.setattr(Run, "_clear", released)


def _endless_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run ever ends."""
    monkeypatch.setattr(Run, "finish", lambda self, now, *, resumable=False: ())


def _unheard_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner is not told that its run has ended."""

    def finish(self: PhraseScanner) -> Sequence[Hit]:
        self.held = 0
        return ()

    monkeypatch.setattr(PhraseScanner, "finish", finish)


def _short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scanner holds one character too few."""
    feed, take = PhraseScanner.feed, PhraseScanner.take

    def shorter(self: PhraseScanner, text: str) -> Sequence[Hit]:
        hits = feed(self, text)
        self.held = max(0, self.held - 1)
        return hits

    def shortly(self: PhraseScanner, text: str) -> int:
        length = take(self, text)
        self.held = max(0, self.held - (length > 0))
        return length

    monkeypatch.setattr(PhraseScanner, "feed", shorter)
    monkeypatch.setattr(PhraseScanner, "take", shortly)


def _unpaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a pair are not joined."""
    append = Run.append

    def unpaired(self: Run, text: str, kind: Kind, now: float, *, lenient: bool = False) -> Sequence[Hit]:
        return append(self, text, kind, now)

    monkeypatch.setattr(Run, "append", unpaired)


def _by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """What folds to nothing, or is half an escape, leaves before the character it belongs to."""
    monkeypatch.setattr(Run, "needs", property(lambda self: self.end, lambda self, needs: None))


MUTANTS: Final = [
    ("remote", _short_overlap, Leak),
    ("remote", _short_context, Leak),
    ("remote", _out_of_order, Leak),
    ("remote", _unchecked_end, Leak),
    ("remote", _endless_runs, Stuck),
    ("remote", _unpaired, AssertionError),
    ("remote", _by_length, Leak),
    ("lexicon", _short_tail, Leak),
    ("lexicon", _unheard_end, Leak),
    ("lexicon", _endless_runs, Stuck),
    ("lexicon", _unpaired, AssertionError),
    ("lexicon", _by_length, Leak),
]


@pytest.mark.parametrize(("kind", "mutant", "fault"), MUTANTS)
def test_a_mutant_is_caught(
    kind: str,
    mutant: Callable[[pytest.MonkeyPatch], None],
    fault: type[AssertionError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among the seeds that all pass without the mutant there is one that fails as it should."""
    mutant(monkeypatch)
    for seed in range(SEEDS):
        try:
            check(Random(seed), kind)
        except fault:
            return
        except AssertionError:
            continue
    pytest.fail(f"{mutant.__doc__} Nobody noticed.")
