"""The moderator `lexicon`: phrases from the configuration and from files."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal

from relay.moderator import ScanningModerator
from relay.plugin import Services
from relay.pure.window import Hit
from relay_plugins.lexicon.phrases import Phrases, PhraseScanner


class Lexicon(ScanningModerator):
    """Finds the phrases of a word list.

    words: phrases. files: one phrase a line, UTF-8; empty lines and lines that begin with # are skipped.
    label: what a hit is called in logs and metrics. action: block ends the choice, review only counts.
    whole_words: Latin phrases match whole words only.
    """

    words: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    label: str = "lexicon"
    action: Literal["block", "review"] = "block"
    whole_words: bool = True

    _phrases: Phrases = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        phrases = [*self.words]
        for path in self.files:
            phrases += _read(path)
        if not phrases:
            raise ValueError("there are no phrases; give words = [...] or files = [...]")
        self._phrases = Phrases(
            phrases,
            label=self.label,
            blocks=self.action == "block",
            moderator="lexicon",
            whole_words=self.whole_words,
        )

    @asynccontextmanager
    async def lifespan(self, services: Services) -> AsyncIterator[None]:
        services.metrics.add_moderator("lexicon", {self.label})
        yield

    def scanner(self) -> PhraseScanner:
        return PhraseScanner(self._phrases)

    def find(self, text: str) -> Sequence[Hit]:
        return self._phrases.hits(text, "", "")


def _read(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path in `files`") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    return [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
