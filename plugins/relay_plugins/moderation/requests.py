"""The texts of a request, shown to moderators before the upstream says anything that a client sees.

Moderators that read along (a lexicon) see all of them first and for nothing; those that have to be asked see pieces of
what is left, several at a time. A conversation is sent again with every turn of it: what was judged a moment ago is not
asked for again (`relay.verdicts`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Final, Literal

from relay.errors import ModerationError, Reject, RelayError
from relay.exchange import CALLER, Exchange, Outcome
from relay.judge import Judge, Unjudged
from relay.log import Logger
from relay.metrics import Metrics, ModerationTally
from relay.moderator import Context, ScanningModerator
from relay.pure.fold import fold
from relay.pure.ruling import Action
from relay.pure.transcript import MAX_SHOWN_CHARS, Transcript
from relay.pure.window import Hit

# Longer texts are read in slices, and many texts in batches, so that other streams get their turn in between.
SLICE_CHARS: Final = 65_536
SLICE_TEXTS: Final = 512
# How many pieces of one request are asked about at a time. A long conversation is no reason to keep others waiting.
AT_A_TIME: Final = 8

Piece = tuple[str, int, str]
"""Where it stands, at which canonical character, and what a moderator is shown."""


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
        self._judge = judge
        self._overlap = overlap
        self._on_failure = on_failure
        self._log = log
        self._metrics = metrics

    async def check(self, ex: Exchange) -> None:
        """Raises Reject if a text may not go on, ModerationError if nobody can say."""
        tally = ModerationTally()
        try:
            pieces = await self._scan(ex, tally)
            if self._judge is not None and pieces:
                await self._ask_all(ex, self._judge, pieces, tally)
        finally:
            self._metrics.moderated(tally)

    async def refusal(self, ex: Exchange) -> RelayError | None:
        """What `check` raises, if it does, while an upstream is at work: that is stopped, even if it has not answered."""
        try:
            await self.check(ex)
        except ModerationError:
            error: RelayError = unavailable(acted=True)
        except RelayError as refused:
            error = refused
        else:
            return None
        ex.stop(Outcome("refused", error))
        return error

    async def _scan(self, ex: Exchange, tally: ModerationTally) -> list[Piece]:
        """Show all texts to the moderators that read along. The pieces that the others have to be asked about."""
        pieces: list[Piece] = []
        for number, (place, text) in enumerate(ex.request.texts(), 1):
            if number % SLICE_TEXTS == 0:
                await asyncio.sleep(0)
            scanners = [moderator.scanner() for moderator in self._scanning]
            transcript = Transcript()
            async for written in _slices(text):
                copy = fold(written)
                for scanner in scanners:
                    self._scanned(ex, place, scanner.feed(copy), tally)
                if self._scanning:
                    tally.checked += len(copy)
                if self._judge is not None:
                    transcript.append(written, copy)
                    pieces += ((place, start, shown) for start, shown in self._cut(transcript, last=False))
            for scanner in scanners:
                self._scanned(ex, place, scanner.finish(), tally)
            pieces += ((place, start, shown) for start, shown in self._cut(transcript, last=True))
        return pieces

    def _scanned(self, ex: Exchange, place: str, hits: Iterable[Hit], tally: ModerationTally) -> None:
        for hit in hits:
            self._found(ex, place, hit.start, hit.label, hit.moderator, hit.action, tally)
            if hit.action in ("mask", "block"):  # a mask would change what the client has said
                raise refused_prompt()

    def _cut(self, transcript: Transcript, *, last: bool) -> Iterator[tuple[int, str]]:
        """The whole pieces of what there is of a text; at its `last` also what is left."""
        while transcript.end - transcript.start > (0 if last else MAX_SHOWN_CHARS):
            passage = transcript.passage(transcript.start, transcript.start + MAX_SHOWN_CHARS)
            if passage.shown is passage.copy:  # it hides something, and there has to be room for both
                passage = transcript.passage(transcript.start, transcript.start + MAX_SHOWN_CHARS // 2 - 1)
            yield passage.start, passage.shown
            end = passage.start + len(passage.copy)
            # A short piece must not be all overlap: the next one has to come further.
            overlap = min(self._overlap, len(passage.copy) // 2) if end < transcript.end else 0
            transcript.forget(end - overlap)

    async def _ask_all(self, ex: Exchange, judge: Judge, pieces: Sequence[Piece], tally: ModerationTally) -> None:
        waiting = iter(pieces)

        async def ask() -> None:
            for place, start, shown in waiting:
                await self._ask(ex, judge, place, start, shown, tally)

        if len(pieces) == 1:
            await ask()
            return
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(AT_A_TIME, len(pieces))):
                    group.create_task(ask())
        except* RelayError as errors:
            raise next(_leaves(errors)) from None

    async def _ask(
        self, ex: Exchange, judge: Judge, place: str, start: int, shown: str, tally: ModerationTally
    ) -> None:
        ruling = await judge.check_text(shown, context_of(ex, "request", place), tally)
        if isinstance(ruling, Unjudged):
            if self._on_failure == "closed":
                raise unavailable(acted=False)
            self._log.warning(
                "request goes on unchecked",
                request_id=ex.id,
                place=place,
                characters=len(shown),
                moderator=ruling.moderator,
                reason=ruling.reason,
            )
            return
        if ruling.action == "pass":
            return
        self._found(
            ex, place, start, ruling.label, ruling.moderator, ruling.action, tally, ruling.score, ruling.reference
        )
        if ruling.action != "review":
            raise refused_prompt()

    def _found(
        self,
        ex: Exchange,
        place: str,
        position: int,
        label: str,
        moderator: str,
        action: Action,
        tally: ModerationTally,
        score: int = 0,
        reference: str = "",
    ) -> None:
        violation = (moderator, label)
        tally.violations[violation] = tally.violations.get(violation, 0) + 1
        self._log.info(
            "violation",
            request_id=ex.id,
            direction="request",
            place=place,
            position=position,
            label=label,
            score=score,
            moderator=moderator,
            reference=reference or None,
            action=action,
        )


def context_of(ex: Exchange, direction: Literal["request", "response"], surface: str = "") -> Context:
    user = ex.request.get("user", "")
    return Context(
        ex.id,
        direction,
        surface,
        caller=ex.get(CALLER, ""),
        user=user if isinstance(user, str) else "",
        headers=ex.headers,
    )


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
