"""What a test of async code should leave behind, which is nothing, and what it should never do: block the loop.

with refusing_to_block([folder_of_my_plugin]):
    ...  # a call that blocks, made on a loop's thread below code of that folder, raises Blocked
"""

from __future__ import annotations

import asyncio
import builtins
import functools
import io
import os
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

_TURNS: Final = 50  # of the loop, after which what was closed is closed: a few are enough

# What may wait for a disk, a name server, a process or the clock. (blockbuster knows more calls, and needs a package that
# is not to be had as a wheel.)
_BLOCKING: Final[tuple[tuple[Any, str], ...]] = (
    (builtins, "open"),
    (io, "open"),
    *((os, name) for name in "listdir mkdir open remove rename replace rmdir scandir stat unlink".split()),
    (socket, "getaddrinfo"),
    (subprocess.Popen, "__init__"),
    (time, "sleep"),
)
_MAY_BLOCK: Final = (
    "/relay/assembly.py",  # the start: nothing is served yet
    "/relay/store/port.py",  # a script is read when its module is imported
    "/linecache.py",  # a traceback shows its lines
    "/relay/secret.py",  # one stat a second, to see that a key was changed
    "/prometheus_client/process_collector.py",  # /proc is on no disk
    "/relay/metrics/exposition.py",  # it sleeps for no time, in a thread of its own; tests read the counts in theirs
)


class Blocked(Exception):
    """A call that blocks, on a loop's thread, below code that must not."""


@contextmanager
def refusing_to_block(ours: Iterable[str], but: Iterable[str] = ()) -> Iterator[None]:
    """Refuse calls that block while the block runs, on a loop's thread.

    ours: folders whose code must make none, by whatever it calls. but: files and folders in them that may.
    """
    paths, excepted = _Places(ours), _Places(but)
    with ExitStack() as stack:
        for where, name in _BLOCKING:
            stack.enter_context(patch.object(where, name, _refusing(getattr(where, name), paths, excepted)))
        yield


class _Places:
    """Folders and files."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = frozenset(path.rstrip(os.sep) for path in paths)
        self._folders = tuple(path + os.sep for path in self._paths)

    def hold(self, path: str) -> bool:
        return path.startswith(self._folders) or path in self._paths


def _refusing(call: Callable[..., Any], ours: _Places, but: _Places) -> Callable[..., Any]:
    @functools.wraps(call)
    def refuse(*arguments: Any, **options: Any) -> Any:
        if asyncio._get_running_loop() is not None and _below(ours, but):
            raise Blocked(call.__qualname__, *arguments)
        return call(*arguments, **options)

    return refuse


def _below(ours: _Places, but: _Places) -> bool:
    frame, found = sys._getframe(2), False
    while frame is not None:
        path = frame.f_code.co_filename
        if path.endswith(_MAY_BLOCK):
            return False
        found = found or (ours.hold(path) and not but.hold(path) and path != __file__)
        frame = frame.f_back  # type: ignore[assignment]
    return found


def of_tests(test: Path, root: Path) -> list[str]:
    """What is no code of the project that has this test: its tests, and what is installed, which may lie in its folder too.

    Beside the code that it tries, as where there is no folder of tests, a test is no more than its own file and a conftest.py.
    """
    folders = [folder for folder in test.parents if root in folder.parents and folder.name.startswith("test")]
    tests = folders or [test, test.with_name("conftest.py")]
    return [*map(str, tests), *(sysconfig.get_path(name) for name in ("purelib", "platlib"))]


async def tasks_left() -> set[asyncio.Task[Any]]:
    """The tasks of this loop beside the running one, after what was closed has had its turns."""
    for _ in range(_TURNS):
        await asyncio.sleep(0)
    return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}


def open_sockets() -> set[str]:
    """The open sockets of this process by inode ("socket:[4711]"); none where there is no /proc."""
    found: set[str] = set()
    try:
        descriptors = os.listdir("/proc/self/fd")
    except FileNotFoundError:
        return found
    for descriptor in descriptors:
        try:
            target = os.readlink(f"/proc/self/fd/{descriptor}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found
