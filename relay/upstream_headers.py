"""The headers that plugins have the request to the upstream carry: `ex.upstream_headers`.

The relay sends an upstream nothing of a client's head, and what it sends itself nobody else may set: a second
Content-Length or a line break in a value would make two requests of one. So names and values are looked at when they are
set, where it is known who set them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from typing import Final

# RFC 9110, 5.6.2 (a name) and 5.5; of a value what is ASCII: what else it may hold is left to nobody's guess.
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE: Final = re.compile(r"[\t\x20-\x7e]*")

# What the relay sets, and what is said to the next server alone (RFC 9110, 7.6.1), which is the relay's to say.
TAKEN: Final = frozenset(
    "accept accept-encoding authorization connection content-encoding content-length content-type expect host keep-alive "
    "proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding upgrade x-request-id".split()
)

# What servers take of a head is some 8 KiB in all; a longer one would fail as if the upstream did.
MAX_BYTES: Final = 4096


class UpstreamHeaders(MutableMapping[str, str]):
    """Header names, in small letters, and their values. Setting one that cannot be sent raises ValueError."""

    __slots__ = ("_lines", "_values")

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._lines: bytes | None = b""  # as they are sent; None: still to be made

    @property
    def lines(self) -> bytes:
        """As they stand in a head, each after its line break."""
        if self._lines is None:
            self._lines = "".join(f"\r\n{name}: {value}" for name, value in self._values.items()).encode()
        return self._lines

    def __setitem__(self, name: str, value: str) -> None:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header; it is made of letters, digits and hyphens")
        name = name.lower()
        if name in TAKEN:
            raise ValueError(f"the relay itself sets {name!r}, or what it stands for; a plugin cannot")
        if not _VALUE.fullmatch(value) or value != value.strip():
            raise ValueError(
                f"the value of {name!r} cannot stand in a head: it takes printable ASCII, without spaces around it"
            )
        kept = sum(len(other) + len(said) + 4 for other, said in self._values.items() if other != name)
        if kept + len(name) + len(value) + 4 > MAX_BYTES:
            raise ValueError(f"with {name!r} the headers for the upstream are longer than {MAX_BYTES:,} bytes")
        self._values[name] = value
        self._lines = None

    def __delitem__(self, name: str) -> None:
        del self._values[name.lower()]
        self._lines = None

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"<UpstreamHeaders {', '.join(self._values)}>"
