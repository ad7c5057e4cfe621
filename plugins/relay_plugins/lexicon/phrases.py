"""A set of phrases, found in texts and at their ends.

Everything here is canonical text (`relay.pure.fold`): phrases are folded once, texts by the caller. A text is read twice:
as it is, and without the gaps in it (`relay_plugins.lexicon.spelling`), for those who write f u c k or p0rn.

Whole phrases are found by an automaton. It shows nothing of its state, so how long a tail may begin a phrase is told by a
set of the heads of all phrases kept beside it: a tail is held if it is one of them, in either reading.

Latin phrases match whole words: "ass" is not in "class". Whether a word has ended is decided by the next character or by
the end of the text, so such a phrase is held back whole until then. A Han character is no part of a Latin word. What is
spelt otherwise is bounded like that whatever the list says.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import merge
from typing import NamedTuple, TypeVar

from relay.pure.fold import fold, is_even
from relay.pure.ruling import STRICTNESS, Action
from relay.pure.window import Hit
from relay_plugins.lexicon.automaton import Automaton
from relay_plugins.lexicon.spelling import Together, bare, heads, readings, spaced, spells, together

# Latin, Greek, Cyrillic and Armenian end here. Words of later scripts are not set apart (Thai), or carry what others
# write before and after them (Hebrew, Korean): whole words would miss them.
_FIRST_JOINED = "\u0590"

# Models speak in tokens, and in the same ones again and again: how a tail and the next token go on is remembered.
STEP_CHARS = 16
STEPS = 16_384

# A conversation is sent again with every turn of it, and with the same instructions by everybody: what stands in texts that
# are there as a whole is remembered, of the newest that have so many characters together.
LOOK_CHARS = 4_096
LOOKS_CHARS = 1_048_576
_LOOK_OVERHEAD = 64  # what a short text takes beside its characters, in such characters

# Sorted in 5 ms.
PIECE = 10_000

T = TypeVar("T", tuple[str, bool], tuple[str, int])

Step = tuple[str, int, int, str]
"""The tail of a text that may begin a phrase, its length, the length before it and the last character there."""

Move = tuple["Place", int, int]
"""Where a reader stands next, how long the copy of what it has read is, and how much of the end it holds."""


class Place(dict[str, Move]):
    """Where a reader of a text stands, and how it goes on from there, by what comes next (as it was written).

    tail: the end of the text that may begin a phrase. before: what stands before it: "" where a word can begin, else any
    letter like the one there. decided: the text has ended here, and with it the words at its end. quiet: it is known that
    nothing is found if it does.
    """

    __slots__ = ("before", "decided", "quiet", "tail")

    def __init__(self, tail: str, before: str, *, decided: bool = False) -> None:
        self.tail = tail
        self.before = before
        self.decided = decided
        self.quiet = False


class Manner(NamedTuple):
    """What a list wants done with its phrases."""

    label: str
    action: Action
    whole_words: bool = True


class _Match(NamedTuple):
    number: int
    start: int
    end: int
    apart: bool


def canonical(phrase: str) -> str:
    """A phrase as it is compared with texts. Raises ValueError if nothing of it is left."""
    copy = fold(phrase).strip()
    if not copy:
        raise ValueError(f"the phrase {phrase!r} has no visible character; remove it")
    return copy


def _in_word(char: str) -> bool:
    """Whether a character can be part of a word that is set apart by spaces."""
    return char < _FIRST_JOINED and char.isalnum()


def _ordered(items: Iterable[T]) -> list[T]:
    """Sorted in pieces: one call for 100,000 items would keep the interpreter's lock, and all streams waiting."""
    unordered = list(items)
    pieces = (sorted(unordered[start : start + PIECE]) for start in range(0, len(unordered), PIECE))
    return list(merge(*pieces))


class Phrases:
    """A set of phrases, built once. If several lists have a phrase, the strictest of them has it.

    phrases: in canonical text (`canonical`), not empty.
    """

    def __init__(self, phrases: Iterable[tuple[str, Manner]], moderator: str) -> None:
        self._moderator = moderator
        manners: dict[tuple[str, bool], Manner] = {}
        for phrase, manner in phrases:
            key = phrase, manner.whole_words and (_in_word(phrase[0]) or _in_word(phrase[-1]))
            known = manners.setdefault(key, manner)
            if STRICTNESS[manner.action] > STRICTNESS[known.action]:
                manners[key] = manner
        keys = _ordered(manners)
        self._phrases = [phrase for phrase, _ in keys]
        self._manners = [manners[key] for key in keys]
        apart = _ordered(
            (reading, number) for number, phrase in enumerate(self._phrases) for reading in readings(phrase) - {phrase}
        )
        self._numbers = [*range(len(keys)), *(number for _, number in apart)]
        strings = [*self._phrases, *(reading for reading, _ in apart)]
        self._find = Automaton(strings).find
        self.longest = max(map(len, strings), default=0)
        # A phrase that may wait for its word to end is held like the head of a longer one.
        self.heads = frozenset(head for string in strings for head in heads(string, whole=spaced(string[-1])))
        # Those that need no word to begin with them.
        self._inner = frozenset(
            head
            for phrase, whole_words in keys
            if not whole_words and _in_word(phrase[0])
            for head in heads(phrase, whole=False)
        )
        # Methods written in C, for what is remembered.
        self._step = _Steps(self).__getitem__
        self._places = _Places()
        self.recall = _Findings(self).__getitem__  # what stands in a text that is there as a whole

    def __len__(self) -> int:
        return len(self._phrases)

    def whole(self, text: str) -> list[Hit]:
        """What stands in a text that is there as a whole."""
        if not self._find(text):
            letters = bare(text)
            if letters is not None and not self._find(letters):
                return []
        return self.hits(text, "", "")

    def hits(self, text: str, before: str, after: str | None, told: int = 0, *, waited: bool = False) -> list[Hit]:
        """What stands in `text`, at positions in it.

        before: the character before the text, "" at its start. after: "" at the end of everything, None if the next
        character is not known yet; a word that ends with the text is then no hit yet. told: the length of the text's
        head whose hits were told already; with `waited`, all but those of words that end with it.
        """
        return self._hits(text, together(text), before, after, told, waited=waited)

    def _hits(
        self,
        text: str,
        seconds: Sequence[Together],
        before: str,
        after: str | None,
        told: int = 0,
        *,
        waited: bool = False,
    ) -> list[Hit]:
        found = []
        for number, start, end, apart in self._matches(text, seconds):
            phrase, manner = self._phrases[number], self._manners[number]
            in_word = spaced if apart else _in_word
            bounded = apart or manner.whole_words
            ends_word = bounded and in_word(phrase[-1])
            if end <= told and not (waited and end == told and ends_word):
                continue
            if bounded and in_word(phrase[0]) and in_word(text[start - 1] if start else before):
                continue
            if ends_word:
                following = text[end] if end < len(text) else after
                if following is None or in_word(following):
                    continue
            found.append(Hit(start, end, manner.label, manner.action, self._moderator))
        return found

    def _matches(self, text: str, seconds: Sequence[Together]) -> Iterator[_Match]:
        """Phrases, before anybody has looked at what stands beside them."""
        matches = self._find(text)
        for index, start, end in matches:
            if index < len(self._phrases):
                yield _Match(index, start, end, apart=False)
        if not seconds:
            for index, start, end in matches:
                number = self._numbers[index]
                phrase, written = self._phrases[number], text[start:end]
                if written != phrase and spells(written, phrase):
                    yield _Match(number, start, end, apart=True)
        for second in seconds:
            place = second.place
            for index, first, last in self._find(second.text):
                number, start, end = self._numbers[index], place(first), place(last - 1) + 1
                phrase = self._phrases[number]
                if text[start:end] != phrase and second.spells(start, end, phrase):
                    yield _Match(number, start, end, apart=True)

    # How a text goes on

    def place(self, tail: str, before: str) -> Place:
        """Where a reader stands behind a text with this tail, and this character before that."""
        like = "a" if _in_word(before) else "\u05d0" if spaced(before) else ""
        places = self._places
        place = places.get((tail, like))
        if place is None:
            if len(places) >= STEPS:
                places.forget()
            place = places[tail, like] = Place(tail, like)
        return place

    def move(self, place: Place, text: str) -> Move | None:
        """How a reader goes on with `text`, which is no copy yet.

        None if something is found, or there are characters in it that have no copy of one character.
        """
        if not text or not is_even(text):
            return None
        copy = fold(text)
        step = self._step(place.tail + copy)
        if step is None:
            return None
        tail, held, passed, before = step
        move = self.place(tail, before if passed else place.before), len(copy), held
        if len(text) <= STEP_CHARS:
            self._places.remember(place, text, move)
        return move

    def go(self, place: Place, copy: str) -> tuple[Place, Sequence[Hit]]:
        """How a reader goes on with `copy`, and what is found, at positions from the tail on."""
        text = place.tail + copy
        hits: Sequence[Hit] = ()
        step = self._step(text)
        if step is None:
            hits = self.hits(text, place.before, None, len(place.tail), waited=not place.decided)
            step = self._split(text, together(text))
        tail, _, passed, before = step
        return self.place(tail, before if passed else place.before), hits

    def next_step(self, text: str) -> Step | None:
        """How `text` goes on if nothing is found in it, whatever stands before."""
        seconds = together(text)
        found = self._find(text) or any(self._find(each.text) for each in seconds if each.text != text)
        return None if found and self._hits(text, seconds, "", None) else self._split(text, seconds)

    def _split(self, text: str, seconds: Sequence[Together]) -> Step:
        length = len(text)
        start = self._head(text, text, int)
        for second in seconds:
            start = min(start, self._head(second.stem, text, second.place))
        return text[start:], length - start, start, text[start - 1 : start]

    def _head(self, reading: str, text: str, place: Callable[[int], int]) -> int:
        """Where in `text` the longest tail that begins a phrase begins; the end if there is none.

        What stands before the text is not known here, so its first character may begin a word.
        """
        length, known = len(reading), self.heads
        for index in range(max(0, length - self.longest), length):
            if reading[index:] in known:
                start = place(index)
                inside = start and _in_word(text[start - 1]) and _in_word(text[start])
                if not inside or reading[index:] in self._inner:
                    return start
        return len(text)


class _Places(dict[tuple[str, str], Place]):
    """The places of a list, by tail and what stands before it. When they know too many ways on, all are forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self._ways = 0

    def remember(self, place: Place, text: str, move: Move) -> None:
        if self._ways < STEPS:
            self._ways += 1
            place[text] = move
        else:
            self.forget()

    def forget(self) -> None:
        """Whoever stands somewhere stays there, and finds the way on anew."""
        self._ways = 0
        for place in self.values():
            place.clear()
        self.clear()

    def __del__(self) -> None:
        self.forget()  # ways lead in circles, which would wait for the collector


class _Steps(dict[str, Step | None]):
    """`next_step(text)` by text. What is short stays, until it is too many."""

    def __init__(self, phrases: Phrases) -> None:
        super().__init__()
        # Not a circle: a list that was replaced goes when the last reply that reads by it has ended.
        self._phrases = weakref.proxy(phrases)

    def __missing__(self, text: str) -> Step | None:
        step: Step | None = self._phrases.next_step(text)
        if len(text) <= STEP_CHARS:
            if len(self) >= STEPS:
                self.clear()
            self[text] = step
        return step


class _Findings(dict[str, Sequence[Hit]]):
    """What stands in a text that is there as a whole, by text. What is short stays, until it is too much."""

    def __init__(self, phrases: Phrases) -> None:
        super().__init__()
        self._phrases = weakref.proxy(phrases)  # as above
        self._chars = 0

    def __missing__(self, text: str) -> Sequence[Hit]:
        found: Sequence[Hit] = self._phrases.whole(text)
        if len(text) <= LOOK_CHARS:
            self._chars += len(text) + _LOOK_OVERHEAD
            if self._chars > LOOKS_CHARS:
                self.clear()
                self._chars = len(text) + _LOOK_OVERHEAD
            self[text] = found
        return found
