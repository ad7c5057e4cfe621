"""Replies that are kept: so many bytes in all, the one that was asked for last the longest, none longer than it is good."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Final

from cachetools import LRUCache

# What an entry takes beside the bytes of its reply: its key, itself, and its places in three dictionaries; 430 in CPython 3.11.
OVERHEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """A reply as its upstream gave it; what it says is not in its repr.

    data: its events without the last, or its body. done: the bytes of the event that ended it. hides_usage: as it was of
    its exchange. at: when it was kept, by the clock of `Entries`, in seconds.
    """

    data: bytes
    done: bytes
    hides_usage: bool
    at: float


class Entries:
    """The replies that are kept, by key. max_bytes: of all. ttl_s: for how long each is good.

    One that is no longer good goes when it is asked for, or when its room is needed: to sweep sixty thousand of them out at
    once, as a cache with timers does, keeps all streams waiting for 50 ms.
    """

    def __init__(self, max_bytes: int, ttl_s: float, clock: Callable[[], float] = monotonic) -> None:
        self._ttl_s = ttl_s
        self._clock = clock
        self._kept: LRUCache[bytes, Entry] = LRUCache(max_bytes, getsizeof=_size)

    def find(self, key: bytes) -> tuple[Entry, float] | None:
        """A reply that is still good, and its age in seconds."""
        entry = self._kept.get(key)
        if entry is None:
            return None
        age_s = self._clock() - entry.at
        if age_s >= self._ttl_s:
            del self._kept[key]
            return None
        return entry, age_s

    def keep(self, key: bytes, data: bytes, done: bytes, *, hides_usage: bool) -> None:
        """Keep a reply, in the place of an older one. Raises ValueError if it is larger than all may be."""
        self._kept[key] = Entry(data, done, hides_usage, self._clock())

    def forget(self, key: bytes) -> None:
        """It is given no more."""
        self._kept.pop(key, None)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def size(self) -> int:
        """How many bytes they take."""
        return round(self._kept.currsize)


def _size(entry: Entry) -> int:
    return len(entry.data) + OVERHEAD_BYTES
