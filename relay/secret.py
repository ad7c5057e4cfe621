"""One value that must not be seen: a key, a token, a URL that carries a password.

A secret comes from the configuration in place, or by reference to the environment or a file. Its only way out is
`reveal()`, called where the value is put on a wire. This hides it from logs, tracebacks and dumps; it does not protect
the memory of the process.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

FORMS = 'a string, { env = "NAME" } or { file = "path" }'


class Secret:
    """A str that repr, str, format and pickle do not show."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    @classmethod
    def read(cls, source: object, folder: Path, environ: Mapping[str, str]) -> "Secret":
        """The secret that a configuration value stands for.

        A file's path starts at `folder`, and one newline at its end is dropped. Raises ValueError with the remedy, and
        never with the value, also where that is of the wrong type.
        """
        match source:
            case str():
                value, origin = source, "the value"
            case {"env": str(name), **rest} if not rest:
                value, origin = _variable(name, environ), f"environment variable {name}"
            case {"file": str(name), **rest} if not rest:
                value, origin = _content(folder / name), f"file {folder / name}"
            case _:
                raise ValueError(f"a secret is {FORMS}")
        # An empty key would be sent as one, and an empty token would be matched by one.
        if not value:
            raise ValueError(f"{origin} is empty; set it, or leave the option out")
        return cls(value)

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled or copied; pass what it was read from")


def _variable(name: str, environ: Mapping[str, str]) -> str:
    try:
        return environ[name]
    except KeyError:
        raise ValueError(f"environment variable {name} is not set; set it, or give {FORMS}") from None


def _content(path: Path) -> str:
    try:
        value = path.read_bytes().decode()
    except OSError as error:
        raise ValueError(f"file {path} cannot be read ({error.strerror}); make it readable, or give {FORMS}") from error
    except UnicodeDecodeError:
        # The error object holds the file's bytes: it is not chained.
        raise ValueError(f"file {path} is not UTF-8 text") from None
    return value.removesuffix("\n").removesuffix("\r")
