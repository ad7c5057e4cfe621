import re
from dataclasses import field

from relay import Exchange, Plugin, Sink
from relay.text import TextSink

_LAST = re.compile(r"\w*\Z", re.ASCII)  # of Latin letters: others know no words


class WholeWord(Plugin):
    """Puts a word in the place of another where it stands by itself, in whatever letters."""

    word: str
    by: str = ""

    _word: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        self._word = re.compile(rf"\b{re.escape(self.word)}\b", re.IGNORECASE | re.ASCII)

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink(sink, self._swap)

    def _swap(self, text: str, last: bool) -> tuple[str, str]:
        """The last word of a text may go on, so it is held until it ends."""
        end = len(text) if last else len(text) - len(_LAST.search(text)[0])
        return self._word.sub(self.by, text[:end]), text[end:]
