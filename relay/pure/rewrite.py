"""Frames written anew: when the bytes of a frame could say more than was read, or a part of it may not leave.

Everything else is forwarded as the bytes that it came as.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from relay.pure.escapes import SurrogatePairer
from relay.pure.fold import NOTHING, fold, original_length
from relay.pure.mask import MASK
from relay.pure.mask import masked as mask
from relay.pure.openai import Chunk, Frame, dump, has_repeated_key, load_exactly
from relay.pure.policy import Policy
from relay.pure.surfaces import PROSE, Reading, index_of, read
from relay.pure.window import ALL, Run

# Comments that well-known servers send to keep a connection open. Any other comment loses its text.
_KNOWN_COMMENTS: Final = frozenset(
    (b":", b": OPENROUTER PROCESSING", b": keep-alive", b": keepalive", b": ping", b":ping")
)

# Of a choice that stands in a frame more often than this one surface can have two runs there, whose positions differ.
# No server sends that; it is masked whole.
MAX_ENTRIES: Final = 2


def forwardable(chunk: Chunk, reading: Reading, policy: Policy, *, whole: bool) -> Chunk:
    """The chunk itself, or one that says what was read and nothing else.

    Texts of unknown fields are taken out of `reading` where the policy does not check them.
    """
    data = chunk.data
    if reading.unknown:
        dropped = "unknown" if policy.unknown_fields == "drop" else "opaque" if policy.opaque == "drop" else ""
        if policy.unknown_fields != "check":
            reading.forget_unknown()
        if dropped and policy.hold and getattr(reading, dropped):
            frame = load_exactly(data)
            for container, key in getattr(read(frame, whole=whole), dropped):
                container[key] = None
            return written(dump(frame), whole=whole)
    if not policy.hold:
        return chunk
    if has_repeated_key(data, chunk.json):
        return written(dump(load_exactly(data)), whole=whole)
    if chunk.lenient:
        data = data.decode("utf-8", "replace").encode()
    if data == chunk.data and (chunk.plain or all(_says_nothing(line) for line in chunk.raw.splitlines())):
        return chunk
    return written(data, whole=whole)


def written(data: bytes, *, whole: bool) -> Chunk:
    """A chunk with this payload: an event, or with `whole` a body."""
    if whole:
        return Chunk.body(data)
    lines = b"".join(b"data: %b\n" % line for line in data.split(b"\n"))
    return Chunk(lines + b"\n", data)


def without(chunk: Chunk, dropped: Collection[int], cleared: Callable[[int], Frame] | None) -> Chunk | None:
    """The frame without some of its choices (by their place among them), None if no choice is left.

    With `cleared` the reply is a whole one, and what that gives takes the place of each choice dropped.
    """
    frame = load_exactly(chunk.data)
    kept = []
    entry = -1
    for position, said in enumerate(frame["choices"]):
        if type(said) is dict:
            entry += 1
            if entry in dropped:
                if cleared is not None:
                    kept.append(cleared(entry))
                continue
            if said.get("index") is None:  # clients count for themselves, and now there are fewer
                said["index"] = position
        kept.append(said)
    if not kept:
        return None
    frame["choices"] = kept
    return written(dump(frame), whole=cleared is not None)


def masked(chunk: Chunk, waits: Iterable[tuple[Run, int]], *, whole: bool) -> tuple[Chunk, int]:
    """The frame with what is to be masked masked, and how many characters that are.

    waits: the runs that it says more of, and the horizon of each at which it may leave: so it ends there.
    """
    texts: dict[tuple[int, str], str] = {}
    entries: Counter[int] = Counter()
    for part in read(chunk.json or {}, whole=whole).choices:
        entries[part.index] += 1
        for surface, _, text in part.texts:
            texts[part.index, surface] = texts.get((part.index, surface), "") + text
    hidden = 0
    changed: dict[tuple[int, str], str] = {}
    for run, need in waits:
        if run.choice is None or not run.masks:
            continue
        text = texts.get((run.choice, run.surface), "")
        # A frame that waits for everything has the last text of its run.
        end = run.end if need == ALL else need - (text[-1:] in NOTHING)
        if chunk.lenient or entries[run.choice] > MAX_ENTRIES:
            result = MASK * len(text)
        else:
            result = mask(text, end - len(fold(text)), run.masks)
        run.masks = [(start, last) for start, last in run.masks if last > end]
        if result != text:
            changed[run.choice, run.surface] = result
            hidden += sum(before != after for before, after in zip(text, result, strict=True))
    if not changed:
        return chunk, 0
    frame = load_exactly(chunk.data)
    for position, said in enumerate(frame["choices"]):
        if type(said) is dict:
            _mask_choice(said, index_of(said, position), changed, whole=whole)
    return written(dump(frame), whole=whole), hidden


def _mask_choice(said: Frame, index: int, changed: dict[tuple[int, str], str], *, whole: bool) -> None:
    """Put masked texts in the place of those of one choice. Its logprobs would say them again."""
    places: list[tuple[Any, str, str]] = [(said, "text", "text")]
    for name, prefix in (("delta", ""), ("message", "" if whole else "message.")):
        if type(said.get(name)) is dict:
            places += [(said[name], surface, prefix + surface) for surface in PROSE]
    masks = False
    for container, key, surface in places:
        result = changed.get((index, surface))
        old = container.get(key)
        if result is not None and old:
            masks = True
            # A choice that stands twice in a frame says its text in two parts, and an array has parts of its own.
            if type(old) is str:
                container[key], changed[index, surface] = result[: len(old)], result[len(old) :]
            else:
                changed[index, surface] = _mask_parts(old, result)
    if masks or (index, "logprobs.content") in changed:
        said.pop("logprobs", None)


def _mask_parts(parts: list[Any], result: str) -> str:
    """Put a masked text in the place of the texts of an array's parts. What is left of it."""
    for position, part in enumerate(parts):
        if type(part) is str:
            parts[position], result = result[: len(part)], result[len(part) :]
        elif type(part) is dict and type(part.get("text")) is str:
            length = len(part["text"])
            part["text"], result = result[:length], result[length:]
    return result


def cleared(chunk: Chunk, entry: int, runs: Mapping[str, Run]) -> tuple[Frame, int]:
    """The message of one choice of a whole reply, with the text that was cleared and nothing else; how much is masked."""
    hidden = 0
    message: Frame = {"role": "assistant"}
    part = read(chunk.json or {}, whole=True).choices[entry]
    for surface in PROSE:
        # As the run has read it: halves of a pair in two parts of an array are one character.
        pairer = SurrogatePairer()
        text = pairer.feed("".join(text for where, _, text in part.texts if where == surface)) + pairer.finish()
        if not text:
            continue
        run = runs[surface]
        length = original_length(text, run.horizon, ended=run.horizon >= run.end)
        message[surface] = mask(text, 0, run.masks)[:length] if run.masks else text[:length]
        hidden += sum(before != after for before, after in zip(text, message[surface], strict=False))
        if run.stopped and run.horizon < run.end:
            break
    message.setdefault("content", "")
    return message, hidden


def _says_nothing(line: bytes) -> bool:
    """Whether a line of an event can be forwarded unread: its data, which is read, or a comment that servers send."""
    return not line or line == b"data" or line.startswith(b"data:") or line in _KNOWN_COMMENTS
