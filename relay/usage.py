"""The usage at the end of a stream that a meter of ours asked for, and the client did not."""

from __future__ import annotations

from relay.plugin import Sink
from relay.pure.openai import Chunk, PlainChunk


class UsageFilter:
    """The sink next to the writer of such a reply: it drops the frame that says usage and nothing else.

    `usage: null` in frames with text stays, which some upstreams send because we asked, and so does a usage beside text.
    """

    __slots__ = ("_sink", "end")

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.end = sink.end

    def feed(self, chunk: Chunk) -> None:
        # A plain chunk says text, and only what may hold the frame is parsed.
        if type(chunk) is PlainChunk or b'"usage"' not in chunk.raw or not _only_usage(chunk):
            self._sink.feed(chunk)


def _only_usage(chunk: Chunk) -> bool:
    frame = chunk.json
    return frame is not None and not frame.get("choices") and isinstance(frame.get("usage"), dict)
