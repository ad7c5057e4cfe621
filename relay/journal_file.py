"""One process's journal on disk: a JSON object a line, in a file that it holds under flock.

Everything here blocks and belongs to a thread, one call at a time. A file gets its name when it is locked, so whoever can
lock a file that has one knows that its process is dead.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from relay.failpoint import hit


class Settlement(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `Ledger.settle` is to be told. put_at: seconds since 1970, by the machine's clock."""

    unit: str
    account: str
    id: str
    amount: int
    put_at: float
    note: dict[str, str | int] = {}


class Line(NamedTuple):
    """A settlement, and as it is written."""

    settlement: Settlement
    raw: bytes


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Settlement).decode


def line_of(settlement: Settlement) -> Line:
    """Raises ValueError for what JSON cannot say, as half a surrogate pair."""
    return Line(settlement, _encode(settlement) + b"\n")


class JournalFile:
    """size: in bytes; 0 while there is none. sound: False if the end of it is unknown, since it could not be written."""

    def __init__(self, folder: Path) -> None:
        self.size = 0
        self.sound = True
        self._folder = folder
        self._path: Path | None = None
        self._fd = -1

    def append(self, lines: Sequence[Line]) -> None:
        """They outlive the process when this returns. After an OSError use `replace`."""
        if self._path is None:
            self._begin()
        data = b"".join(line.raw for line in lines)
        rest = memoryview(data)
        self.sound = False
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        os.fsync(self._fd)
        self.sound = True
        self.size += len(data)
        hit("journal_fsynced")

    def replace(self, lines: Sequence[Line]) -> None:
        """Go on in a new file that begins with these. After an OSError the old one stands."""
        new = JournalFile(self._folder)
        try:
            new.append(lines)
        except OSError:
            with suppress(OSError):
                new.remove()
            raise
        self.remove()
        self._path, self._fd, self.size, self.sound = new._path, new._fd, new.size, True

    def remove(self) -> None:
        """Nothing of it is wanted any more."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Whoever comes next may have it."""
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd, self.size, self.sound = None, -1, 0, True

    def take_over(self, entries_max: int, bytes_max: int) -> tuple[list[Line], int]:
        """Move what the dead left into this file; and how many lines of it cannot be read.

        One file in any case, others while all are within the bounds.
        """
        taken: list[Line] = []
        broken = 0
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                found = [] if path == self._path else self._take_over(path, taken, entries_max, bytes_max)
            except OSError:
                if not taken:
                    raise
                break
            taken += [line for line in found if line is not None]
            broken += found.count(None)
        for path in self._folder.glob("*.new"):  # nothing is in them yet
            if not _is_running(path.name.partition("-")[0]):
                path.unlink(missing_ok=True)
        return taken, broken

    def _take_over(self, path: Path, taken: list[Line], entries_max: int, bytes_max: int) -> list[Line | None]:
        """What a file held, if it is nobody's and there is room beside what was taken."""
        try:
            file = path.open("rb")
        except (FileNotFoundError, PermissionError):  # gone meanwhile; somebody else's
            return []
        with file:
            if not _lock(file.fileno()):
                return []
            found = [_line(raw) for raw in file.read().splitlines()]
            lines = [line for line in found if line is not None]
            size = sum(len(line.raw) for line in taken + lines)
            if taken and (len(taken) + len(lines) > entries_max or size > bytes_max):
                return []
            if lines:
                self.append(lines)
            path.unlink()
            return found

    def _begin(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._folder / f"{os.getpid()}-{secrets.token_hex(8)}.jsonl"
        fresh = path.with_suffix(".new")
        fd = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fresh.rename(path)
            _sync_folder(self._folder)
        except OSError:
            os.close(fd)
            fresh.unlink(missing_ok=True)
            raise
        self._path, self._fd = path, fd


def _line(raw: bytes) -> Line | None:
    try:
        return Line(_decode(raw), raw + b"\n")
    except msgspec.MsgspecError:
        return None


def _is_running(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # somebody else's
    return True


def _lock(fd: int) -> bool:
    """Whether nobody held it, and it is still there: another may have taken it over between `open` and this."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(fd).st_nlink > 0


def _sync_folder(folder: Path) -> None:
    """A name outlives a power cut once its folder is on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
