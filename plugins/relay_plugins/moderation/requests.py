"""The texts of a request, shown to moderators before the upstream says anything that a client sees.

Moderators that read along (a lexicon) see all of them first and for nothing; those that have to be asked see pieces of
what is left, several at a time. A conversation is sent again with every turn of it: what was judged a moment ago is not
asked for again (`relay.verdicts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Final, Literal, NamedTuple

from multidict import CIMultiDictProxy

from relay.errors import ModerationError, Reject, RelayError
from relay.exchange import CALLER, STOPPED_BY, Exchange, Outcome
from relay.judge import Judge, Unjudged
from relay.log import Logger
from relay.metrics import Metrics, ModerationTally
from relay.moderator import Context, ScanningModerator
from relay.pure.fold import fold, longest_nothing, trailing_nothing
from relay.pure.tally import Violation
from relay.pure.transcript import MAX_SHOWN_CHARS, Passage, Transcript
from relay.pure.window import MAX_NOTHING, Hit
from relay_plugins.moderation.violations import tell

# Longer texts are read in slices, and many texts in batches, so that other streams get their turn in between.
SLICE_CHARS: Final = 65_536
SLICE_TEXTS: Final = 512
# How many pieces of one request are asked about at a time. A long conversation is no reason to keep others waiting.
AT_A_TIME: Final = 8
# A conversation is sent again with every turn of it: the copies of its texts are remembered, of the newest texts that have
# so many characters together. (What a lexicon finds in them it remembers itself, by the copy.)
COPY_CHARS: Final = 4_096
COPIES_CHARS: Final = 1_048_576
_COPY_OVERHEAD: Final = 64  # what a short text takes beside its characters, in such characters
_CREDENTIALS: Final = ("authorization", "cookie", "proxy-authorization", "x-api-key", "api-key")


class Piece(NamedTuple):
    """A part of a text: where that stands, at which canonical character, what a moderator is shown, how much is new."""

    place: str
    start: int
    shown: str
    originals: int


class Scanned(NamedTuple):
    """What is left to be asked about a request, and the counts so far."""

    pieces: list[Piece]
    tally: ModerationTally


class _Copies(dict[str, str]):
    """The canonical copies of texts, by text. What is short stays, until it is too much. Raises KeyError for a text that has
    to be read in slices: it is long, or hides something in a long row of nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._chars = 0

    def __missing__(self, text: str) -> str:
        if len(text) > SLICE_CHARS or (len(text) > MAX_NOTHING and longest_nothing(text) > MAX_NOTHING):
            raise KeyError
        copy = fold(text)
        if len(text) <= COPY_CHARS:
            self._chars += len(text) + _COPY_OVERHEAD
            if self._chars > COPIES_CHARS:
                self.clear()
                self._chars = len(text) + _COPY_OVERHEAD
            self[text] = copy
        return copy


class _Pieces:
    """The pieces of one text, that comes in slices. overlap: how many canonical characters two of them share."""

    def __init__(self, place: str, overlap: int) -> None:
        self._place = place
        self._overlap = overlap
        self._transcript = Transcript()
        self._told = 0  # originals that stand in pieces

    def of(self, written: str, copy: str) -> Iterator[Piece]:
        """The whole pieces of what there is with this slice."""
        self._transcript.append(written, copy)
        while self._transcript.end - self._transcript.start > MAX_SHOWN_CHARS:
            yield self._next()

    def rest(self) -> Iterator[Piece]:
        """What is left, when all slices have come."""
        if not self._transcript.end and (passage := self._transcript.passage(0, 0)).written:
            yield self._piece(passage)  # models may read what the fold leaves nothing of
        while self._transcript.end > self._transcript.start:
            yield self._next()

    def _next(self) -> Piece:
        transcript = self._transcript
        passage = transcript.passage(transcript.start, transcript.start + MAX_SHOWN_CHARS)
        if passage.shown is passage.copy:  # it hides something, and there has to be room for both
            passage = transcript.passage(transcript.start, transcript.start + MAX_SHOWN_CHARS // 2 - 1)
        end = passage.start + len(passage.copy)
        # A short piece must not be all overlap: the next one has to come further.
        overlap = min(self._overlap, len(passage.copy) // 2) if end < transcript.end else 0
        transcript.forget(end - overlap)
        return self._piece(passage)

    def _piece(self, passage: Passage) -> Piece:
        told, self._told = self._told, passage.before + len(passage.written)
        return Piece(self._place, passage.start, passage.shown, self._told - told)


class Requests:
    """Checks requests for one chain.

    judge: None if there is nobody to be asked. overlap: how many characters two pieces of a text share.
    """

    def __init__(
        self,
        scanning: Sequence[ScanningModerator],
        judge: Judge | None,
        *,
        overlap: int,
        on_failure: Literal["closed", "open"],
        log: Logger,
        metrics: Metrics,
    ) -> None:
        self._scanning = scanning
        self._recalls = [moderator.recall for moderator in scanning]
        self._copies = _Copies()
        self._judge = judge
        self._overlap = overlap
        self._on_failure = on_failure
        self._log = log
        self._metrics = metrics

    def passes(self, ex: Exchange) -> bool:
        """Whether nothing is found in a request, and nobody has to be asked or given his turn: that is all then."""
        if self._judge is not None:
            return False
        request = ex.request
        texts = request.contents
        if texts is None or request.speaks_beside_messages:
            texts = [text for _, text in islice(request.texts(), SLICE_TEXTS)]
        if len(texts) >= SLICE_TEXTS:
            return False
        copies, recalls, checked = self._copies, self._recalls, 0
        try:
            for text in texts:
                copy = copies[text]
                checked += len(copy)
                for recall in recalls:
                    if recall(copy):
                        return False
        except KeyError:
            return False
        self._metrics.scanned(checked if recalls else 0)
        ex.moderated(0.0)
        return True

    async def check(self, ex: Exchange) -> None:
        """Raises Reject if a text may not go on, ModerationError if nobody can say."""
        scanned = await self.scan(ex)
        if scanned.pieces:
            started = monotonic()
            await self.ask(ex, scanned)
            ex.moderated(monotonic() - started)
        else:
            self._metrics.moderated(scanned.tally)
            ex.moderated(0.0)

    async def scan(self, ex: Exchange) -> Scanned:
        """Show all texts to the moderators that read along. Raises Reject."""
        scanned = Scanned([], ModerationTally())
        try:
            for number, (place, text) in enumerate(ex.request.texts(), 1):
                if number % SLICE_TEXTS == 0:
                    await asyncio.sleep(0)
                copy = self._clean(text)
                if copy is None:
                    await self._scan(ex, place, text, scanned)
                    continue
                if self._scanning:
                    scanned.tally.checked += len(copy)
                if self._judge is not None:
                    pieces = _Pieces(place, self._overlap)
                    scanned.pieces.extend((*pieces.of(text, copy), *pieces.rest()))
        except RelayError:
            self._metrics.moderated(scanned.tally)
            raise
        return scanned

    async def ask(self, ex: Exchange, scanned: Scanned) -> None:
        """Ask the others about the rest. Raises Reject and ModerationError."""
        try:
            if self._judge is not None and scanned.pieces:
                await self._ask_all(ex, self._judge, *scanned)
        finally:
            self._metrics.moderated(scanned.tally)

    async def refusal(self, ex: Exchange, scanned: Scanned) -> RelayError | None:
        """What `ask` raises, if it does, while an upstream is at work: that is stopped, even if it has not answered."""
        try:
            await self.ask(ex, scanned)
        except ModerationError:
            error: RelayError = unavailable(acted=True)
        except RelayError as refused:
            error = refused
        else:
            return None
        ex.stop(Outcome.of(error))
        return error

    def _clean(self, text: str) -> str | None:
        """The copy of a text in which nothing is found, as of most: it is looked at as a whole.

        None: it is long, or `_scan` will say what stands in it.
        """
        try:
            copy = self._copies[text]
        except KeyError:
            return None
        return None if any(recall(copy) for recall in self._recalls) else copy

    async def _scan(self, ex: Exchange, place: str, text: str, scanned: Scanned) -> None:
        tally = scanned.tally
        nothing = 0  # originals at the end that fold to nothing
        scanners = [moderator.scanner() for moderator in self._scanning]
        pieces = _Pieces(place, self._overlap)
        async for written in _slices(text):
            if longest_nothing(written, nothing) > MAX_NOTHING:
                self._tell(ex, Violation(None, place, 0, "evasion", "guard", "block"), tally)
                raise refused_prompt()
            row = trailing_nothing(written)
            nothing = row + nothing if row == len(written) else row
            copy = fold(written)
            for scanner in scanners:
                self._scanned(ex, place, scanner.feed(copy), tally)
            if self._scanning:
                tally.checked += len(copy)
            if self._judge is not None:
                scanned.pieces.extend(pieces.of(written, copy))
        for scanner in scanners:
            self._scanned(ex, place, scanner.finish(), tally)
        if self._judge is not None:
            scanned.pieces.extend(pieces.rest())

    def _scanned(self, ex: Exchange, place: str, hits: Iterable[Hit], tally: ModerationTally) -> None:
        for hit in hits:
            self._tell(ex, Violation(None, place, hit.start, hit.label, hit.moderator, hit.action), tally)
            if hit.action in ("mask", "block"):  # a mask would change what the client has said
                raise refused_prompt()

    async def _ask_all(self, ex: Exchange, judge: Judge, pieces: Sequence[Piece], tally: ModerationTally) -> None:
        waiting = iter(pieces)
        unjudged = False  # not the error itself: its frames would hold the request until the collector comes

        async def ask() -> None:
            nonlocal unjudged
            for piece in waiting:
                try:
                    await self._ask(ex, judge, piece, tally)
                except ModerationError:
                    unjudged = True
                if unjudged:
                    return

        at_a_time = 1 if judge.in_order else min(AT_A_TIME, len(pieces))
        if at_a_time == 1:
            await ask()
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(at_a_time):
                        group.create_task(ask())
            except BaseExceptionGroup as errors:  # not `except*`: up to Python 3.11.3 what it raises is a group again
                refusals, others = errors.split(RelayError)
                if refusals is None or others is not None:
                    raise
                raise next(_leaves(refusals)) from None
        # The others were not cancelled: one of them may be the one call that finds out that an outage is over.
        if unjudged:
            raise unavailable(acted=False)

    async def _ask(self, ex: Exchange, judge: Judge, piece: Piece, tally: ModerationTally) -> None:
        said = await judge.check_text(piece.shown, context_of(ex, "request", piece.place), tally)
        ruling = said.heard if isinstance(said, Unjudged) else said
        if isinstance(said, Unjudged):
            if self._on_failure == "closed":
                raise unavailable(acted=False)
            tally.unverified["request"] = tally.unverified.get("request", 0) + piece.originals
        label, action, moderator = ruling.label, ruling.action, ruling.moderator
        if action != "pass":
            found = (None, piece.place, piece.start, label, moderator, action, ruling.score, ruling.reference)
            self._tell(ex, Violation(*found), tally)
        if action in ("mask", "block"):
            raise refused_prompt()

    def _tell(self, ex: Exchange, violation: Violation, tally: ModerationTally) -> None:
        tell(violation._replace(direction="request"), ex, self._log, tally)
        if violation.action in ("mask", "block"):
            ex[STOPPED_BY] = violation.moderator, violation.label


def context_of(ex: Exchange, direction: Literal["request", "response"], surface: str = "") -> Context:
    user = ex.request.get("user", "")
    return Context(
        ex.id,
        direction,
        surface,
        caller=ex.get(CALLER, ""),
        user=user if isinstance(user, str) else "",
        headers=_harmless(ex.headers),
    )


def _harmless(headers: CIMultiDictProxy[str]) -> Mapping[str, str]:
    """The headers of a request without what lets somebody else ask in its name."""
    shown = headers.copy()
    for name in _CREDENTIALS:
        shown.popall(name, None)
    return shown


def refused_prompt() -> Reject:
    return Reject(
        "The request was stopped by content moderation; change the text and ask again.",
        code="content_filter",
        param="messages",
    )


def unavailable(*, acted: bool) -> ModerationError:
    """`acted`: whether an upstream may have."""
    return ModerationError(
        "Content moderation does not answer; nothing is passed on unchecked. Ask again later.",
        code="moderation_unavailable",
        acted=acted,
    )


async def _slices(text: str) -> AsyncIterator[str]:
    """The text in slices, with a turn of the loop between two."""
    for start in range(0, len(text), SLICE_CHARS):
        if start:
            await asyncio.sleep(0)
        yield text[start : start + SLICE_CHARS]


def _leaves(errors: BaseExceptionGroup[RelayError]) -> Iterator[RelayError]:
    for error in errors.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
