"""A reply that is not streamed, looked at as a whole: most say nothing that anybody finds, and leave as they came.

Only a short way, for which no runs are made: what is clean here, the guard would release as it is
(`tests/pure/test_whole.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from relay.pure.choice import MAX_SURFACES
from relay.pure.fold import fold_seen
from relay.pure.guard import MAX_CHOICES
from relay.pure.openai import Chunk, has_repeated_key
from relay.pure.surfaces import read
from relay.pure.window import MAX_NOTHING


def clean(chunk: Chunk, finds: Callable[[str], object]) -> int | None:
    """How many characters a whole reply says; None if it is not of the commonest kind, or something is found in it.

    finds: what is true of a canonical text, there as a whole, in which something is found.
    """
    frame = chunk.json
    if frame is None or chunk.lenient or not chunk.plain:
        return None
    try:
        reading = read(frame, whole=True)
    except (ValueError, RecursionError):
        return None
    parts = reading.choices
    if reading.unknown or reading.loose or has_repeated_key(chunk.data, reading.keys, frame):
        return None
    if len(parts) > 1 and (len(parts) > MAX_CHOICES or _repeats([part.index for part in parts])):
        return None
    said = 0
    for part in parts:
        texts = part.texts
        if len(texts) > 1 and (len(texts) > MAX_SURFACES or _repeats([surface for surface, _, _ in texts])):
            return None
        for _, kind, text in texts:
            copy = None if kind else fold_seen(text, MAX_NOTHING)
            if copy is None or finds(copy):
                return None
            said += len(text)
    return said


def _repeats(items: Sequence[int | str]) -> bool:
    return len(set(items)) < len(items)
