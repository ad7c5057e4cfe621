"""For plugins that read more of a reply than the text that it streams: all that a frame says, and JSON to the digit.

Who changes text is better served by `relay.text`, which knows of pieces and of what is held.
"""

from __future__ import annotations

from relay.pure.openai import Chunk, dump, has_repeated_key, load_exactly, nests_deeply
from relay.pure.places import known
from relay.pure.plain import plain_text
from relay.pure.sse import Decoder
from relay.pure.surfaces import ChoiceReading, IndexUnclearError, Kind, Reading, finished, read

__all__ = [
    "ChoiceReading",
    "IndexUnclearError",
    "Kind",
    "Reading",
    "dump",
    "events",
    "finished",
    "has_repeated_key",
    "known",
    "load_exactly",
    "nests_deeply",
    "read",
]


def events(data: bytes) -> tuple[Chunk, ...]:
    """The events of a stream, the bytes of which are all there; what follows the last of them is none.

    Raises relay.pure.sse.EventTooLarge.
    """
    decoder = Decoder(Chunk)
    chunks = (*decoder.feed(data), *decoder.close())
    for chunk in chunks:  # as an upstream's are known, so that sinks treat them in the same way
        if chunk.plain:
            chunk.said = plain_text(chunk.data)
    return chunks
