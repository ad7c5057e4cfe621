"""One process's audit files: JSON lines, of which each holds the SHA-256 of the line before it.

Everything here blocks and belongs to a thread, one call at a time. A file has a name that no other has, so two processes,
or two generations of one process, never share one. It begins with a line that says after which file it goes on, if it
does, and ends with one that says so. The hash chain goes on from file to file, so neither lines nor files can be changed,
removed or put in between without a trace, but at its end: so the hash of the last line of each file is logged too.

Whatever goes wrong, be it a full disk or no memory, is handed back as the problem, with the state as it then is: a record
that is not told to be written can be tried again.

(The chain is that of B. Schneier and J. Kelsey, "Secure Audit Logs to Support Computer Forensics", 1999, without keys: who
may write the files and the log can write both anew.)
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import orjson

from relay_plugins.audit.record import Record, stamp

PREFIX: Final = "audit-"
VERSION: Final = 1
NOTHING_BEFORE: Final = "0" * 64
# After a power cut no more than this is missing.
SYNC_S: Final = 1.0


class Closed(NamedTuple):
    """A file that was ended. last: the hash of its last line. lines: of the chain up to there."""

    name: str
    lines: int
    last: str


class AuditFile:
    """The file that is written now; none before `open`, and while there is no room for one.

    dirty: something of it may not be on the disk yet. closed: those that were ended since somebody last looked.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self.dirty = False
        self.closed: list[Closed] = []
        self.name = ""
        self._max_bytes = max_bytes
        self._fd = -1
        self._size = 0
        self._day = ""
        self._next = 0  # the number of the next line in the chain
        self._last = NOTHING_BEFORE
        self._synced_at = 0.0

    def open(self) -> None:
        """Begin the first file. Raises OSError."""
        self._begin()

    def append(self, records: Sequence[bytes]) -> tuple[int, Exception | None]:
        """Write JSON objects as lines; how many are there, and why not all.

        After an error what is left may be tried again: half a line is taken away, or left as the end of its file.
        """
        try:
            self._look()
            if self._fd < 0:
                self._begin()
            elif self._size >= self._max_bytes or self._day != stamp(time.time())[:10]:
                self._end()
                self._begin()
        except Exception as error:  # noqa: BLE001 - see the head of the file
            return 0, error
        written, problem = self._write(records)
        if problem is None and time.monotonic() - self._synced_at >= SYNC_S:
            problem = self.sync()
        return written, problem

    def sync(self) -> Exception | None:
        """See to it that all that was written outlives a power cut; why not, if it cannot be done."""
        try:
            if self._fd >= 0:
                os.fsync(self._fd)
                self._look()
        except Exception as error:  # noqa: BLE001 - see the head of the file
            self._abandon()  # nobody knows what of it is on the disk: a second try would say nothing
            return error
        self.dirty = False
        self._synced_at = time.monotonic()
        return None

    def close(self) -> Exception | None:
        """End the file."""
        try:
            if self._fd >= 0:
                self._end()
        except Exception as error:  # noqa: BLE001 - see the head of the file
            return error
        finally:
            self._abandon()
        return None

    def _look(self) -> None:
        """Raises FileNotFoundError, once, if the file was removed: what is written to it goes nowhere."""
        if self._fd >= 0 and not os.fstat(self._fd).st_nlink:
            self._abandon()
            raise FileNotFoundError(errno.ENOENT, "the file was removed while it was written")

    def _begin(self) -> None:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
        now = stamp(time.time())
        name = f"{PREFIX}{now[:19].replace(':', '').replace('-', '')}Z-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        path = self.folder / name
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        begin: Record = {
            "kind": "begin",
            "time": now,
            "version": VERSION,
            "pid": os.getpid(),
            "file": name,
            "after": self.name or None,
        }
        self._fd, self._size, self._day = fd, 0, now[:10]
        try:
            written, problem = self._write([orjson.dumps(begin)])
            if problem is None:
                os.fsync(fd)
                _sync_folder(self.folder)
        except Exception as error:  # noqa: BLE001 - see the head of the file
            written, problem = 1, error
        if problem is not None:
            self._abandon()
            if not written:
                with suppress(Exception):
                    path.unlink()  # nothing is in it
                raise problem
        self.name = name
        if problem is not None:
            raise problem

    def _end(self) -> None:
        end: Record = {"kind": "end", "time": stamp(time.time())}
        written, problem = self._write([orjson.dumps(end)])
        if problem is None:
            problem = self.sync()
        if written:
            self.closed.append(Closed(self.name, self._next, self._last))
        self._abandon()
        if problem is not None:
            raise problem

    def _abandon(self) -> None:
        fd, self._fd, self.dirty = self._fd, -1, False
        if fd >= 0:
            with suppress(OSError):  # it is closed all the same
                os.close(fd)

    def _write(self, records: Sequence[bytes]) -> tuple[int, Exception | None]:
        lines, hashes, last = [], [], self._last
        for number, record in enumerate(records, self._next):
            line = b'{"seq":%d,"prev":"%s",' % (number, last.encode()) + record[1:]
            last = hashlib.sha256(line).hexdigest()
            lines.append(line + b"\n")
            hashes.append(last)
        rest = memoryview(b"".join(lines))
        problem: Exception | None = None
        done = 0
        try:
            while rest:
                count = os.write(self._fd, rest)
                rest, done = rest[count:], done + count
        except Exception as error:  # noqa: BLE001 - see the head of the file
            problem = error
        self.dirty = self.dirty or done > 0
        whole = 0  # lines that are there, and their bytes
        size = 0
        for line in lines:
            if size + len(line) > done:
                break
            whole, size = whole + 1, size + len(line)
        self._size += size
        if whole:
            self._next, self._last = self._next + whole, hashes[whole - 1]
        if done > size:
            try:
                os.ftruncate(self._fd, self._size)
            except Exception:  # noqa: BLE001 - a file that may only be appended to: the half line stays, and another file goes on
                self._abandon()
        return whole, problem


def _sync_folder(folder: Path) -> None:
    """A name outlives a power cut once its folder is on the disk."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
