"""The moderator `lexicon`: phrases from the configuration and from files, which may change while the relay runs.

A new list is read and built in a thread and takes the old one's place in one assignment. Replies that have begun keep the
list they began with: what they hold back is the head of a phrase of that list. Requests and new replies meet the new one.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from relay.log import Logger
from relay.moderator import ScanningModerator
from relay.plugin import Services
from relay.pure.window import Hit
from relay.watch import Watch
from relay_plugins.lexicon.lists import WordList
from relay_plugins.lexicon.phrases import Phrases
from relay_plugins.lexicon.scanner import PhraseScanner

# How often files are looked at. A change is in force after two looks.
LOOK_S = 2.0


class Lexicon(ScanningModerator):
    """Finds the phrases of word lists.

    words: phrases. files: one phrase a line, UTF-8; # begins a comment. They are watched: a changed file is read again.
    label: what a hit is called in logs and metrics. action: block ends the choice, mask hides the phrase, review only
    counts. whole_words: Latin phrases match whole words only.
    lists: more lists, each a table of these five. Where several have a phrase, the strictest action and its label hold.
    """

    words: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    label: Annotated[str, Meta(min_length=1)] = "lexicon"
    action: Literal["block", "mask", "review"] = "block"
    whole_words: bool = True
    lists: tuple[WordList, ...] = ()

    _lists: tuple[WordList, ...] = dataclasses.field(init=False)
    _watch: Watch = dataclasses.field(init=False)
    _phrases: Phrases = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        own = WordList(
            words=self.words, files=self.files, label=self.label, action=self.action, whole_words=self.whole_words
        )
        for index, each in enumerate(self.lists):
            if not (each.words or each.files):
                raise ValueError(f"lists[{index}] has no phrases; give it words = [...] or files = [...]")
        self._lists = (own, *self.lists) if self.words or self.files else self.lists
        if not self._lists:
            raise ValueError("there are no phrases; give words = [...] or files = [...]")
        self._watch = Watch(path for each in self._lists for path in each.files)
        self._phrases = self._read()

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        services.metrics.add_moderator("lexicon", {each.label for each in self._lists})
        if not any(each.files for each in self._lists):
            yield
            return
        task = asyncio.get_running_loop().create_task(self._follow(services.log))
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def scanner(self) -> PhraseScanner:
        return PhraseScanner(self._phrases)

    def find(self, text: str) -> Sequence[Hit]:
        return self._phrases.whole(text)

    def recall(self, text: str) -> Sequence[Hit]:
        return self._phrases.recall(text)

    def _read(self) -> Phrases:
        return Phrases((phrase for each in self._lists for phrase in each.phrases()), "lexicon")

    async def _follow(self, log: Logger) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                phrases = await asyncio.to_thread(self._reread)
            except ValueError as error:
                log.warning("lexicon_kept", problem=str(error))
            except Exception:
                log.exception("lexicon_kept")
            else:
                if phrases is not None:
                    self._phrases = phrases
                    log.info("lexicon_replaced", phrases=len(phrases))

    def _reread(self) -> Phrases | None:
        """The phrases anew if the files have changed. Raises ValueError if that cannot be."""
        if not self._watch.changed():
            return None
        try:
            phrases = self._read()
        except ValueError:
            if self._watch.still():
                raise
            return None  # they are being written, and will be read when that is over
        return phrases if self._watch.still() else None
