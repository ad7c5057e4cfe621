"""Masks: what stands between two positions of a text is replaced, character by character, before it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from relay.pure.fold import fold

MASK: Final = "*"


def masked(text: str, start: int, masks: Sequence[tuple[int, int]]) -> str:
    """`text`, which begins at `start`, without what stands in `masks`; all in canonical characters of the surface.

    As long as it was: one `*` for each character of which a mask covers any part, and for those hidden between them.
    """
    result = []
    position = start
    for char in text:
        end = position + len(fold(char))
        covered = any(first < end and position < last for first, last in masks)
        result.append(MASK if covered else char)
        position = end
    return "".join(result)
