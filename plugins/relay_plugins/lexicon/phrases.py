"""A set of phrases, and the reader that finds them in a text that is still coming.

Everything here is canonical text (`relay.pure.fold`): phrases are folded once, texts by the caller.

Whole phrases are found by an Aho-Corasick automaton. It shows nothing of its state, so how long a tail may begin a
phrase is told by a set of all proper prefixes kept beside it: a tail is held if it is one of them.

Latin phrases match whole words: "ass" is not in "class". Whether a word has ended is decided by the next character or by
the end of the text, so such a phrase is held back whole until then. A Han character is no part of a Latin word.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ahocorasick_rs import AhoCorasick, Implementation

from relay.pure.fold import fold
from relay.pure.window import Hit

# Latin, Greek, Cyrillic and Armenian end here. Words of later scripts are not set apart (Thai), or carry what others
# write before and after them (Hebrew, Korean): whole words would miss them.
_FIRST_JOINED = "\u0590"

# Models speak in tokens, and in the same ones again and again: how a tail and the next token go on is remembered.
STEP_CHARS = 16
STEPS = 16_384

Step = tuple[str, int, int, str]
"""The tail of a text that may begin a phrase, its length, the length before it and the last character there."""


def _in_word(char: str) -> bool:
    """Whether a character can be part of a word that is set apart by spaces."""
    return char < _FIRST_JOINED and char.isalnum()


class Phrases:
    """A set of phrases, built once. Raises ValueError for a phrase of which the fold leaves nothing."""

    def __init__(
        self, phrases: Iterable[str], *, label: str, blocks: bool, moderator: str, whole_words: bool = True
    ) -> None:
        folded: dict[str, None] = {}
        for phrase in phrases:
            copy = fold(phrase).strip()
            if not copy:
                raise ValueError(f"the phrase {phrase!r} has no visible character; remove it")
            folded[copy] = None
        self._phrases = tuple(folded)
        self._automaton = AhoCorasick(self._phrases, implementation=Implementation.ContiguousNFA)
        self._label = label
        self._blocks = blocks
        self._moderator = moderator
        self._word_start = tuple(whole_words and _in_word(phrase[0]) for phrase in self._phrases)
        self._word_end = tuple(whole_words and _in_word(phrase[-1]) for phrase in self._phrases)
        self.longest = max(map(len, self._phrases), default=0)
        # A phrase that waits for its word to end is held like the head of a longer one.
        self.heads = frozenset(
            phrase[:length]
            for phrase, waits in zip(self._phrases, self._word_end, strict=True)
            for length in range(1, len(phrase) + waits)
        )

        self.step = _Steps(self).__getitem__  # written in C, for what is remembered

    def quiet(self, text: str) -> bool:
        """Whether no phrase stands in `text`, not even inside a word."""
        return not self._automaton.find_matches_as_indexes(text, overlapping=True)

    def split(self, text: str) -> Step:
        length = len(text)
        for start in range(max(0, length - self.longest), length):
            if text[start:] in self.heads:
                return text[start:], length - start, start, text[start - 1 : start]
        return "", 0, length, text[-1:]

    def __len__(self) -> int:
        return len(self._phrases)

    def hits(self, text: str, before: str, after: str | None, told: int = 0, *, waited: bool = False) -> list[Hit]:
        """What stands in `text`, at positions in it.

        before: the character before the text, "" at its start. after: "" at the end of everything, None if the next
        character is not known yet; a word that ends with the text is then no hit yet. told: the length of the text's
        head whose hits were told already; with `waited`, all but those of words that end with it.
        """
        matches = self._automaton.find_matches_as_indexes(text, overlapping=True)
        if not matches:
            return []
        found = []
        for index, start, end in matches:
            if end <= told and not (waited and end == told and self._word_end[index]):
                continue
            if self._word_start[index]:
                previous = text[start - 1] if start else before
                if previous and _in_word(previous):
                    continue
            if self._word_end[index]:
                following = text[end] if end < len(text) else after
                if following is None or (following and _in_word(following)):
                    continue
            found.append(Hit(start, end, self._label, self._blocks, self._moderator))
        return found


class _Steps(dict[str, Step | None]):
    """`split(text)` by text, None where a phrase stands in it. What is short stays, until it is too many."""

    def __init__(self, phrases: Phrases) -> None:
        super().__init__()
        self._phrases = phrases

    def __missing__(self, text: str) -> Step | None:
        step = self._phrases.split(text) if self._phrases.quiet(text) else None
        if len(text) <= STEP_CHARS:
            if len(self) >= STEPS:
                self.clear()
            self[text] = step
        return step


class PhraseScanner:
    """Reads one text as it comes. Positions are counted from its beginning."""

    __slots__ = ("_before", "_decided", "_phrases", "_position", "_step", "_tail", "held")

    def __init__(self, phrases: Phrases) -> None:
        self.held = 0
        self._phrases = phrases
        self._step = phrases.step
        self._tail = ""  # what is held, or was held when the last run ended
        self._before = ""  # the character before the tail
        self._position = 0  # where the tail begins
        self._decided = False  # the last run has ended, and with it the words at its end

    def feed(self, text: str) -> Sequence[Hit]:
        if not text:
            return ()
        tail = self._tail
        text = tail + text
        hits: Sequence[Hit] = ()
        step = self._step(text)
        if step is None:
            phrases = self._phrases
            hits = self._placed(phrases.hits(text, self._before, None, len(tail), waited=not self._decided))
            step = phrases.split(text)
        self._decided = False
        self._tail, self.held, passed, before = step
        if passed:
            self._position += passed
            self._before = before
        return hits

    def finish(self) -> Sequence[Hit]:
        self.held = 0
        if not self._tail or self._decided:
            return ()
        self._decided = True
        return self._placed(self._phrases.hits(self._tail, self._before, "", len(self._tail), waited=True))

    def _placed(self, hits: Iterable[Hit]) -> list[Hit]:
        return [hit._replace(start=hit.start + self._position, end=hit.end + self._position) for hit in hits]
