"""Points at which a relay can be made to die, to see what is left of the books when it does.

`RELAY_FAILPOINT=after_reserve` kills the process (SIGKILL) when it first comes to that point, `after_reserve:3` when it
comes there for the third time. Read once, when this is imported; without it `hit` does nothing at all.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from itertools import count
from typing import Final

FAILPOINTS: Final = (
    "before_reserve",
    "after_reserve",
    "before_upstream",
    "after_upstream",
    "mid_stream",
    "before_renew",
    "after_renew",
    "before_settle",
    "after_settle",
    "journal_put",
    "journal_fsynced",
    "journal_replayed",
)


def _nothing(name: str, /) -> None:
    """No point is armed."""


def armed(told: str) -> Callable[[str], None]:
    """What `hit` is if the environment says so. Raises ValueError for what is no point."""
    if not told:
        return _nothing
    chosen, colon, times = told.partition(":")
    times = times if colon else "1"
    if chosen not in FAILPOINTS or not times.isdecimal() or int(times) < 1:
        raise ValueError(f"RELAY_FAILPOINT={told!r}: write NAME or NAME:COUNT with a name of {', '.join(FAILPOINTS)}")
    left = count(int(times) - 1, -1)

    def strike(name: str, /) -> None:
        if name == chosen and next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return strike


hit: Final = armed(os.environ.get("RELAY_FAILPOINT", ""))
