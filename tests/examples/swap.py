from relay import Exchange, Plugin, Sink
from relay.text import TextSink, begun


class Swap(Plugin):
    """Puts one word in the place of another in every reply."""

    word: str
    by: str = ""

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink(sink, self._swap)

    def _swap(self, text: str, last: bool) -> tuple[str, str]:
        """What may leave of a text, and what is held until more of it has come: the word may be cut."""
        *whole, rest = text.split(self.word)
        held = "" if last else begun(rest, self.word)
        return self.by.join([*whole, rest.removesuffix(held)]), held
