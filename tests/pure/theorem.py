"""The theorem of the guard, to be checked of one reply that is drawn: nothing that violates is read by a client.

The bytes of an upstream go through the decoder into a guard; what is released is read by a reader that shares no code with
the relay and compared with what was said. There are two kinds of moderator: the lexicon, which reads along, and a model of
a remote one, which blocks a window if and only if it sees a span whole, and whose verdicts come late and in any order.

What the theorem does not promise is written down in `bound`: of a span that crosses runs, only what stands in its last
run is kept back.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from random import Random
from typing import Any, Final

from drawn import NOTICE, SPANS, Entry, Says, Upstream, drawn_upstream, paired

from relay.pure.fold import fold
from relay.pure.guard import Guard
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.sse import Decoder
from relay.pure.window import Cutting, Window
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

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
