"""What the relay knows of a store: scripts that decide something, whole or not at all.

A decision is one Lua script over keys that share one hash tag, so that a cluster finds all of them on one node. Scripts
read the server's clock (`TIME`) and no other. They may run twice where an answer got lost, so each has to give a repeat
the same effect.

https://valkey.io/topics/eval-intro · https://valkey.io/topics/cluster-spec#hash-tags
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any, Final, Literal, Protocol
from urllib.parse import quote

_SCRIPTS: Final = Path(__file__).parent / "lua"

# Why a store did not do what it was asked: "away" cannot be reached, "slow" did not answer in time, "breaker" was not
# asked as it has failed so often, "full" is out of memory, "readonly" is a replica or cannot write its disk, "error" is
# anything else that it says.
Trouble = Literal["away", "slow", "breaker", "full", "readonly", "error"]


class StoreError(Exception):
    """The store did not answer, or would not.

    acted: whether it may have done it nonetheless, or a part of it: its answer got lost, or the script broke off.
    detail: the server's words, for the log.
    """

    def __init__(self, trouble: Trouble, *, acted: bool, detail: str = "") -> None:
        super().__init__(f"the store is in trouble: {trouble}" + (f" ({detail})" if detail else ""))
        self.trouble: Trouble = trouble
        self.acted = acted
        self.detail = detail


class Script:
    """A script of the folder `lua`; of several files, one behind the other. sha: its name for EVALSHA.

    A plugin of one's own has `Script.of(name, source)`. The name is for people, and for the fakes of `relay.testing`.
    """

    __slots__ = ("name", "sha", "source")

    def __init__(self, *names: str) -> None:
        self._take(names[-1], "".join((_SCRIPTS / f"{name}.lua").read_text() for name in names))

    @classmethod
    def of(cls, name: str, source: str) -> Script:
        """A script that stands in the code, in Lua."""
        script = cls.__new__(cls)
        script._take(name, source)
        return script

    def _take(self, name: str, source: str) -> None:
        self.name, self.source = name, source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def __repr__(self) -> str:
        return f"<Script {self.name}>"


Arg = str | bytes | int | float


class Store(Protocol):
    """A store that is open."""

    def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Awaitable[Any]:
        """Have a script run; awaiting gives what it returned: int, bytes, None, or lists of those.

        It is on its way as soon as this returns; what is asked for in one turn of the loop goes in one write. `keys` are
        made by `key` with one tag. Awaiting raises StoreError, within the time-out of the store. Nothing is repeated by
        itself.
        """
        ...

    def key(self, tag: str, *parts: str) -> str:
        """The name of a key; all of one tag are on one node. `tag` and `parts` may be any text."""
        ...


def key_name(prefix: str, tag: str, parts: Sequence[str]) -> str:
    """`relay:{tag}:part`, with what could be mistaken for structure escaped as in a URL."""
    return ":".join((prefix, "{" + quote(tag, safe="") + "}", *(quote(part, safe="") for part in parts)))
