"""Where counts are kept: in numbers of this process alone, or in files that others read while it counts.

Whatever is counted is counted on one thread, so a number in a list is enough for it: prometheus-client's values take a
lock each, and those in files are looked up and packed again at each increment. A file is of its format all the same (see
`prometheus_client.mmap_dict`), which its `MultiProcessCollector` reads; it is mapped, and counted in where it lies. So a
count is in the file at once, and a process that is killed loses none.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, TypeAlias

from prometheus_client.mmap_dict import MmapedDict, mmap_key

from relay.metrics.families import Family

Cells: TypeAlias = "list[float] | memoryview[float]"

Named: TypeAlias = tuple[str, Mapping[str, str]]
"""What one number is exposed as: its name, and its labels with their values."""

_LEAST_BYTES = 1 << 16
_UNIT = 8  # bytes of a cell; everything in a file lies at multiples of it


class Keeper(Protocol):
    """Gives numbers a place."""

    def place(self, family: Family, samples: Sequence[Named]) -> tuple[Cells, tuple[int, ...]]:
        """Cells, and which of them are those of `samples`; each holds what has been counted so far."""
        ...


class Private:
    """Numbers that only this process reads, from 0."""

    def place(self, family: Family, samples: Sequence[Named]) -> tuple[Cells, tuple[int, ...]]:
        return [0.0] * len(samples), tuple(range(len(samples)))


class Shared:
    """Numbers in the files of one worker in `folder`. They go on from what stands there."""

    def __init__(self, folder: Path, worker: int | str) -> None:
        self._folder = folder
        self._worker = worker
        self._files: dict[str, _File] = {}

    def place(self, family: Family, samples: Sequence[Named]) -> tuple[Cells, tuple[int, ...]]:
        kind = f"gauge_{family.across or 'livesum'}" if family.type == "gauge" else family.type
        file = self._files.get(kind)
        if file is None:
            file = self._files[kind] = _File(self._folder / f"{kind}_{self._worker}.db")
        name = stem(family)
        keys = [mmap_key(name, each, list(labels), list(labels.values()), family.help) for each, labels in samples]
        return file.place(keys)


class _File:
    """A header that says how many bytes are used; then, for each number, its key, filled up with spaces, and two doubles,
    of which the second is a time that we have no use for."""

    def __init__(self, path: Path) -> None:
        # Kept open: it may have to grow when its folder is gone with the supervisor.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._map(max(_LEAST_BYTES, os.fstat(self._descriptor).st_size))
        known = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        self._places: dict[str, int] = {key: position // _UNIT for key, _, _, position in known}
        self._used = struct.unpack_from("i", self._mapped)[0] or _UNIT

    def _map(self, size: int) -> None:
        # Whoever counts in what was mapped before goes on in it: it is the same memory.
        os.truncate(self._descriptor, size)
        self._mapped = mmap.mmap(self._descriptor, size)
        self._cells = memoryview(self._mapped).cast("d")

    def place(self, keys: Sequence[str]) -> tuple[Cells, tuple[int, ...]]:
        places = tuple([self._places.get(key) or self._add(key) for key in keys])
        return self._cells, places

    def _add(self, key: str) -> int:
        named = key.encode()
        filled = named + b" " * (_UNIT - (len(named) + 4) % _UNIT)
        entry = struct.pack(f"i{len(filled)}sdd", len(named), filled, 0.0, 0.0)
        while self._used + len(entry) > len(self._mapped):
            self._map(2 * len(self._mapped))
        end = self._used + len(entry)
        self._mapped[self._used : end] = entry
        # Only now is it there for whoever reads.
        self._mapped[:4] = struct.pack("i", end)
        self._used = end
        place = self._places[key] = end // _UNIT - 2
        return place


def stem(family: Family) -> str:
    """The name of the metric that samples belong to: prometheus-client's, of a counter without the end."""
    return family.name.removesuffix("_total") if family.type == "counter" else family.name


keeper: Keeper = Private()
"""Of the `Metrics` that are made from now on."""


def keep(new: Keeper) -> None:
    global keeper  # noqa: PLW0603 - as prometheus-client has one way for a whole process
    keeper = new
