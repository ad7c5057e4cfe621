"""Many strings, found in a text at once: the only file that names the library of the automata.

The library holds the interpreter's lock while it builds an automaton, 0.1 to 0.2 s for 100,000 strings, and all streams
would stand still for so long. So many strings become several automata. Each is a pass over every text more (half a
microsecond for a chunk, 10 to 20 for a kilobyte), which only those pay who have so many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ahocorasick_rs import AhoCorasick, Implementation

# Built in some 30 ms, if neighbours are alike.
SHARD = 34_000

Match = tuple[int, int, int]
"""The index of a string, and where it stands: half-open."""


class Automaton:
    """Built once. `strings` are not empty, and quickest when sorted.

    find: every string that stands in a text, also inside others and across them.
    """

    find: Callable[[str], list[Match]]

    def __init__(self, strings: Sequence[str]) -> None:
        shards = [
            partial(
                AhoCorasick(
                    strings[first : first + SHARD], implementation=Implementation.ContiguousNFA
                ).find_matches_as_indexes,
                overlapping=True,
            )
            for first in range(0, max(1, len(strings)), SHARD)
        ]

        def find(text: str) -> list[Match]:
            found = shards[0](text)
            for number, shard in enumerate(shards[1:], 1):
                matches = shard(text)
                if matches:
                    found += [(number * SHARD + index, start, end) for index, start, end in matches]
            return found

        self.find = find if len(shards) > 1 else shards[0]
