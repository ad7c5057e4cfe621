"""What a client asks of caches: `Cache-Control` of a request (RFC 9111, section 5.2.1).

Read are `no-store`, `no-cache` and `max-age`; the others are about replies that are out of date, which are never given,
and about caches that may not ask.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final, NamedTuple

# More is as good as no limit, and int() takes its time with more digits.
_DIGITS: Final = 9


class Directives(NamedTuple):
    """store: whether the reply may be kept, and a kept one looked for. max_age_s: how old one may be; 0: there may be none."""

    store: bool = True
    max_age_s: float = math.inf


ANYTHING: Final = Directives()


def read(values: Iterable[str]) -> Directives:
    """What all `Cache-Control` headers of a request say together. What cannot be understood allows less, not more."""
    store, max_age_s = True, math.inf
    for part in ",".join(values).split(","):
        name, _, argument = part.strip().partition("=")
        match name.strip().lower():
            case "no-store":
                store = False
            case "no-cache":
                max_age_s = 0.0
            case "max-age":
                max_age_s = min(max_age_s, _seconds(argument.strip().strip('"')))
    return Directives(store, max_age_s)


def _seconds(argument: str) -> float:
    if not (argument.isascii() and argument.isdecimal()):
        return 0.0
    return float(argument) if len(argument) <= _DIGITS else math.inf
