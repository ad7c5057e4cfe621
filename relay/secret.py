"""One value that must not be seen: a key, a token, a URL that carries a password.

A secret comes from the configuration in place, or by reference to the environment or a file. Its only way out is
`reveal()`, called where the value is put on a wire. This hides it from logs, tracebacks and dumps; it does not protect
the memory of the process.

A file is looked at again, so a key is changed without a restart: whoever calls `reveal()` each time instead of keeping
what it gave has the new value within about a second. That look is one stat a second, on the loop, and a read when the
file has changed; a file that hangs (a network's) hangs the relay.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from time import monotonic
from typing import Final, NoReturn

FORMS = 'a string, { env = "NAME" } or { file = "path" }'

_LOOK_EVERY_S: Final = 1.0
_MAX_BYTES: Final = 65_536  # a key is smaller; what has grown beyond that is another file


class Secret:
    """A str that repr, str, format and pickle do not show."""

    __slots__ = ("_looked_at", "_path", "_state", "_value")

    def __init__(self, value: str) -> None:
        self._value = value
        self._path: Path | None = None  # where it may change
        self._state: tuple[int, ...] = ()  # of the file when it was last read
        self._looked_at = 0.0

    @classmethod
    def read(cls, source: object, folder: Path, environ: Mapping[str, str]) -> "Secret":
        """The secret that a configuration value stands for.

        A file's path starts at `folder`, and one newline at its end is dropped. Raises ValueError with the remedy, and
        never with the value, also where that is of the wrong type.
        """
        path: Path | None = None
        state: tuple[int, ...] = ()
        match source:
            case str():
                value, origin = source, "the value"
            case {"env": str(name), **rest} if not rest:
                value, origin = _variable(name, environ), f"environment variable {name}"
            case {"file": str(name), **rest} if not rest:
                path = folder / name
                state = _state(path)
                value, origin = _content(path), f"file {path}"
            case _:
                raise ValueError(f"a secret is {FORMS}")
        # An empty key would be sent as one, and an empty token would be matched by one.
        if not value:
            raise ValueError(f"{origin} is empty; set it, or leave the option out")
        secret = cls(value)
        secret._path, secret._state, secret._looked_at = path, state, monotonic()
        return secret

    def reveal(self) -> str:
        """The value. Of a file the one that stands there now, or did a second ago.

        Never raises: while the file is gone, empty, not to be read or not UTF-8, it is the last good value.
        """
        if self._path is not None and monotonic() - self._looked_at >= _LOOK_EVERY_S:
            self._look(self._path)
        return self._value

    def _look(self, path: Path) -> None:
        self._looked_at = monotonic()
        # Before the content is read: what is written between the two is seen the next time.
        state = _state(path)
        if not state or state == self._state:
            return
        self._state = state
        try:
            self._value = _content(path) or self._value
        except ValueError:
            return

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied; pass what it was read from")


def _variable(name: str, environ: Mapping[str, str]) -> str:
    try:
        return environ[name]
    except KeyError:
        raise ValueError(f"environment variable {name} is not set; set it, or give {FORMS}") from None


def _state(path: Path) -> tuple[int, ...]:
    """What changes when a file does; () where there is no plain file. One that took its place has another inode."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    if not stat.S_ISREG(found.st_mode):
        return ()  # a pipe is read once: the second time nobody writes into it
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"file {path} is longer than {_MAX_BYTES} bytes, so it holds no secret; check its path")
        value = data.decode()
    except OSError as error:
        raise ValueError(f"file {path} cannot be read ({error.strerror}); make it readable, or give {FORMS}") from error
    except UnicodeDecodeError:
        # The error object holds the file's bytes: it is not chained.
        raise ValueError(f"file {path} is not UTF-8 text") from None
    return value.removesuffix("\n").removesuffix("\r")
