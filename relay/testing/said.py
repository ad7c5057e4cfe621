"""What a reply comes to, however it is divided into chunks: two of them are compared by that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

from relay.errors import RelayError
from relay.pure.openai import Chunk
from relay.testing.conversation import Conversation

T = TypeVar("T")


class Said(NamedTuple):
    """texts, others: by place, which begins with the index of a choice. kind, code: of the outcome."""

    texts: dict[tuple[object, ...], str]
    others: dict[tuple[object, ...], object]
    kind: str | None
    code: str | None

    def twice(self) -> Said:
        """The same, if a second choice had said what the first did."""
        return self._replace(texts=_twice(self.texts), others=_twice(self.others))


def _twice(part: dict[tuple[object, ...], T]) -> dict[tuple[object, ...], T]:
    return {**part, **{(1, *place[1:]): each for place, each in part.items() if place[0] == 0}}


def said(talk: Conversation) -> Said:
    """What a reply comes to, however it is divided into chunks."""
    texts: dict[tuple[object, ...], str] = {}
    others: dict[tuple[object, ...], object] = {}
    for chunk in talk.kept.chunks:
        if chunk.json is None:
            others[("unread", len(others))] = chunk.raw
            continue
        for index, choice in choices_of(chunk):
            if choice.get("finish_reason") is not None:
                others[index, "finish_reason"] = choice["finish_reason"]
            _collect(choice.get("delta") or choice.get("message") or {}, (index,), texts, others)
    outcome = talk.ex.outcome
    code = outcome.error.code if outcome is not None and isinstance(outcome.error, RelayError) else None
    texts = {place: text for place, text in texts.items() if text}
    return Said(texts, others, outcome.kind if outcome is not None else None, code)


def choices_of(chunk: Chunk) -> Iterator[tuple[object, Mapping[str, Any]]]:
    """What is a choice in it, by index. A plugin may say anything in its place."""
    choices = (chunk.json or {}).get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            index = choice.get("index")
            yield index if isinstance(index, int) else repr(index), choice


def _collect(
    value: object,
    place: tuple[object, ...],
    texts: dict[tuple[object, ...], str],
    others: dict[tuple[object, ...], object],
) -> None:
    match value:
        case str() if place[-1] not in ("role", "id", "type", "name"):
            texts[place] = texts.get(place, "") + value
        case dict():
            for key, below in value.items():
                _collect(below, (*place, key), texts, others)
        case list():
            for number, below in enumerate(value):
                at = below.get("index", number) if isinstance(below, dict) else number
                _collect(below, (*place, at), texts, others)
        case None:
            pass
        case _:
            others[place] = value
