"""A reply that ends where the quota does: the part of a chunk that is still paid for, and the chunks that say so."""

from __future__ import annotations

from typing import Any, Final

from relay.pure.closing import estimated_usage, usage
from relay.pure.meter import Count, size_of
from relay.pure.openai import Chunk, Frame, delta_frame, dump, envelope, load_exactly
from relay.pure.request import ChatRequest
from relay.pure.rewrite import written
from relay.pure.surfaces import PROSE, IndexUnclearError, finished, index_of
from relay.pure.tokens import estimate

NOTICE: Final[Frame] = {
    "quota": {
        "code": "insufficient_user_quota",
        "message": "User quota is not enough: the answer ends here. Top it up, and ask again.",
    }
}
"""What stands in the `relay` object: of a stream's last chunk, or of a whole reply."""


class Ending:
    """What has to be known of a reply to end it: which of its choices have begun, and which have ended.

    whole: it is not streamed.
    """

    __slots__ = ("_begun", "_finished", "_request", "whole")

    def __init__(self, request: ChatRequest) -> None:
        self.whole = not request.stream
        self._request = request
        self._begun: set[int] = set()
        self._finished: set[int] = set()

    def note(self, chunk: Chunk) -> None:
        """A chunk that does not only say text."""
        frame = chunk.json or {}
        try:
            self._finished.update(finished(frame))
            choices = frame.get("choices")
            for position, choice in enumerate(choices if type(choices) is list else ()):
                if type(choice) is dict:
                    self._begun.add(index_of(choice, position))
        except IndexUnclearError:
            pass  # whoever reads it does not know either which choice that is

    def is_notice(self, chunk: Chunk) -> bool:
        """Whether a chunk of a stream has no choices, and is of the relay's own making."""
        if b'"relay"' not in chunk.raw:
            return False
        frame = chunk.json or {}
        return "relay" in frame and not frame.get("choices")

    def frames(self, chunk: Chunk, count: Count) -> list[Chunk]:
        """What ends a stream. `chunk` is one of it."""
        shared = envelope(chunk.json or {})
        frames: list[Frame] = []
        for index in range(self._request.choices):
            if index in self._finished:
                continue
            delta = {} if index in self._begun else {"role": "assistant", "content": ""}
            frames.append(delta_frame(shared, index, delta, "length"))
        frames.append({**shared, "choices": [], "relay": NOTICE})
        chunks = [Chunk.event(frame) for frame in frames]
        if self._request.wants_usage:
            prompt = round(sum(estimate(text) for _, text in self._request.texts()))
            chunks.append(usage(shared, estimated_usage(prompt, round(count.estimated_tokens))))
        return chunks


def shortened_event(chunk: Chunk, room: int) -> Chunk | None:
    """The first `room` characters of a chunk whose one choice says one text; of others there is no first part."""
    frame = chunk.json or {}
    choices: Any = frame.get("choices")
    choice: Any = choices[0] if type(choices) is list and len(choices) == 1 else None
    delta = choice.get("delta") if type(choice) is dict else None
    if type(delta) is not dict:
        return None
    try:
        index = index_of(choice, 0)
    except IndexUnclearError:
        return None
    size = size_of(choice)[0]
    for surface in PROSE:
        text = delta.get(surface)
        if type(text) is str and len(text) == size:
            role = {"role": delta["role"]} if "role" in delta else {}
            return Chunk.event(delta_frame(envelope(frame), index, {**role, surface: text[:room]}))
    return None


def shortened_body(chunk: Chunk, room: int) -> Chunk:
    """A whole reply with the first `room` characters of what its choices say.

    A choice that has room stays as it is. Of one that has not only `content` is left: calls of tools are not cut.
    """
    frame = load_exactly(chunk.data)
    choices: Any = frame.get("choices")
    for choice in choices if type(choices) is list else ():
        if type(choice) is not dict or type(choice.get("message")) is not dict:
            continue
        if (size := size_of(choice)[0]) <= room:
            room -= size
            continue
        said = choice["message"].get("content")
        text = said[:room] if type(said) is str else ""
        room -= len(text)
        choice["message"] = {"role": "assistant", "content": text}
        choice["finish_reason"] = "length"
        choice.pop("logprobs", None)
    frame["relay"] = NOTICE
    return written(dump(frame), whole=True)
