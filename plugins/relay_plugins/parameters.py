"""`parameters`: defaults for what a request leaves out, and ranges for what it says. With no options, those of the
first public page that this project serves.

Everything else in the body goes on as it came, unknown fields and numbers of any length included. `null` is how many
clients say "not given", so a default takes its place; where there is none, it stays.

What is out of range is refused and never bent to fit: a client whose `max_tokens` was quietly lowered could not tell
why its answers break off.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from msgspec import Meta

from relay.errors import Reject
from relay.exchange import Exchange
from relay.plugin import Plugin, Reply
from relay.pure.request import MAX_CHOICES, Fields

Off = Literal["off"]
Range = tuple[float, float]
Count = Annotated[int, Meta(ge=1)]
Choices = Annotated[int, Meta(ge=1, le=MAX_CHOICES)]


class _Rule(NamedTuple):
    """What a field may be, in code and in words; null is always fine."""

    field: str
    admits: Callable[[Any], bool]
    words: str


class Parameters(Plugin):
    """Completes the parameters of a chat request, and refuses those that are out of range.

    temperature, max_tokens, presence_penalty, frequency_penalty, top_p, n: what is set if the request does not; "off"
    sets nothing, which models that refuse a parameter altogether need. max_tokens is not set beside
    max_completion_tokens, its newer name.

    temperature_range, penalty_range: the lowest and the highest that is let through. max_tokens_limit: the same for
    max_tokens and max_completion_tokens, from 1 on. user_chars: the longest `user`.
    """

    temperature: float | Off = 0.2
    temperature_range: Range = (0.0, 2.0)
    max_tokens: Count | Off = 2048
    max_tokens_limit: Count = 4096
    presence_penalty: float | Off = "off"
    frequency_penalty: float | Off = "off"
    penalty_range: Range = (-2.0, 2.0)
    top_p: float | Off = 1.0
    n: Choices | Off = 1
    user_chars: Count = 64

    _rules: Mapping[str, _Rule] = dataclasses.field(init=False)  # by field
    _defaults: Mapping[str, object] = dataclasses.field(init=False)
    _settled_by: frozenset[str] = dataclasses.field(init=False)  # fields beside which a default may not be set

    def __post_init__(self) -> None:
        for name in ("temperature_range", "penalty_range"):
            low, high = getattr(self, name)
            if not low <= high:
                raise ValueError(f"{name} = [{low}, {high}] is empty; write the lower number first")
        user_chars = self.user_chars
        rules = (
            _number("temperature", self.temperature_range),
            _whole("max_tokens", self.max_tokens_limit),
            _whole("max_completion_tokens", self.max_tokens_limit),
            _number("presence_penalty", self.penalty_range),
            _number("frequency_penalty", self.penalty_range),
            _number("top_p", (0, 1)),
            _Rule(
                "user",
                lambda value: isinstance(value, str) and len(value) <= user_chars,
                f"a string of at most {user_chars} characters",
            ),
            # The page says "array", and that it is not used: an empty one is all that its clients can send.
            _Rule(
                "logit_bias",
                lambda value: isinstance(value, dict) or value == [],
                'an object of token ids and their biases, such as {"50256": -100}',
            ),
        )
        given = {
            name: getattr(self, name)
            for name in ("temperature", "max_tokens", "presence_penalty", "frequency_penalty", "top_p", "n")
        }
        self._defaults = Fields({name: default for name, default in given.items() if default != "off"})
        self._rules = {rule.field: rule for rule in rules}
        self._settled_by = frozenset(self._defaults) | {"max_completion_tokens"}
        for rule in rules:
            if rule.field in self._defaults and not rule.admits(default := self._defaults[rule.field]):
                raise ValueError(
                    f"{rule.field} = {default} would be refused if a client sent it: it has to be {rule.words}"
                )

    async def on_request(self, ex: Exchange) -> Reply | None:
        request = ex.request
        given, rules = request.fields, self._rules
        if not rules.keys().isdisjoint(given):
            for field, value in given.items():
                if value is not None and field in rules and not rules[field].admits(value):
                    raise Reject(f"`{field}` has to be {rules[field].words}.", code=f"invalid_{field}", param=field)
            if given.get("logit_bias") == []:
                request.remove("logit_bias")  # OpenAI's servers want an object
        missing = self._defaults if self._settled_by.isdisjoint(given) else self._missing(given)
        if missing:
            request.update(missing)
        return None

    def _missing(self, given: Mapping[str, object]) -> Mapping[str, object]:
        """The defaults of what a request leaves out."""
        missing = {name: default for name, default in self._defaults.items() if given.get(name) is None}
        if given.get("max_completion_tokens") is not None:
            missing.pop("max_tokens", None)
        return missing


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # not bool, which is an int to Python


def _number(field: str, bounds: Range) -> _Rule:
    low, high = bounds
    return _Rule(field, lambda value: _is_number(value) and low <= value <= high, f"a number from {low:g} to {high:g}")


def _whole(field: str, highest: int) -> _Rule:
    return _Rule(
        field, lambda value: type(value) is int and 1 <= value <= highest, f"a whole number from 1 to {highest}"
    )
