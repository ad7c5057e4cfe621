"""The frames that the guard adds to a stream: where it ends a choice, or the reply."""

from __future__ import annotations

from collections.abc import Mapping

from relay.pure.openai import Chunk, Frame, delta_frame, usage_frame


def closing(shared: Frame, index: int, *, begun: bool, notice: str | None) -> list[Chunk]:
    """What ends a choice that violates; of a client that has seen nothing of it yet the first frame is expected."""
    frames: list[Frame] = []
    if not begun:
        frames.append({"role": "assistant", "content": ""})
    if notice is not None:
        frames.append({"content": notice})
    return [
        *(Chunk.event(delta_frame(shared, index, delta)) for delta in frames),
        Chunk.event(delta_frame(shared, index, {}, "content_filter")),
    ]


def usage(shared: Frame, counts: Frame) -> Chunk:
    """The frame with the usage, which a client that asked for it waits for."""
    return Chunk.event(usage_frame(shared, counts))


def estimated_usage(prompt: int, completion: int) -> Frame:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def withdrawal(shared: Frame, uncleared: Mapping[tuple[int | None, str], int]) -> Chunk:
    """What a client has to take back: of a surface of a choice, everything from a character (code point) on."""
    withdraw = [{"index": index, "surface": surface, "from": start} for (index, surface), start in uncleared.items()]
    return Chunk.event({**shared, "choices": [], "relay": {"withdraw": withdraw}})
