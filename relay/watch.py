"""Files, and whether they have changed: by time of change, size and inode, so a new file in the old one's place counts.

Whoever writes a file in place writes it piece by piece. So a change counts when two looks in a row have seen the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class Watch:
    """Looks at files when it is asked; it blocks. Make it before the files are read for the first time."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self._last = self._taken = self._look()

    def changed(self) -> bool:
        """Whether the files are others than those last taken, and rest. They are taken with that: it is said once."""
        last, self._last = self._last, self._look()
        if self._last == self._taken or self._last != last:
            return False
        self._taken = self._last
        return True

    def still(self) -> bool:
        """Whether the files are those last taken."""
        return self._look() == self._taken

    def _look(self) -> list[tuple[int, ...]]:
        return [_marks(path) for path in self._paths]


def _marks(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
