"""What an upstream says, drawn: choices, their texts with forbidden spans in them, surfaces, escapes, frames, bytes.

All draws come from a `random.Random`: from hypothesis, which can shrink them, or from a seed, which is faster.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import Any, Final

from relay.pure.policy import Policy

SPANS: Final = ("敏感词", "国家机密", "赤", "forbidden", "bad apple", "ab", "aab", "😀笑", "赤色,敏", "x.y")
NOTICE: Final = "〔removed〕"

# ---- What an upstream says ----

Says = dict[tuple[str, str], str]  # (surface, field): text; the field is "name" or "arguments" of a tool, else ""


@dataclass
class Entry:
    """What one choice says in one frame."""

    says: Says = field(default_factory=dict)
    finish: str | None = None
    role: bool = False


@dataclass
class Upstream:
    """One reply, and what a reader of it should find."""

    n: int
    entries: dict[int, list[Entry]] = field(default_factory=dict)  # by choice; none that come too late
    banners: list[str] = field(default_factory=list)  # strings that belong to no choice
    events: list[bytes] = field(default_factory=list)
    usages: int = 0
    altered: bool = False  # a guard has to change something, whatever it says
    malformed: bool = False  # the last event cannot be read
    done: bytes = b""


def drawn_variant(random: Random, span: str) -> str:
    """A span as somebody writes it who does not want it found."""
    written = ""
    pad = random.choice(("", "", "\u200b", "\u0301", "\0", "\u2060" * 64))
    for char in span:
        ways = [char, char, char.upper(), char.translate(str.maketrans("词国机", "詞國機"))]
        if "!" <= char <= "~":
            ways.append(chr(ord(char) + 0xFEE0))  # fullwidth
        if "a" <= char <= "z":
            ways += [chr(ord(char) - 97 + 0x1D41A), chr(ord(char) - 97 + 0x24D0)]  # 𝐚 ⓐ
        written += (pad if written else "") + random.choice(ways)
    return written


# Three scripts, sentence ends, characters with an empty copy, a long one, or beyond the BMP, and JSON's own.
_ALPHABETS: Final = (
    "天地玄黄宇宙赤敏",
    "abxy AB,. ",
    "。！？\n…",
    "😀笑𝐚🉀é①가ﷺ",
    "a\u200bb\u0301国\ufe0f",
    '"\\/{}:u',
)


def drawn_text(random: Random, spans: Sequence[str]) -> str:
    parts = []
    for _ in range(random.choice((1, 1, 2, 3, 5))):
        kind = random.randrange(10)
        if kind == 0:
            parts.append(drawn_variant(random, random.choice(spans)))
        elif kind == 1:
            span = random.choice(spans)
            parts.append(span[: random.randrange(1, len(span) + 1) - 1])
        else:
            alphabet = random.choice(_ALPHABETS)
            parts.append("".join(random.choice(alphabet) for _ in range(random.choice((1, 2, 4)))))
    if random.randrange(30) == 0:
        parts.insert(0, "长" * random.choice((40, 450)))
    return "".join(parts)


def pieces(random: Random, text: str) -> list[str]:
    """The text in pieces, none of them empty."""
    if random.randrange(4) == 0 and len(text) < 40:
        return list(text)
    cuts = {random.randrange(1, len(text)) for _ in range(random.choice((0, 1, 2, 4)))} if len(text) > 1 else set()
    return [text[start:end] for start, end in pairwise(sorted({0, *cuts, len(text)}))] if text else []


def halves(char: str) -> str:
    """A character beyond the BMP as its two surrogates."""
    return char if char < "\U00010000" else "".join(map(chr, memoryview(char.encode("utf-16-le")).cast("H")))


def paired(text: str) -> str:
    """Halves side by side as one character, as in every JSON reader."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def drawn_halves(random: Random, text: str) -> str:
    """Perhaps with surrogates for characters, so that a piece may end between them."""
    return "".join(map(halves, text)) if random.randrange(3) == 0 else text


def drawn_arguments(random: Random, text: str) -> str:
    r"""JSON that holds the text, as a tool's arguments do; some of its characters as \u4f60."""
    written = ""
    for char in text:
        if char in '"\\' or char < " ":
            written += json.dumps(char)[1:-1]
        elif random.randrange(3) == 0:
            written += "".join(f"\\u{ord(half):04{random.choice('xX')}}" for half in halves(char))
        else:
            written += char
    return '{"q":"' + written + '"}'


def drawn_run(random: Random, spans: Sequence[str], named: set[str]) -> Iterator[tuple[Says, dict[str, Any]]]:
    """One run of text: for each frame what it says, and the fields of a choice that say it."""
    kind = random.choice(
        "content content content reasoning_content reasoning refusal parts doubled logprobs tool tool function "
        "legacy unknown hint beside".split()
    )
    text = drawn_text(random, spans)
    if kind in ("tool", "function"):
        surface = "function_call" if kind == "function" else f"tool_calls.{random.randrange(2)}"

        def called(part: str, said: str, opening: dict[str, str] | None = None) -> tuple[Says, dict[str, Any]]:
            function = {part: said}
            if kind == "function":
                return {(surface, part): said}, {"delta": {"function_call": function}}
            call = {"index": int(surface[-1]), **(opening or {}), "function": function}
            return {(surface, part): said}, {"delta": {"tool_calls": [call]}}

        if surface not in named:
            named.add(surface)
            name = random.choice(("f", "get_weather", drawn_text(random, spans)))
            for piece in pieces(random, name):
                yield called("name", piece, {"id": "call_1", "type": "function"})
        for piece in pieces(random, drawn_halves(random, drawn_arguments(random, text))):
            yield called("arguments", piece)
        return
    for piece in pieces(random, drawn_halves(random, text)):
        if kind == "parts":
            at = random.randrange(len(piece) + 1)
            parts = [{"type": "text", "text": part} for part in (piece[:at], piece[at:])]
            yield {("content", ""): piece}, {"delta": {"content": parts}}
        elif kind == "doubled":
            message = {"role": "assistant", "content": piece}
            yield (
                {("content", ""): piece, ("message.content", ""): piece},
                {"delta": {"content": piece}, "message": message},
            )
        elif kind == "logprobs":
            tokens = [
                {"token": token, "logprob": -0.5, "bytes": None, "top_logprobs": []} for token in pieces(random, piece)
            ]
            # Of half a character some servers send the token and no content. (Rows of padding would be joined then.)
            said = random.choice((piece, piece, piece if "\u2060" in text else ""))
            says = {("content", ""): said} if said else {}
            yield (
                says | {("logprobs.content", ""): piece},
                {"delta": {"content": said}, "logprobs": {"content": tokens}},
            )
        elif kind == "legacy":
            yield {("text", ""): piece}, {"text": piece}
        elif kind == "unknown":
            yield {("?vendor.note", ""): piece}, {"delta": {"vendor": {"note": [piece]}}}
        elif kind == "hint":
            yield {("?hint", ""): piece}, {"hint": piece}
        elif kind == "beside":
            note = random.choice(("", "note", drawn_text(random, spans)))
            says = {("?extra", ""): note} if note else {}
            yield {("content", ""): piece} | says, {"delta": {"content": piece, "extra": note}}
        else:
            yield {(kind, ""): piece}, {"delta": {kind: piece}}


def drawn_choice(random: Random, spans: Sequence[str], unknown: str) -> Iterator[tuple[Entry, dict[str, Any], bool]]:
    """All frames of one choice: what each says, its fields, and whether it comes too late to be forwarded."""
    role = random.choice(("own", "own", "first", "none"))
    if role == "own":
        yield Entry(role=True), {"delta": {"role": "assistant", "content": random.choice(("", None))}}, False
    said: list[tuple[Says, dict[str, Any]]] = []
    named: set[str] = set()
    for _ in range(random.choice((1, 1, 2, 3, 4))):
        said += drawn_run(random, spans, named)
    ending = random.choice(("own", "own", "last", "twice", "late", "none"))
    finish = random.choice(("stop", "length", "tool_calls"))
    for number, (says, fields) in enumerate(said):
        entry = Entry(says)
        if role == "first" and number == 0:
            entry.role = True
            fields.setdefault("delta", {})["role"] = "assistant"
        if ending == "last" and number == len(said) - 1:
            entry.finish = finish
        yield entry, {**fields, "finish_reason": entry.finish}, False
    if ending in ("own", "twice", "late"):
        yield Entry(finish=finish), {"delta": {}, "finish_reason": finish}, False
    if ending == "twice":
        yield Entry(finish=finish), {"delta": {"content": None}, "finish_reason": finish}, False
    if ending == "late":
        for says, fields in drawn_run(random, spans, named):
            guarded = unknown == "check" or any(not surface.startswith("?") for surface, _ in says)
            yield Entry(says), fields, guarded


def shuffled(random: Random, fields: dict[str, Any]) -> dict[str, Any]:
    return dict(random.sample([*fields.items()], len(fields)))


def drawn_event(random: Random, upstream: Upstream, frame: dict[str, Any], *, changes: bool) -> bytes:
    """A frame as bytes; if it `changes`, a guard has to write it anew."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    data = json.dumps(
        shuffled(random, {**head, **frame}), ensure_ascii=True, separators=random.choice(((",", ":"), None))
    )
    plain = json.loads(data)
    if random.randrange(2):
        try:
            data = json.dumps(plain, ensure_ascii=False, separators=(",", ":"))
            data.encode()
        except UnicodeEncodeError:
            data = json.dumps(plain)
    newline = random.choice((b"\n", b"\n", b"\n", b"\r\n"))
    before = random.choice((b"", b"", b"", b": keep-alive" + newline, b": OPENROUTER PROCESSING" + newline * 2))
    if changes:
        upstream.altered = True
        match random.randrange(4):
            case 0:
                before = ": 敏感词 forbidden".encode() + newline
            case 1:
                before = b"event: forbidden" + newline
            case 2:
                data = '{"note":"forbidden","note":null,' + data[1:]
            case _:
                data = '{"choices":[{"index":0,"delta":{"content":"forbidden"}}],' + data[1:]
    return before + random.choice((b"data: ", b"data:")) + data.encode() + newline * 2


def drawn_upstream(random: Random, spans: Sequence[str], policy: Policy) -> Upstream:
    n = random.choice((1, 1, 1, 2, 3))
    indexes = random.sample((0, 1, 2, 7), n) if random.randrange(4) == 0 else range(n)
    upstream = Upstream(n, {index: [] for index in indexes})
    waiting = {index: drawn_choice(random, spans, policy.unknown_fields) for index in indexes}
    often = 15 if random.randrange(3) == 0 else 0
    while waiting:
        frame: dict[str, Any] = {"choices": []}
        for index in random.sample([*waiting], random.choice((1, 1, 1, len(waiting)))):
            for _ in range(random.choice((1,) * 12 + (2,))):  # rarely the same choice twice in one frame
                said = next(waiting[index], None)
                if said is None:
                    del waiting[index]
                    break
                entry, fields, late = said
                upstream.altered |= late or (
                    policy.unknown_fields == "drop" and any(at[0] == "?" for at, _ in entry.says)
                )
                if policy.unknown_fields == "drop":
                    entry.says = {at: text for at, text in entry.says.items() if not at[0].startswith("?")}
                if not late:
                    upstream.entries[index].append(entry)
                frame["choices"].append(shuffled(random, {"index": index, "finish_reason": None} | fields))
        if random.randrange(40) == 0:
            frame["banner"] = f"{len(upstream.banners)}~{drawn_text(random, spans)}"
            upstream.banners.append(frame["banner"])
            upstream.altered |= policy.unknown_fields == "drop"
        if random.randrange(30) == 0:
            frame["usage"] = None
        changes = often and random.randrange(often) == 0
        upstream.events.append(drawn_event(random, upstream, frame, changes=bool(changes)))
    if random.randrange(2):
        upstream.usages = 1
        frame = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}}
        upstream.events.append(drawn_event(random, upstream, frame, changes=False))
    if random.randrange(30) == 0:
        upstream.malformed = True
        upstream.events.append(
            random.choice((b"data: {\n\n", b"data: []\n\n", b"data: 1\n\n", b"data: \xef\xbb\xbf{}\n\n"))
        )
    if random.randrange(5):
        upstream.done = b"data: [DONE]\n\n"
    return upstream
