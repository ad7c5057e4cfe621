"""What a prompt and a reply cost, in the units of a quota: whole numbers, rounded up once a request.

* characters: code points, of the prompt and of the reply. A tool's schema counts with its JSON, an image, a sound or a
  file as 1,000.
* tokens: estimated and corrected by what upstreams have reported, until the upstream says how many it took.
* points: tokens at a price for each model and direction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from msgspec import Meta

from relay.options import Table
from relay.pure.cost import MEDIA_TOKENS, MESSAGE_TOKENS, said
from relay.pure.meter import Count
from relay.pure.openai import dump
from relay.pure.request import ChatRequest
from relay.pure.tokens import MOST_A_CHARACTER, estimate

Unit = Literal["characters", "tokens", "points"]

MEDIA_CHARACTERS: Final = 1000
PER: Final = 1000
"""Tokens that a price is for."""

# More than any request can cost; where nothing bounds a reply.
UNBOUNDED: Final = 2**52


_SAYING: Final = (str, list, dict)


class Price(Table, frozen=True, kw_only=True):
    """Points for 1,000 tokens."""

    input: Annotated[float, Meta(ge=0, le=1e9)]
    output: Annotated[float, Meta(ge=0, le=1e9)]


class Tariff:
    """What a model's requests cost. Sizes are characters or tokens, costs are units."""

    __slots__ = ("_input", "_output", "unit")

    def __init__(self, unit: Unit, price: Price | None = None) -> None:
        """`price` is for points."""
        self.unit: Unit = unit
        self._input = price.input / PER if price is not None else 1.0
        self._output = price.output / PER if price is not None else 1.0

    def cost(self, prompt: float, reply: float) -> int:
        """Units, at least one for what is not nothing at all."""
        # Of products of floats the last digits are noise, which must not round up.
        return math.ceil(round(prompt * self._input + reply * self._output, 6))

    def room(self, prompt: float, covered: int) -> float:
        """How large a reply `covered` units pay for, beside the prompt; below zero if they do not even pay for that."""
        left = covered - prompt * self._input
        if not self._output:
            return left if left < 0 else UNBOUNDED
        return left / self._output

    def prompt_size(self, request: ChatRequest, factor: float) -> float:
        """factor: the model's tokens for each estimated token."""
        beside = (value for _, value in request.beside_messages())
        texts = [value if type(value) is str else dump(value).decode() for value in beside if type(value) in _SAYING]
        media = 0
        if request.contents is not None:
            texts += request.contents
        else:
            for message in request.messages:
                spoken = said(message)
                texts += spoken.texts
                media += spoken.media
        if self.unit == "characters":
            return sum(map(len, texts)) + MEDIA_CHARACTERS * media
        tokens = sum(map(estimate, texts)) + MESSAGE_TOKENS * len(request.messages) + MEDIA_TOKENS * media
        return math.ceil(tokens * factor)

    def reply_size(self, count: Count, factor: float) -> float:
        return count.characters if self.unit == "characters" else count.estimated_tokens * factor

    def surely(self, size: float, factor: float) -> int:
        """So many more characters are surely not more than `size`."""
        if self.unit == "characters":
            return math.floor(size)
        return math.floor(size / (MOST_A_CHARACTER * factor))


def tariffs(unit: Unit, prices: Mapping[str, Price]) -> Mapping[str, Tariff]:
    """By public name of a model; "*" is for the others. Raises ValueError."""
    if unit != "points":
        if prices:
            raise ValueError(f'prices are for unit = "points", and the unit is {unit}; leave one of them out')
        return {"*": Tariff(unit)}
    if "*" not in prices:
        raise ValueError(
            'points need a price for every model; set prices = { "*" = { input = 1, output = 2 } }, points for '
            "1,000 tokens, and beside it the models that cost something else"
        )
    return {model: Tariff(unit, price) for model, price in prices.items()}
