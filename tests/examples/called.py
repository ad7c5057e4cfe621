from relay import Chunk, Exchange, Key, Outcome, Plugin, Sink
from relay.reading import IndexUnclearError, Kind, read

TOOLS = Key("called.tools", list)


class Called(Plugin):
    """Remembers the names of the tools that a reply calls."""

    gives = (TOOLS,)

    async def on_request(self, ex: Exchange) -> None:
        ex[TOOLS] = []

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return _Names(sink, ex[TOOLS], whole=not ex.request.stream)


class _Names:
    """Lets everything through, and looks at what says more than text."""

    def __init__(self, sink: Sink, names: list[str], whole: bool) -> None:
        self._sink, self._names, self._whole = sink, names, whole

    def feed(self, chunk: Chunk) -> None:
        if chunk.said is None and chunk.json is not None:
            try:
                choices = read(chunk.json, whole=self._whole).choices
            except IndexUnclearError:
                choices = []
            names = [text for choice in choices for _, kind, text in choice.texts if kind is Kind.NAME]
            self._names += names[: 100 - len(self._names)]
        self._sink.feed(chunk)

    def end(self, outcome: Outcome) -> None:
        self._sink.end(outcome)
