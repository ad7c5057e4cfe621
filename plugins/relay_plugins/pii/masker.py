"""Masks the personal data of one text, which may come in pieces: joined, what leaves is what would leave of the whole."""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Final, Literal

from relay_plugins.pii.kinds import Kind
from relay_plugins.pii.reading import FOLDED_SET, Reading
from relay_plugins.pii.spans import CONTEXT, Span, find, left, local_start

Style = Literal["label", "partial"]

# Without one of these a text has no number and no address, whatever letters stand in it.
_SUSPECT: Final = re.compile(rf"[0-9@+\\{FOLDED_SET}]")
_LABELS: Final = {kind: f"[{kind}]" for kind in ("phone", "id_number", "bank_card", "email")}
# What of a kind stays readable with "partial": so many digits at the beginning and at the end.
_KEPT: Final[dict[Kind, tuple[int, int]]] = {"phone": (3, 4), "id_number": (3, 4), "bank_card": (0, 4)}
# What may stand before and behind a number in JSON.
_JSON_EDGES: Final = frozenset(" \t\r\n:,[]{}")


class Masker:
    """Masks one text.

    kinds: what is masked. json: the text is JSON and stays so: a number that is no part of a string becomes a string, and
    behind a minus 0. What is no JSON is masked as any text.
    counts: how many of each kind have been masked, added to.
    """

    __slots__ = ("_context", "_counts", "_json", "_kinds", "_mails", "_nothing", "_quotes", "_style")

    def __init__(
        self, kinds: frozenset[Kind], style: Style, counts: MutableMapping[str, int], *, json: bool = False
    ) -> None:
        self._kinds = kinds
        self._mails = "email" in kinds
        self._style = style
        self._counts = counts
        self._json = json
        self._context = ""  # the end of what has left, as it is read
        self._nothing = 0  # how many unseen characters stand at that end
        self._quotes = 0  # how many quotes have left

    def rewrite(self, text: str, last: bool) -> tuple[str, str]:
        """What may leave of a text, masked, and what is held; as `relay.text.TextSink` has it."""
        if _SUSPECT.search(text) is None:
            return self._pass(text, last)
        reading = Reading(text, self._nothing, last=last)
        start = len(self._context)
        read = self._context + reading.text
        spans, held = find(read, self._kinds, start, last=last)
        seen = left(read, spans)
        pieces: list[str] = []
        done, quotes, counted = 0, self._quotes, start
        for span in spans:
            if self._json:
                quotes += read.count('"', counted, span.start)
                counted = span.start
            masked = self._masked(text, reading, seen, span, start, bare=self._json and quotes % 2 == 0)
            place = reading.place(span.start - start)
            pieces += (text[done:place], masked)
            done = reading.place_after(span.end - 1 - start)
            self._counts[span.kind] = self._counts.get(span.kind, 0) + 1
        if self._json:
            self._quotes = quotes + read.count('"', counted, held)
        leaves = len(text) if last else reading.place(held - start)
        self._nothing = reading.nothing if held == len(read) else 0
        self._context = seen[:held][-CONTEXT:]
        pieces.append(text[done:leaves])
        return "".join(pieces), text[leaves:]

    def _pass(self, text: str, last: bool) -> tuple[str, str]:
        """The same for a text without digits and the like."""
        if self._json:
            self._quotes += text.count('"')
        if last or not self._mails:
            self._context = (self._context + text)[-CONTEXT:]
            self._nothing = 0
            return text, ""
        read = self._context + text if len(text) < CONTEXT else text
        held = len(read) - local_start(read, len(read))
        held = min(held, len(text))
        self._nothing = 0 if len(text) > held else self._nothing
        self._context = read[: len(read) - held][-CONTEXT:]
        return (text[:-held], text[-held:]) if held else (text, "")

    def _masked(self, text: str, reading: Reading, read: str, span: Span, start: int, *, bare: bool) -> str:
        """What stands in the place of what was found. bare: it stands in JSON, in no string."""
        if bare:
            before, behind = read[max(0, span.start - 2) : span.start], read[span.end : span.end + 1]
            minus = before[-1:] == "-" and span.kind != "email"
            if minus and _JSON_EDGES.issuperset((*before[:-1], *behind)):
                return "0"  # the minus may have left
            # What stands elsewhere is no number of JSON: models write what is none, too.
            bare = _JSON_EDGES.issuperset((*before[-1:], *behind))
        if self._style == "label":
            masked = _LABELS[span.kind]
        else:
            shown = [
                text[reading.place(index) : reading.place_after(index)]
                for index in range(span.start - start, span.end - start)
            ]
            masked = _partly(read[span.start : span.end], shown, span.kind)
        return f'"{masked}"' if bare else masked


def _partly(read: str, shown: list[str], kind: Kind) -> str:
    """A number with its first and last digits, an address with its first letter and its domain."""
    if kind == "email":
        at = read.rindex("@")
        return "".join((shown[0], "***", *shown[at:]))
    digits = [place for place, char in enumerate(read) if char.isalnum()]
    first, last = _KEPT[kind]
    if kind == "phone":  # without the code of its country, if that is China's
        first += max(0, len(digits) - 11) if read.lstrip("+0").startswith("86") else 0
    for place in digits[first : len(digits) - last]:
        shown[place] = "*"
    return "".join(shown)
