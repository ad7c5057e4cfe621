"""Which requests a chain is for: the `match` of a `[[chains]]` table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, TypeAlias

from msgspec import Meta

from relay.options import Table

# A name, or with `*` as its last character all that begin so. No other pattern: what is compared is the client's.
Pattern: TypeAlias = Annotated[str, Meta(min_length=1)]
Patterns: TypeAlias = Annotated[tuple[Pattern, ...], Meta(min_length=1)]
Labels: TypeAlias = Annotated[dict[str, Pattern], Meta(min_length=1)]


class Match(Table, frozen=True, kw_only=True):
    """Requests that fit all that is written. None: whatever they have.

    keys: names of keys. labels: of the key, each with the value that it has to have. models: public names. routes: paths.
    """

    keys: Patterns | None = None
    labels: Labels | None = None
    models: Patterns | None = None
    routes: Patterns | None = None

    def __post_init__(self) -> None:
        if not (self.keys or self.labels or self.models or self.routes):
            raise ValueError("match fits everything; say which keys, labels, models or routes, or leave match out")
        for name, patterns in self._lists():
            for pattern in patterns:
                if "*" in pattern[:-1]:
                    raise ValueError(
                        f"{name}: {pattern!r}: * stands at the end, for all that begin so, and nowhere else"
                    )
        if "*" in (self.keys or ()):  # a request without a key would fit too
            raise ValueError("keys: '*' fits every request; leave keys out")

    def takes(self, *, route: str, caller: str, labels: Mapping[str, str], model: str | None) -> bool:
        """Whether a request fits. model: None for one that asks no model, which fits no `models`."""
        return (
            (self.routes is None or _fits(route, self.routes))
            and (self.keys is None or _fits(caller, self.keys))
            and (
                self.labels is None
                or all(name in labels and fits(labels[name], value) for name, value in self.labels.items())
            )
            and (self.models is None or (model is not None and _fits(model, self.models)))
        )

    def covers(self, other: Match) -> bool:
        """Whether this takes all that the other one would."""
        return (
            _within(other.routes, self.routes)
            and _within(other.keys, self.keys)
            and _within(other.models, self.models)
            and all(
                _within((other.labels[name],) if other.labels and name in other.labels else None, (pattern,))
                for name, pattern in (self.labels or {}).items()
            )
        )

    def __str__(self) -> str:
        said = [f"{name} {', '.join(patterns)}" for name, patterns in self._lists() if name != "labels"]
        said += [f"label {name} = {pattern}" for name, pattern in (self.labels or {}).items()]
        return "; ".join(said)

    def _lists(self) -> Iterable[tuple[str, Iterable[str]]]:
        named = {"keys": self.keys, "models": self.models, "routes": self.routes}
        yield from ((name, patterns) for name, patterns in named.items() if patterns is not None)
        yield "labels", (self.labels or {}).values()


def fits(name: str, pattern: str) -> bool:
    """Whether a name is what a pattern stands for."""
    return name == pattern or (pattern.endswith("*") and name.startswith(pattern[:-1]))


def _fits(name: str, patterns: Iterable[str]) -> bool:
    return any(fits(name, pattern) for pattern in patterns)


def _within(narrow: Iterable[str] | None, wide: Iterable[str] | None) -> bool:
    """Whether some of `wide` stands for each of `narrow`, whatever it stands for itself. None: everything."""
    if wide is None:
        return True
    # `gpt*` stands for `gpt-4*`, and so it does for the text "gpt-4*".
    return narrow is not None and all(_fits(pattern, wide) for pattern in narrow)
