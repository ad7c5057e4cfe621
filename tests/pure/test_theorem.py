"""The theorem of the guard, at bytes: no character of a violating span reaches the client, however the upstream cuts it.

A reply is drawn: its choices, their texts with forbidden spans in them, surfaces, escapes, frames, bytes. The bytes go
through the decoder into a guard; what is released is read by a reader that shares no code with the relay and compared
with what was said. There are two kinds of moderator: the lexicon, which reads along, and a model of a remote one, which
blocks a window if and only if it sees a span whole, and whose verdicts come late and in any order.

All draws come from a `random.Random`: from hypothesis, which can shrink them, or from a seed, which is faster.

What the theorem does not promise is written down in `bound`: of a span that crosses runs, only what stands in its last
run is kept back.
"""

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from random import Random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.pure.fold import fold
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.sse import Decoder
from relay.pure.surfaces import Kind
from relay.pure.window import ALL, Cutting, Hit, Run, Window
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

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


# ---- What a client reads ----


@dataclass
class Heard:
    """What a client makes of the released bytes."""

    entries: dict[int, list[Entry]] = field(default_factory=dict)
    banners: list[str] = field(default_factory=list)
    usages: int = 0


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(pairs) == len(dict(pairs)), "readers differ in which of two equal keys they take"
    return dict(pairs)


def heard(stream: bytes) -> Heard:
    """Read an event stream as a client does that shows everything it is sent."""
    result = Heard()
    data = b""
    for line in re.split(rb"\r\n|\n|\r", stream):
        if line.startswith(b"data:"):
            assert not data, "no frame takes two lines here"
            data = line[5:]
        elif line:
            assert line in (b": keep-alive", b": OPENROUTER PROCESSING"), "a line that nobody has read"
        elif data:
            _hear(result, json.loads(data, object_pairs_hook=_once))
            data = b""
    assert not data, "the last event is not whole"
    return result


def _hear(result: Heard, frame: dict[str, Any]) -> None:
    result.usages += bool(frame.get("usage"))
    if frame.get("banner"):
        result.banners.append(frame["banner"])
    for choice in frame["choices"]:
        entry = Entry(finish=choice.get("finish_reason"))
        delta = choice.get("delta", {})
        entry.role = "role" in delta

        def hear(surface: str, text: object, part: str = "", says: Says = entry.says) -> None:
            if isinstance(text, str) and text:
                says[surface, part] = says.get((surface, part), "") + text

        for surface in ("content", "reasoning_content", "reasoning", "refusal"):
            texts = delta.get(surface)
            for text in [part["text"] for part in texts] if isinstance(texts, list) else [texts]:
                hear(surface, text)
        calls = [(f"tool_calls.{call['index']}", call["function"]) for call in delta.get("tool_calls", ())]
        for surface, function in [*calls, ("function_call", delta.get("function_call", {}))]:
            for part in ("name", "arguments"):
                hear(surface, function.get(part), part)
        hear("message.content", choice.get("message", {}).get("content"))
        hear("text", choice.get("text"))
        for token in choice.get("logprobs", {}).get("content", ()):
            hear("logprobs.content", token["token"])
        hear("?hint", choice.get("hint"))
        hear("?extra", delta.get("extra"))
        hear("?vendor.note", delta.get("vendor", {"note": [None]})["note"][0])
        result.entries.setdefault(choice["index"], []).append(entry)


_ESCAPE: Final = re.compile(r'\\u([0-9A-Fa-f]{4})|\\(["\\/bfnrt])|(\\(?:u[0-9A-Fa-f]{0,3})?)\Z')


def meaning(name: str, text: str, arguments: str) -> tuple[str, bool]:
    """The canonical text of one surface, and whether half a character stands at its end."""
    ends = []

    def decoded(escape: re.Match[str]) -> str:
        code, simple, rest = escape.groups()
        if rest:
            ends.append(rest)
            return ""
        return chr(int(code, 16)) if code else json.loads(f'"\\{simple}"')

    text = name + "\n" + _ESCAPE.sub(decoded, arguments) if arguments else name or text
    if "\ud800" <= text[-1:] <= "\udbff":
        ends.append(text[-1])
        text = text[:-1]
    return fold(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")), bool(ends)


def meant(entries: Iterable[Entry], surface: str) -> tuple[str, bool]:
    """The same of all entries."""
    said = {"": "", "name": "", "arguments": ""}
    for entry in entries:
        for part in said:
            said[part] += entry.says.get((surface, part), "")
    return meaning(said["name"], said[""], said["arguments"])


# ---- What may be read ----


def _beside(surface: str) -> bool:
    return surface.startswith(("?", "logprobs."))


def run_ends(entries: Sequence[Entry]) -> dict[str, list[int]]:
    """By surface: how long its canonical text is at the end of each of its runs."""
    ends: dict[str, list[int]] = {}
    open_since: set[str] = set()

    def end(surface: str, number: int) -> None:
        ends.setdefault(surface, []).append(len(meant(entries[:number], surface)[0]))

    for number, entry in enumerate(entries):
        touched = {surface for surface, _ in entry.says}
        main = any(not _beside(surface) for surface in touched)
        for surface in sorted(open_since - touched):
            if touched and (main or _beside(surface)):
                end(surface, number)
                open_since.discard(surface)
        open_since |= touched
    for surface in sorted(open_since):
        end(surface, len(entries))
    return ends


Finder = Callable[[str, Sequence[int]], Iterator[tuple[int, int]]]  # text, ends of its runs → spans that violate


def find_spans(spans: Sequence[str]) -> Finder:
    def find(text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
        for span in spans:
            for found in re.finditer(f"(?={re.escape(span)})", text):
                yield found.start(), found.start() + len(span)

    return find


def in_word(chars: str) -> bool:
    """Whether these are letters of words that spaces set apart."""
    return all(char < "\u0590" and char.isalnum() for char in chars)


def find_words(spans: Sequence[str]) -> Finder:
    """Whole words, where the end of a run ends a word."""

    def find(text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
        for start, end in find_spans(spans)(text, ends):
            begun = start > 0 and in_word(text[start - 1 : start + 1])
            goes_on = end < len(text) and end not in ends and in_word(text[end - 1 : end + 1])
            if not begun and not goes_on:
                yield start, end

    return find


def find_apart(spans: Sequence[str]) -> Finder:
    """Spans written with one or two separators between their letters, as the lexicon reads them."""

    def find(text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
        for span in spans:
            letters = [*filter(str.isalnum, span)]
            own = re.split(r"\w", span)[1:-1]  # the separators of the span itself, between its letters
            if not span[0].isalnum() or (len(span) == 2 and in_word(span)) or set(span) & set(".!?;。"):
                continue
            gap = r"((?!\n\n)[^\w.!?;。]{0,2})"
            for found in re.finditer(f"(?=({gap.join(letters)}))", text):
                start, end = found.span(1)
                gaps = found.groups()[1:]
                whole = not (start > 0 and in_word(text[start - 1 : start + 1])) and not (
                    end < len(text) and end not in ends and in_word(text[end - 1 : end + 1])
                )
                if whole and _apart(letters, gaps, own):
                    yield start, end

    return find


def _apart(letters: Sequence[str], gaps: Sequence[str], own: Sequence[str]) -> bool:
    """Whether a span may be written with these gaps."""
    if all(gap == kept for gap, kept in zip(gaps, own, strict=True)):
        return False  # as it is
    spelt: set[bool] = set()  # of the word that is being read
    for gap, kept, pair in zip(gaps, own, pairwise(letters), strict=True):
        if (kept and not gap) or ("\n" in gap and " " not in kept):
            return False
        if kept or not in_word("".join(pair)):
            spelt = set()
        else:
            spelt.add(bool(gap))
            if len(spelt) == 2:
                return False
    there = [gap for gap in gaps if gap]
    return len(there) > 1 or not set(there[0]) & set(",:、\"'(){}[]（）「」")


def find_any(*finders: Finder) -> Finder:
    def find(text: str, ends: Sequence[int]) -> Iterator[tuple[int, int]]:
        for each in finders:
            yield from each(text, ends)

    return find


def bound(text: str, ends: Sequence[int], find: Finder) -> float:
    """How many canonical characters of a surface may be read: none of a violating span.

    Unless the span crosses runs, which the theorem does not cover: then none of its part in its last run.
    """
    starts = [0, *ends]
    return min((max(start, *(each for each in starts if each < end)) for start, end in find(text, ends)), default=inf)


# ---- From one to the other ----


@dataclass
class Setting:
    """A guard, and a moderator for what it asks."""

    policy: Policy
    guard: Guard
    judges: bool  # whether the remote moderator knows the spans; where the lexicon does, it passes all
    find: Finder
    spans: Sequence[str]
    asked: int  # how many choices
    usage: bool
    failing: bool


def drawn_setting(random: Random, kind: str) -> Setting:
    cutting = Cutting(
        holdback_chars=random.choice((2, 3, 4, 5, 9, 16)),
        first_chars=random.choice((1, 2, 8, 32)),
        sentence_chars=random.choice((1, 3, 64)),
        max_chars=random.choice((1, 2, 7, 30, 400)),
        max_wait_s=random.choice((0.05, 0.3, 1.2)),
        context_chars=random.choice((0, 0, 1, 20)),
    )
    policy = Policy(
        cutting=cutting,
        depth=random.choice((1, 2, 2, 4)),
        held_bytes=random.choice((262_144, 262_144, 262_144, 3000, 600)),
        on_violation=random.choice(("finish", "finish", "replace", "error")),
        notice=NOTICE,
        unknown_fields=random.choice(("check", "check", "drop", "pass")),
    )
    spans = [
        span for span in random.sample(SPANS, random.choice((1, 3, len(SPANS)))) if len(span) <= cutting.holdback_chars
    ]
    spans = spans or ["赤"]
    remote = kind == "remote" or random.randrange(3) == 0
    usage = random.randrange(2) == 0
    asked = random.choice((1, 1, 2, 3))
    failing = kind == "remote" and random.randrange(20) == 0
    if kind == "remote":
        find = find_spans(spans)
        scanners: Callable[[], Sequence[PhraseScanner]] = tuple
    else:
        words = random.randrange(3) == 0
        find = find_any(find_words(spans) if words else find_spans(spans), find_apart(spans))
        phrases = Phrases([(span, Manner("label", "block", words)) for span in spans], "lexicon")

        def scanners() -> Sequence[PhraseScanner]:
            return [PhraseScanner(phrases)]

    guard = Guard(policy, scanners, remote=remote, usage=usage, choices=asked, prompt_tokens=lambda: 9)
    return Setting(policy, guard, kind == "remote", find, spans, asked, usage, failing)


class Stuck(AssertionError):
    """The guard waits for something that nobody is going to do."""


def relay(random: Random, setting: Setting, stream: bytes) -> bytes:
    """What the guard releases of the stream, with verdicts that come in any order and a clock that goes as it likes."""
    guard = setting.guard
    out = bytearray()
    asked: list[Window] = []
    now = 0.0

    def look() -> None:
        for chunk in guard.released:
            out.extend(chunk.raw)
        asked.extend(guard.checks)
        guard.released, guard.checks = [], []
        for window in asked:
            if not window.shown and random.random() < prompt:
                guard.show(window, now)
        assert guard.in_flight == len(asked) <= setting.policy.depth
        if guard.wants_pause and not asked:
            raise Stuck("paused, and nothing in flight")

    def answer() -> None:
        window = asked.pop(random.randrange(len(asked)))
        # One that nobody has seen has grown meanwhile; one that somebody refused is shown again, and may have.
        shown = window.passage.shown if window.shown and random.randrange(4) else guard.show(window, now)
        assert shown or window.run.stopped
        if setting.failing and random.randrange(4) == 0:
            guard.failed(window, now)
        elif setting.judges and any(setting.find(fold(shown), ())):
            guard.judged(window, Ruling("block", "label", 90, "model"), now)
        else:
            guard.judged(window, Ruling("pass"), now)
        look()

    prompt = random.choice((0.0, 0.3, 1.0))
    eager, patient = random.choice((0.0, 0.2, 0.5, 1.0)), random.choice((0.0, 0.1, 0.6))
    decoder = Decoder(Chunk)
    for piece in _read(random, stream):
        for chunk in decoder.feed(piece):
            if chunk.data == b"[DONE]" or (guard.over and patient):
                break
            guard.feed(chunk, now)
            look()
            while asked and (guard.wants_pause or random.random() < eager):
                answer()
            now += patient
            while (due := guard.deadline()) is not None and due <= now:
                guard.tick(now)
                look()
                if guard.deadline() == due:
                    raise Stuck("a tick that changes nothing")
    guard.end(now)
    look()
    while asked:
        answer()
    if not guard.finished:
        raise Stuck("all verdicts are given, and text is held")
    assert guard.deadline() is None
    return bytes(out)


def _read(random: Random, stream: bytes) -> list[bytes]:
    cuts = {random.randrange(len(stream) + 1) for _ in range(random.choice((0, 1, 5)))}
    return [stream[start:end] for start, end in pairwise(sorted({0, *cuts, len(stream)}))]


class Leak(AssertionError):
    """A character got out that may not."""


class Altered(AssertionError):
    """What is clean did not come out as it came."""


def check(random: Random, kind: str) -> str:
    """The theorem for one reply. Returns how it went: "clean", "blocked" or the code of the failure."""
    setting = drawn_setting(random, kind)
    upstream = drawn_upstream(random, setting.spans, setting.policy)
    out = relay(random, setting, b"".join(upstream.events) + upstream.done)
    guard, policy = setting.guard, setting.policy
    result = heard(out)
    for entries in (*upstream.entries.values(), *result.entries.values()):
        for entry in entries:
            entry.says = {at: paired(text) for at, text in entry.says.items()}

    # A string outside the choices that violates ends them all.
    checked = policy.unknown_fields == "check"
    banned = [banner for banner in upstream.banners if checked and any(setting.find(fold(banner), ()))]
    if not set(banned).isdisjoint(result.banners):
        raise Leak("a banner")

    blocked = 0
    assert result.entries.keys() <= upstream.entries.keys() | ({0} if banned else set())
    for index, said in upstream.entries.items():
        entries = result.entries.get(index, [])
        ends = run_ends(said) if checked else run_ends([_without_unknown(entry) for entry in said])
        bounds = {surface: bound(meant(said, surface)[0], ends[surface], setting.find) for surface in ends}
        violates = min(bounds.values(), default=inf) < inf
        closing = _closing(entries, policy)
        if closing:
            blocked += 1
            assert violates or banned, "a clean choice is ended"
        rest = len(entries) - len(closing)
        for surface, allowed in bounds.items():
            text, half = meant(entries[:rest], surface)
            if len(text) + half > allowed:
                raise Leak(f"{surface}: {text[int(allowed) :]!r}")
        if entries[:rest] != said[:rest]:
            raise Altered("frames of a choice are no prefix of what it said")
        if closing:
            expected = [Entry(role=True)] if rest == 0 else []
            if policy.on_violation == "replace":
                expected.append(Entry({("content", ""): NOTICE}))
            assert closing == [*expected, Entry(finish="content_filter")]
        elif guard.failure is None and not (rest == 0 and guard.over and (banned or setting.asked < upstream.n)):
            assert not violates, "a violation is not answered"
            if rest != len(said):
                assert banned or (guard.over and any(entry.finish for entry in said[:rest])), (
                    "a clean choice is not whole"
                )

    _check_ending(setting, upstream, result, blocked=blocked, banned=bool(banned))
    if not blocked and guard.failure is None and not banned and not upstream.altered:
        events = upstream.events if policy.held_bytes > 3000 else sorted(upstream.events)
        came = out if policy.held_bytes > 3000 else b"".join(sorted(chunk.raw for chunk in Decoder(Chunk).feed(out)))
        if came != b"".join(events):
            raise Altered("bytes")
    return guard.failure or ("blocked" if blocked else "clean")


def _without_unknown(entry: Entry) -> Entry:
    return Entry({at: text for at, text in entry.says.items() if not at[0].startswith("?")})


def _closing(entries: list[Entry], policy: Policy) -> list[Entry]:
    """The frames at the end that no upstream sent."""
    if not entries or entries[-1].finish != "content_filter":
        return []
    count = 1 + (policy.on_violation == "replace")
    if len(entries) == count + 1 and entries[0] == Entry(role=True):
        count += 1
    return entries[-count:]


def _check_ending(setting: Setting, upstream: Upstream, result: Heard, *, blocked: int, banned: bool) -> None:
    guard, policy = setting.guard, setting.policy
    violations = guard.tally.violations
    match guard.failure:
        case None:
            assert not upstream.malformed or guard.over
            assert bool(violations) == bool(blocked) or banned
        case "content_filter":
            assert policy.on_violation == "error"
            assert violations
        case "moderation_unavailable":
            assert setting.failing
        case "moderation_stalled":
            assert policy.held_bytes <= 3000
        case "upstream_malformed":
            assert upstream.malformed
    assert policy.on_violation != "error" or not blocked
    if guard.failure is None and setting.usage and blocked and guard.over:
        assert result.usages == 1
    else:
        assert result.usages <= upstream.usages
        assert result.usages == upstream.usages or guard.failure is not None or guard.over


# ---- The properties ----

KINDS: Final = ("lexicon", "remote")
SEEDS: Final = 1000  # as many as each mutant gets
LONG_SEEDS: Final = 100_000


@pytest.mark.parametrize("kind", KINDS)
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(random=st.randoms(use_true_random=False))
def test_no_character_of_a_violating_span_gets_out(kind: str, random: Random) -> None:
    """And clean text comes out as it came, and every ending is clean."""
    check(random, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_one_of_any_seed(kind: str) -> None:
    """The same for some thousands of replies, the same ones every time; each ending is among them."""
    endings = {check(Random(seed), kind) for seed in range(SEEDS)}
    assert endings >= {"clean", "blocked", "content_filter", "moderation_stalled", "upstream_malformed"}


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_nor_does_one_in_the_long_run(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for many more, with all failures counted before any is raised."""
    endings: Counter[str] = Counter()
    failed: dict[str, list[int]] = {}
    for seed in range(SEEDS, SEEDS + LONG_SEEDS):
        try:
            endings[check(Random(seed), kind)] += 1
        except AssertionError as error:
            failed.setdefault(type(error).__name__, []).append(seed)
    with capsys.disabled():
        leaked, altered = (len(failed.get(name, ())) for name in ("Leak", "Altered"))
        print(f"\n{kind}: {LONG_SEEDS:,} streams tried, {leaked} leaked, {altered} altered; {dict(endings)}")
    assert {} == failed


# ---- The mutants: a property that no fault breaks proves nothing ----


def _short_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    """K - 1 made K - 2."""
    monkeypatch.setattr(Cutting, "overlap", property(lambda self: self.holdback_chars - 2))


def _short_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is shown again is one character too short, not what is held back."""
    monkeypatch.setattr(Cutting, "shown_again", property(lambda self: max(0, self.overlap - 1)))


def _out_of_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A window that passes clears the text of those before it."""

    def passed(self: Run, window: Window) -> None:
        self._passed = max(self._passed, window.end)
        self.windows = deque(other for other in self.windows if other is not window)
        self._clear()

    monkeypatch.setattr(Run, "passed", passed)


def _unchecked_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that has ended is released, whatever its last window has yet to show."""
    clear = Run._clear

    def released(self: Run) -> None:
        clear(self)
        if self.ended and not self.stopped:
            self.horizon = ALL

    monkeypatch.setattr(Run, "_clear", released)


def _endless_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No run ever ends."""
    monkeypatch.setattr(Run, "finish", lambda self, now, *, resumable=False: ())


def _unheard_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A scanner is not told that its run has ended."""

    def finish(self: PhraseScanner) -> Sequence[Hit]:
        self.held = 0
        return ()

    monkeypatch.setattr(PhraseScanner, "finish", finish)


def _short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scanner holds one character too few."""
    feed, take = PhraseScanner.feed, PhraseScanner.take

    def shorter(self: PhraseScanner, text: str) -> Sequence[Hit]:
        hits = feed(self, text)
        self.held = max(0, self.held - 1)
        return hits

    def shortly(self: PhraseScanner, text: str) -> int:
        length = take(self, text)
        self.held = max(0, self.held - (length > 0))
        return length

    monkeypatch.setattr(PhraseScanner, "feed", shorter)
    monkeypatch.setattr(PhraseScanner, "take", shortly)


def _unpaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of a pair are not joined."""
    append = Run.append

    def unpaired(self: Run, text: str, kind: Kind, now: float, *, lenient: bool = False) -> Sequence[Hit]:
        return append(self, text, kind, now)

    monkeypatch.setattr(Run, "append", unpaired)


def _by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """What folds to nothing, or is half an escape, leaves before the character it belongs to."""
    monkeypatch.setattr(Run, "needs", property(lambda self: self.end, lambda self, needs: None))


MUTANTS: Final = [
    ("remote", _short_overlap, Leak),
    ("remote", _short_context, Leak),
    ("remote", _out_of_order, Leak),
    ("remote", _unchecked_end, Leak),
    ("remote", _endless_runs, Stuck),
    ("remote", _unpaired, AssertionError),
    ("remote", _by_length, Leak),
    ("lexicon", _short_tail, Leak),
    ("lexicon", _unheard_end, Leak),
    ("lexicon", _endless_runs, Stuck),
    ("lexicon", _unpaired, AssertionError),
    ("lexicon", _by_length, Leak),
]


@pytest.mark.parametrize(("kind", "mutant", "fault"), MUTANTS)
def test_a_mutant_is_caught(
    kind: str,
    mutant: Callable[[pytest.MonkeyPatch], None],
    fault: type[AssertionError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Among the seeds that all pass without the mutant there is one that fails as it should."""
    mutant(monkeypatch)
    for seed in range(SEEDS):
        try:
            check(Random(seed), kind)
        except fault:
            return
        except AssertionError:
            continue
    pytest.fail(f"{mutant.__doc__} Nobody noticed.")
