"""Whether audit files are as they were written: each line holds the hash of the one before it, from file to file.

A chain that is whole can have lost its end: the last lines of a file that has no line `end`, as of a process that runs or was
killed. The log has the hash of the last line of every file that was ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from relay_plugins.audit.file import NOTHING_BEFORE, PREFIX


@dataclass(slots=True)
class Checked:
    """One file. first, next: the numbers of its first line, and of the one that would follow. last: the hash of its last line.

    before: the hash that its first line holds. after: the file that it goes on from. ended: it has a line `end`.
    torn: bytes of half a line at its end. lost: records that were counted instead of written. problem: what is wrong.
    """

    path: Path
    first: int = 0
    next: int = 0
    before: str = NOTHING_BEFORE
    last: str = NOTHING_BEFORE
    after: str | None = None
    ended: bool = False
    torn: int = 0
    lost: int = 0
    problem: str = ""


def files(paths: Iterable[Path]) -> Iterator[Path]:
    """Those that are named, and those in the folders that are."""
    for path in paths:
        if path.is_dir():
            yield from sorted(path.glob(f"{PREFIX}*.jsonl"))
        else:
            yield path


def verify(paths: Iterable[Path]) -> list[Checked]:
    """Look at all of these files, and at how they follow each other. Raises OSError."""
    found = [check(path) for path in dict.fromkeys(files(paths))]
    sound: dict[str, list[Checked]] = {}  # copies in several folders have one name
    for checked in found:
        if not checked.problem:
            sound.setdefault(checked.path.name, []).append(checked)
    followers: dict[str, str] = {}
    for checked in found:
        if checked.problem or checked.after is None:
            continue
        other = followers.setdefault(checked.after, checked.path.name)
        before = sound.get(checked.after, [])
        beside = [each for each in before if each.path.parent == checked.path.parent]
        if other != checked.path.name:
            checked.problem = f"goes on from {checked.after}, as {other} does"
        elif before and (checked.first, checked.before) not in [(each.next, each.last) for each in beside or before]:
            checked.problem = f"does not go on where {checked.after} ends"
    return found


def check(path: Path) -> Checked:
    """Look at one file. Raises OSError."""
    checked = Checked(path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.endswith(b"\n"):
                if checked.ended:
                    checked.problem = f"line {number}: stands behind the end"
                checked.torn = len(raw)
                break
            line = raw[:-1]
            if problem := _wrong(checked, number, line):
                checked.problem = f"line {number}: {problem}"
                return checked
            checked.last = hashlib.sha256(line).hexdigest()
    if checked.next == checked.first:
        checked.problem = "has no line"
    return checked


def _wrong(checked: Checked, number: int, line: bytes) -> str:
    """What is wrong with a line after those that were looked at; "" if nothing is, and then it was taken in."""
    try:
        said = orjson.loads(line)
        kind, seq, prev = said["kind"], said["seq"], said["prev"]
    except (ValueError, TypeError, LookupError):
        return "is no record"
    if number == 1:
        if kind != "begin" or type(seq) is not int or type(prev) is not str:
            return "is not the beginning of a file"
        after = said.get("after")
        checked.after = after if after is None else str(after)
        if checked.after is None and (seq, prev) != (0, NOTHING_BEFORE):
            return "is not the beginning of a chain"
        if said.get("file", checked.path.name) != checked.path.name:
            return "is of a file with another name: this is a copy of it, or it was renamed"
        checked.first, checked.before = seq, prev
        checked.next = seq
    elif checked.ended:
        return "stands behind the end"
    elif (seq, prev) != (checked.next, checked.last):
        return "does not go on from the line before it: one of the two was changed, or lines were taken out or put in"
    checked.next += 1
    checked.ended = kind == "end"
    if kind == "lost" and type(count := said.get("count")) is int:
        checked.lost += count
    return ""
