"""The guard of one reply, rule by rule: what is guarded, in which order frames leave, what the client sees.

Two words are forbidden. The lexicon knows them; a remote moderator is played by the tests, which give its verdicts.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from relay.pure.guard import Guard, Violation
from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.ruling import Ruling
from relay.pure.sse import Decoder
from relay.pure.surfaces import says
from relay.pure.window import Cutting, Hit, Window
from relay.testing import frames
from relay_plugins.lexicon import Manner, Phrases, PhraseScanner

BAD = "敏感词"
PASS = Ruling("pass")
BLOCK = Ruling("block", "label", 90, "model", "call-1")
PHRASES = Phrases([(word, Manner("word", "block")) for word in (BAD, "forbidden")], "lexicon")
REVIEWED = Phrases([(BAD, Manner("word", "review"))], "lexicon")

# K = 4; nothing ripens but with the end of a run, so that a test says when a window is cut.
CUTTING = Cutting(holdback_chars=4, first_chars=999, sentence_chars=999, max_chars=999, max_wait_s=10.0)


def lexicon(phrases: Phrases = PHRASES, **options: Any) -> Guard:
    policy = Policy(**{name: options.pop(name) for name in Policy.__slots__ if name in options})
    return Guard(policy, lambda: [PhraseScanner(phrases)], **options)


def remote(**options: Any) -> Guard:
    policy = Policy(**{"cutting": CUTTING} | {name: options.pop(name) for name in Policy.__slots__ if name in options})
    return Guard(policy, remote=True, **options)


def feed(guard: Guard, *events: bytes, now: float = 0.0) -> None:
    for chunk in Decoder(Chunk).feed(b"".join(events)):
        guard.feed(chunk, now)


def out(guard: Guard) -> list[bytes]:
    """What was released since this was asked last."""
    released, guard.released = guard.released, []
    return [chunk.raw for chunk in released]


def asked(guard: Guard) -> list[Window]:
    """The windows that were cut since this was asked last. Somebody has seen them: they grow no more."""
    checks, guard.checks = guard.checks, []
    for window in checks:
        guard.show(window, 0.0)
    return checks


def passed(guard: Guard) -> None:
    """All that is asked and will be is passed."""
    while windows := asked(guard):
        for window in windows:
            guard.judged(window, PASS, 0.0)


def whole(guard: Guard, *events: bytes) -> list[bytes]:
    """All that is released of a stream, with every window passed."""
    feed(guard, *events)
    guard.end(0.0)
    passed(guard)
    assert guard.finished
    return out(guard)


def said(raws: Iterable[bytes]) -> list[Any]:
    """What frames say: the choices' deltas and finish reasons."""
    shown: list[Any] = []
    for raw in raws:
        entries = json.loads(raw.removeprefix(b"data: "))["choices"]
        shown += [(entry["index"], entry.get("delta"), entry.get("finish_reason")) for entry in entries]
    return shown


def closed(index: int = 0, *, role: bool = True) -> list[Any]:
    """The frames that end a choice."""
    opening = [(index, {"role": "assistant", "content": ""}, None)] if role else []
    return [*opening, (index, {}, "content_filter")]


def choice(index: int, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def test_the_defaults_are_those_of_the_documentation() -> None:
    """Two checks at a time, 256 KiB held; a violation finishes its choice, whatever nobody knows is checked."""
    documented = {"cutting": Cutting(), "depth": 2, "held_bytes": 262_144, "on_violation": "finish", "notice": ""}
    assert Policy(**documented, unknown_fields="check", opaque="pass", hold=True) == Policy()


# What is guarded


def test_a_frame_is_forwarded_as_the_bytes_it_came_as() -> None:
    """Whatever its line ends, spaces, key order and known comments; empty frames and usage too."""
    events = [
        frames.role(),
        b': keep-alive\r\ndata:{"choices": [ {"delta":{"content":"Hel"} ,"index":0}], "id":"x"}\r\n\r\n',
        b": OPENROUTER PROCESSING\n\n" + frames.text("\\u4f60\u200b"),
        frames.chunk([]),
        frames.finish(),
        frames.usage(),
    ]
    assert b"".join(events) == b"".join(whole(lexicon(), *events))


BESIDE = {"content": "clean", "reasoning": "clean"}

SURFACES = [
    pytest.param({"delta": {"content": BAD}}, id="content"),
    pytest.param(
        {"delta": {"content": [{"type": "text", "text": "敏"}, {"type": "text", "text": "感词"}]}}, id="parts"
    ),
    pytest.param({"delta": {"content": ["敏", "感词"]}}, id="an array of strings"),
    pytest.param({"delta": {"content": [{"type": "thinking", "thinking": [{"text": BAD}]}]}}, id="thinking"),
    pytest.param({"delta": {"reasoning_content": BAD}}, id="reasoning_content"),
    pytest.param({"delta": {"reasoning": BAD}}, id="reasoning"),
    pytest.param({"delta": {"refusal": BAD}}, id="refusal"),
    pytest.param({"delta": {"tool_calls": [{"index": 0, "function": {"name": BAD}}]}}, id="a tool's name"),
    pytest.param(
        {"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "\\u654f\\u611f\\u8bcd"}}]}},
        id="its arguments",
    ),
    pytest.param({"delta": {"function_call": {"arguments": BAD}}}, id="function_call"),
    pytest.param({"delta": {}, "text": BAD}, id="legacy text"),
    pytest.param({"delta": BESIDE, "message": {"content": BAD}}, id="a message beside the delta"),
    pytest.param({"delta": {"content": "a"}, "logprobs": {"content": [{"token": BAD}]}}, id="logprobs"),
    pytest.param({"delta": {"audio": {"transcript": BAD}}}, id="a transcript"),
    pytest.param({"delta": {"x": {"y": [{"z": BAD}]}}}, id="an unknown field of the delta"),
    pytest.param({"delta": BESIDE, "x": BAD}, id="an unknown field of the choice"),
    pytest.param({"delta": BAD}, id="a delta that is no object"),
    pytest.param({"delta": {"content": "敏" + "\u200b" * 64 + "感\u0301词"}}, id="padding"),
    pytest.param({"delta": {"content": "ＦＯＲｂⓘDDEN "}}, id="other letters"),
]


@pytest.mark.parametrize("fields", SURFACES)
@pytest.mark.parametrize("asks", [False, True])
def test_every_surface_of_a_choice_is_guarded(fields: dict[str, Any], asks: bool) -> None:
    """By those who read along and by those who are asked; what came before it leaves."""
    bad = frames.chunk([{"index": 0, **fields}])
    if not asks:
        assert [frames.role()] == whole(lexicon(), frames.role(), bad)[:1]
        assert closed(role=False) == said(whole(lexicon(), frames.role(), bad)[1:])
        return
    guard = remote(depth=9)
    feed(guard, frames.role(), bad)
    guard.end(0.0)
    texts = {window.run.surface: window.passage.copy for window in asked(guard)}
    assert any(BAD in text or "forbidden" in text for text in texts.values())
    assert [frames.role()] == out(guard)


@pytest.mark.parametrize(
    ("extra", "banned"),
    [({"note": BAD}, True), ({"note": [{"x": BAD}]}, True), ({"id": BAD}, False), ({"usage": {"x": BAD}}, False)],
)
def test_an_unknown_string_outside_the_choices_ends_them_all(extra: dict[str, Any], banned: bool) -> None:
    """Metadata that everybody knows is not read."""
    guard = lexicon(choices=2)
    events = [frames.text("a"), frames.text("b", index=1), frames.chunk([choice(0, content="c")], extra=extra)]
    feed(guard, *events)
    assert banned is guard.over
    ended = [*closed(role=False), *closed(1, role=False)]
    assert events[:2] == (sent := out(guard))[:2]
    assert (ended if banned else [(0, {"content": "c"}, None)]) == said(sent[2:])


def test_such_a_string_ends_no_choice_twice_and_none_that_is_whole() -> None:
    """Choice 0 was ended before, 1 is whole, 2 waits for a verdict that it gets too late, 3 has only begun."""
    guard = remote(choices=4, depth=9)
    feed(guard, frames.text("aaaa"), frames.finish())
    (first,) = asked(guard)
    feed(guard, frames.text("bbbb", index=1), frames.finish(index=1), frames.text("cccc", index=2))
    feed(guard, frames.role(index=3), frames.chunk([choice(3)], extra={"note": "dddd"}))
    second, note = asked(guard)
    guard.judged(first, BLOCK, 0.0)
    guard.judged(second, PASS, 0.0)
    assert not guard.over
    guard.judged(note, BLOCK, 0.0)
    assert guard.over
    guard.end(0.0)
    assert guard.finished
    expected = [
        *closed(),
        (1, {"content": "bbbb"}, None),
        (1, {}, "stop"),
        *closed(2),
        (3, {"role": "assistant"}, None),
    ]
    assert [*expected, *closed(3, role=False)] == said(out(guard))


def test_such_a_string_stops_an_upstream_whose_choices_are_whole() -> None:
    """There is nothing to end, and nothing more to come. Its characters are counted."""
    guard = lexicon()
    feed(
        guard,
        frames.text("a"),
        frames.finish(),
        frames.chunk([], extra={"note": "ok"}),
        frames.chunk([], extra={"note": BAD}),
    )
    assert guard.over
    assert not guard.cut
    assert (6, 3) == (guard.tally.came, guard.tally.released)
    assert [] == said(whole(guard)[3:])


def test_what_such_a_string_drops_is_held_no_longer() -> None:
    """A choice that is whole still waits for its verdict; nothing else fills the guard."""
    guard = remote(held_bytes=2000)
    large = frames.chunk([], extra={"usage": {"details": "A" * 1900}})
    feed(guard, frames.text("aaaa"), frames.finish(), frames.chunk([], extra={"note": BAD}), large)
    text, note = asked(guard)
    assert guard.wants_pause
    guard.judged(note, BLOCK, 0.0)
    assert not guard.wants_pause
    guard.judged(text, PASS, 0.0)
    assert [frames.text("aaaa"), frames.finish()] == out(guard)


def test_a_stream_that_says_nothing_else_is_ended_as_one_choice() -> None:
    """A forbidden string outside the choices, and no choice has come: the client is told so all the same."""
    assert closed() == said(whole(lexicon(), frames.chunk([], extra={"note": BAD})))


def test_a_string_outside_the_choices_that_every_frame_repeats_is_checked_once() -> None:
    """Each frame waits for that verdict, even one that may pass others."""
    guard = remote(depth=9, choices=2, held_bytes=10)
    first, second = (frames.chunk([choice(index)], extra={"vendor": "acme"}) for index in (0, 1))
    feed(guard, first, second)
    (window,) = asked(guard)
    assert ("acme", []) == (window.passage.copy, out(guard))
    guard.judged(window, PASS, 0.0)
    feed(guard, first, frames.chunk([]), second)
    assert [first, second, first, frames.chunk([]), second] == out(guard)
    feed(guard, frames.chunk([], extra={"vendor": "other"}), first)
    assert ["cmeother", "heracme"] == [window.passage.copy for window in asked(guard)]


def test_an_ended_choice_that_waits_in_the_queue_keeps_its_closing() -> None:
    """When a string outside the choices drops what stands around it."""
    guard = remote(choices=2, depth=9)
    feed(
        guard, frames.chunk([], extra={"note": "dddd"}), frames.text("aaaa"), frames.finish(), frames.text("b", index=1)
    )
    note, text = asked(guard)
    guard.judged(text, BLOCK, 0.0)
    guard.judged(note, BLOCK, 0.0)
    assert [*closed(), *closed(1)] == said(out(guard))


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'"text"',
        b"1",
        b"null",
        b"\xef\xbb\xbf{}",
        b'{"choices":[]}}',
        b"{'choices':[]}",
        b"\x00",
        b"[[" * 600,
    ],
)
def test_a_frame_that_cannot_be_read_never_leaves(data: bytes) -> None:
    """What came before it does, once it is cleared; then the reply fails."""
    guard = remote()
    feed(guard, frames.text("abcd"), frames.data(data), frames.text("e"))
    assert guard.over
    assert "upstream_malformed" == guard.failure
    assert not guard.finished
    passed(guard)
    assert guard.finished
    assert [frames.text("abcd")] == out(guard)


def test_a_violation_before_an_unreadable_frame_is_answered_too() -> None:
    """Nothing waits for a run that is stopped."""
    guard = remote()
    feed(guard, frames.role(), frames.text("abcd"), frames.data("{"))
    guard.judged(asked(guard)[0], BLOCK, 0.0)
    assert guard.finished
    assert closed(role=False) == said(out(guard)[1:])
    assert "upstream_malformed" == guard.failure
    guard = remote(on_violation="error")
    feed(guard, frames.role(), frames.text("abcd"), frames.data("{"))
    guard.judged(asked(guard)[0], BLOCK, 0.0)
    assert guard.finished
    assert [frames.role()] == out(guard)
    assert "upstream_malformed" == guard.failure


def test_more_than_64_characters_in_a_row_that_fold_to_nothing_are_a_violation() -> None:
    """In one frame, in several, and where nothing else stands in them."""
    assert [frames.text("a" + "\u200b" * 64 + "b")] == whole(lexicon(), frames.text("a" + "\u200b" * 64 + "b"))
    for events in (
        [frames.text("a" + "\u200b" * 65)],
        [frames.text("a"), frames.text("\u200b" * 40), frames.text("\u2060" * 25)],
    ):
        for asks in (lexicon, remote):
            guard = asks()
            feed(guard, *events)
            assert guard.cut
            assert closed(role=False) == said(whole(guard))[-1:]
            assert ("evasion", "guard") == guard.tally.violations[0][3:5]


def test_unknown_fields_can_be_dropped_or_passed() -> None:
    """Dropped, the frame is written anew without their strings; passed, they are not looked at."""
    event = frames.chunk([{**choice(0, content="a", note=BAD), "hint": [1, {"x": BAD}]}], extra={"banner": BAD})
    assert closed() == said(whole(lexicon(), event))
    assert [event] == whole(lexicon(unknown_fields="pass"), event)
    (dropped,) = whole(lexicon(unknown_fields="drop"), event)
    frame = json.loads(dropped[6:])
    assert {"content": "a", "note": None} == frame["choices"][0]["delta"]
    assert ([1, {"x": None}], None) == (frame["choices"][0]["hint"], frame["banner"])
    assert [frames.text("a")] == whole(lexicon(unknown_fields="drop"), frames.text("a"))


def test_a_frame_that_somebody_has_looked_at_says_the_same() -> None:
    """To every guard, whatever the one before has forgotten of it."""
    for delta, cuts in (({"note": BAD}, [False, True]), ({"refusal": BAD}, [True, True])):
        event = frames.chunk([choice(0, content="a", **delta)])
        chunk = Chunk(event, event[6:-2])
        assert says(chunk)
        guards = [lexicon(unknown_fields=unknown) for unknown in ("pass", "check")]
        for guard in guards:
            guard.feed(chunk, 0.0)
            guard.end(0.0)
        assert cuts == [guard.cut for guard in guards]


def test_opaque_values_are_never_read_and_can_be_dropped() -> None:
    """A long string of nothing but visible ASCII, where no text is known to stand."""
    event = frames.chunk([choice(0, content="a", signature="forbidden" * 40, note="b")])
    assert [event] == whole(lexicon(), event)
    (dropped,) = whole(lexicon(opaque="drop"), event)
    assert {"content": "a", "signature": None, "note": "b"} == json.loads(dropped[6:])["choices"][0]["delta"]
    long_text = frames.text("x" * 300 + " forbidden ")
    assert closed() == said(whole(lexicon(), long_text))


def test_what_a_reader_could_read_differently_is_written_anew() -> None:
    """Repeated keys, bytes that are no UTF-8, comments with text, and other fields of the event stream."""
    plain = b'{"choices":[{"index":0,"delta":{"content":"a"}}]}'
    repeated = b'{"choices":[{"index":0,"delta":{"content":"forbidden ","content":"a"}}]}'
    assert [b"data: " + plain + b"\n\n"] == whole(lexicon(), frames.data(repeated))
    broken = b'{"choices":[{"index":0,"delta":{"content":"a\\n\xff"}}]}'
    assert ["a\n\ufffd"] == [delta["content"] for _, delta, _ in said(whole(lexicon(), frames.data(broken)))]
    for line in (": 敏感词".encode(), b"event: forbidden", b"id: forbidden", b"retry: 1", b"forbidden"):
        assert [b"data: " + plain + b"\n\n"] == whole(lexicon(), line + b"\n" + b"data: " + plain + b"\n\n")
    in_two_lines = b': x\ndata: {"choices":[]\ndata: }\n\n'
    assert [b'data: {"choices":[]\ndata: }\n\n'] == whole(lexicon(), in_two_lines)
    for line in (b": ping", b":", b"data", b""):
        kept = line + b'\n: keepalive\ndata: {"choices":[]\ndata: }\n\n'
        assert [kept] == whole(lexicon(), kept)


def test_halves_of_a_pair_are_joined_across_frames_that_are_written_anew() -> None:
    """𝐟𝐨𝐫… in halves, each frame with a comment that has to go."""
    letters = [chr(ord(letter) - 97 + 0x1D41A) for letter in "forbidden"]
    halves = [json.dumps(letter)[1:-1] for letter in letters]
    events = [
        b': x\ndata: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % half.encode()
        for letter in halves
        for half in (letter[:6], letter[6:])
    ]
    assert closed() == said(whole(lexicon(), *events))


def test_integers_keep_their_digits_in_a_frame_that_is_written_anew() -> None:
    """Beyond 64 bits too."""
    (raw,) = whole(lexicon(), frames.data(b'{"created":123456789012345678901,"id":1,"id":2,"choices":[{"index":0}]}'))
    assert b'data: {"created":123456789012345678901,"id":2,"choices":[{"index":0}]}\n\n' == raw


# Who a text belongs to


@pytest.mark.parametrize(
    "index", ["18446744073709551616", "-9223372036854775809", "1.0", "true", '"0"', "null", "[]", "-1"]
)
def test_no_index_leads_round_the_guard(index: str) -> None:
    """An entry with a violation is never sent, whatever its index looks like, be it whole in one frame or in two."""
    event = '{"choices":[{"index":%s,"delta":{"content":"%s"}}]}'
    for pieces in ((BAD,), ("敏", "感词")):
        sent = b"".join(whole(lexicon(), *(frames.data(event % (index, piece)) for piece in pieces)))
        assert "感".encode() not in sent


def test_entries_that_are_no_objects_stay_where_they_are() -> None:
    """Their strings belong to no choice; a frame that loses a choice keeps them."""
    events = [frames.chunk([choice(0, "stop", content="a")]), frames.chunk([3, choice(0, content="late"), None])]  # type: ignore[list-item]
    sent = whole(lexicon(), *events)
    assert events[0] == sent[0]
    assert [3, None] == json.loads(sent[1][6:])["choices"]
    assert closed() == said(whole(lexicon(), frames.chunk([BAD])))  # type: ignore[list-item]
    assert closed() == said(whole(lexicon(), frames.data(json.dumps({"choices": {"0": {"text": BAD}}}))))


def test_a_choice_may_stand_twice_in_a_frame() -> None:
    """Its entries are read in order, and each leaves or is dropped by itself."""
    twice = frames.chunk([choice(0, content="敏感"), choice(0, content="词")])
    assert closed() == said(whole(lexicon(), twice))
    late = frames.chunk([choice(0, "stop", content="a"), choice(0, content="b")])
    assert [(0, {"content": "a"}, "stop")] == said(whole(lexicon(), late))


@pytest.mark.parametrize(
    ("count", "fails"),
    [(128, None), (129, "upstream_malformed")],
)
def test_a_reply_has_at_most_128_choices(count: int, fails: str | None) -> None:
    """A stream that numbers more is no reply."""
    guard = lexicon()
    feed(guard, *(frames.text("a", index=index) for index in range(count)))
    assert fails == guard.failure


@pytest.mark.parametrize(
    ("count", "fails"),
    [(256, None), (257, "upstream_malformed")],
)
def test_a_choice_has_at_most_256_surfaces(count: int, fails: str | None) -> None:
    """Two texts on one surface would hide what each says. So many in one frame or in many, in a choice or outside."""
    fields = {f"s{number}": "a" for number in range(count)}
    one = [frames.chunk([{"index": 0, "delta": fields}])]
    many = [frames.chunk([{"index": 0, "delta": {name: text}}]) for name, text in fields.items()]
    outside = [frames.chunk([], extra=fields)]
    for events in (one, many, one * 2, outside):
        guard = lexicon()
        feed(guard, *events)
        assert fails == guard.failure


def test_a_surface_of_its_own_for_a_name_between_two_pieces_of_arguments() -> None:
    """A reader joins arguments with arguments and names with names; neither hides the other from the guard."""

    def piece(**function: str) -> bytes:
        return frames.delta({"tool_calls": [{"index": 0, "function": function}]})

    between = [piece(name="f", arguments="敏"), piece(name="g"), piece(arguments="感词")]
    assert between[:2] == whole(lexicon(), *between)[:2]
    assert closed(role=False) == said(whole(lexicon(), *between)[2:])
    names = [piece(name="敏"), piece(arguments="{"), piece(name="感"), piece(name="词")]
    sent = whole(lexicon(), *names)
    assert closed(role=False) == said(sent[-1:])
    assert "感".encode() not in b"".join(sent)
    again = [piece(name="敏"), piece(arguments="{"), piece(name="感"), piece(arguments="}"), piece(name="词")]
    assert closed(role=False) == said(whole(lexicon(), *again)[-1:])
    beside = [piece(name="f", arguments="{"), *(piece(name="f", arguments=char) for char in '"敏感词"')]
    assert closed(role=False) == said(whole(lexicon(), *beside)[-1:])


# Runs


def windows_after(*events: bytes) -> list[tuple[str, str]]:
    guard = remote(depth=99)
    feed(guard, *events)
    return [(window.run.surface, window.passage.copy) for window in asked(guard)]


def test_text_on_another_surface_ends_a_run() -> None:
    """Its window is cut at once: reasoning, then content, then one tool call after the other."""
    events = [
        frames.delta({"reasoning_content": "aa"}),
        frames.text("bb"),
        frames.tool("cc", call=0),
        frames.tool("dd", call=1),
    ]
    cut = [("reasoning_content", "aa"), ("content", "bb"), ("tool_calls.0", "cc")]
    for count in range(4):
        assert cut[:count] == windows_after(*events[: count + 1])


def test_a_run_goes_on_while_a_frame_has_text_on_it() -> None:
    """Whatever else stands in the frame; a frame without text ends nothing."""
    both = frames.delta({"reasoning": "a", "content": "b"})
    assert [] == windows_after(both, frames.role(), frames.delta({"content": ""}), both)
    assert [("reasoning", "aa")] == windows_after(both, both, frames.text("b"))


def test_what_stands_beside_a_text_ends_no_run_of_it() -> None:
    """Unknown fields and logprobs come and go; the text ends them, and they one another."""
    hint = frames.delta({"hint": "a"})
    tokens = frames.chunk([{"index": 0, "delta": {"content": ""}, "logprobs": {"content": [{"token": "b"}]}}])
    assert [] == windows_after(frames.text("cc"), hint, hint)
    assert [] == windows_after(frames.text("cc"), tokens)
    assert [("?hint", "aa")] == windows_after(frames.text("cc"), hint, hint, frames.text("d"))
    assert [("?hint", "a")] == windows_after(hint, tokens)


def test_the_end_of_a_choice_ends_its_runs() -> None:
    """Its finish, with text of its own or without; of other choices nothing ends."""
    assert [("content", "ab")] == windows_after(
        frames.text("ab"), frames.text("c", index=1), frames.delta({}, finish_reason="stop")
    )
    assert [("content", "abc")] == windows_after(
        frames.text("ab"), frames.text("c", index=1), frames.delta({"content": "c"}, finish_reason="stop")
    )
    guard = remote()
    feed(guard, frames.text("ab"))
    guard.end(0.0)
    assert ["ab"] == [window.passage.copy for window in asked(guard)]
    guard.end(0.0)
    feed(guard, frames.text("c"))
    assert [] == asked(guard)
    assert 2 == guard.tally.came


def test_a_surface_that_resumes_is_checked_with_the_end_of_its_last_run() -> None:
    """What crosses the runs is found; only its head, which had left, is out."""
    events = [frames.text("xx敏"), frames.delta({"reasoning": "yy"}), frames.text("感词")]
    assert events[:2] == whole(lexicon(), *events)[:2]
    assert closed(role=False) == said(whole(lexicon(), *events)[2:])
    assert ("content", "敏zz感") in windows_after(frames.text("xx敏zz"), events[1], frames.text("感"), frames.finish())


def test_escapes_that_are_cut_by_other_text_hide_nothing() -> None:
    """A reader joins the arguments of a tool whatever stands between them."""
    pieces = ["\\u65", "4f\\u61", "1f\\u8b", "cd"]
    events = [event for piece in pieces for event in (frames.tool(piece), frames.text("x"))]
    sent = whole(lexicon(), *events)
    assert events[:6] == sent[:6]
    assert closed(role=False) == said(sent[6:])


def test_half_an_escape_at_the_end_of_a_choice_is_checked_as_it_stands() -> None:
    """No rest of it can come any more."""
    assert [("tool_calls.0", "x\\u4f")] == windows_after(frames.tool("x\\u4f"), frames.finish())


def test_text_after_the_finish_is_never_forwarded_and_counted() -> None:
    """Frames without text are: a second finish, and what only metadata says."""
    guard = lexicon()
    again = frames.finish()
    sent = whole(
        guard, frames.text("ab"), frames.finish(), frames.text("cde"), again, frames.delta({"hint": "f"}), frames.role()
    )
    assert [frames.text("ab"), frames.finish(), again, frames.role()] == sent
    assert (4, 2, 2) == (guard.tally.late, guard.tally.came, guard.tally.released)


# Order and progress


def test_frames_of_a_choice_leave_in_order_and_those_of_others_as_they_came() -> None:
    """A frame that waits keeps those behind it, whoever they are of."""
    guard = remote(choices=2)
    events = [frames.text("aaaa"), frames.role(index=1), frames.chunk([]), frames.finish(index=1), frames.finish()]
    feed(guard, *events)
    assert [] == out(guard)
    passed(guard)
    assert events == out(guard)


def test_when_the_guard_is_full_frames_pass_those_of_other_choices() -> None:
    """Never those of their own, nor a frame that belongs to both, nor one that belongs to none."""
    guard = remote(choices=3, held_bytes=10, depth=1)
    waits = frames.delta({"content": "aaaa"}, finish_reason="stop")
    feed(guard, waits, frames.role(index=1), frames.chunk([]), frames.role(), frames.finish(index=1))
    assert [frames.role(index=1), frames.finish(index=1)] == out(guard)
    both = frames.chunk([choice(0), choice(2)])
    feed(guard, both, frames.role(index=2))
    assert [] == out(guard)
    assert guard.wants_pause
    guard.judged(*asked(guard), PASS, 0.0)
    assert not guard.wants_pause
    guard.end(0.0)
    assert [waits, frames.chunk([]), frames.role(), both, frames.role(index=2)] == out(guard)


def test_text_that_is_cleared_passes_too() -> None:
    """In a guard that is full, whatever stands before it for another choice."""
    guard = remote(choices=2, held_bytes=400, depth=9)
    done = {"finish_reason": "stop"}
    feed(guard, frames.delta({"content": "aaaa"}, **done), frames.delta({"content": "bbbb"}, index=1, **done))
    _, second = asked(guard)
    guard.judged(second, PASS, 0.0)
    assert [(1, {"content": "bbbb"}, "stop")] == said(out(guard))
    assert not guard.wants_pause
    guard = lexicon(choices=2, held_bytes=len(frames.text("敏")))
    feed(guard, frames.text("敏"), frames.text("a", index=1))
    assert [frames.text("a", index=1)] == out(guard)


def test_no_window_is_forced_where_passing_makes_room() -> None:
    """A short window is paid for like a long one."""
    guard = remote(choices=2, held_bytes=len(frames.text("aa")), depth=9)
    feed(guard, frames.text("aa"), frames.role(index=1))
    assert [frames.role(index=1)] == out(guard)
    assert [] == asked(guard)


def test_a_guard_is_full_when_it_holds_more_than_it_may() -> None:
    """Not a byte before; and it pauses only then."""
    event = frames.text("aaaa")
    for held_bytes, full in ((len(event), False), (len(event) - 1, True)):
        guard = remote(held_bytes=held_bytes)
        feed(guard, event)
        assert full is guard.wants_pause is (asked(guard) != [])


def test_a_guard_that_stays_full_looks_for_room_only_now_and_then() -> None:
    """After a verdict, and when an eighth more has come: each look is at all that is held."""
    guard = remote(choices=2, held_bytes=10 * len(frames.role()), depth=1)
    feed(guard, frames.text("aaaa"), *[frames.role()] * 10)
    (window,) = asked(guard)
    assert guard.wants_pause
    feed(guard, frames.role(index=1))
    assert [] == out(guard)
    feed(guard, frames.role(index=1))
    assert [frames.role(index=1)] * 2 == out(guard)
    feed(guard, frames.role(index=1))
    assert [] == out(guard)
    guard.judged(window, PASS, 0.0)
    assert [frames.role(index=1)] == out(guard)


def test_a_full_guard_cuts_what_it_has_and_pauses_only_for_a_check() -> None:
    """The tail of K - 1 characters of another choice stands at the head of the queue and stops nothing."""
    guard = remote(choices=2, held_bytes=600, depth=1)
    feed(guard, frames.delta({"reasoning": "abc"}))
    assert [] == asked(guard)
    feed(guard, frames.text("d", index=1), frames.text("e", index=1))
    (window,) = asked(guard)
    assert "abc" == window.passage.copy
    assert guard.wants_pause
    feed(guard, frames.text("f", index=1))
    assert [] == asked(guard)  # one in flight is all there may be
    guard.judged(window, PASS, 0.0)
    (window,) = asked(guard)
    assert "def" == window.passage.copy
    guard.judged(window, PASS, 0.0)
    assert not guard.wants_pause
    assert "moderation_stalled" == guard.failure  # neither tail can move: 600 bytes are three frames


def test_a_guard_that_can_do_nothing_ends_the_reply() -> None:
    """It is full, nothing is in flight, nothing can leave: what is held is dropped."""
    guard = lexicon(held_bytes=1000)
    feed(guard, frames.text("x"), frames.text("敏"))
    assert [frames.text("x")] == out(guard)
    while guard.failure is None:
        feed(guard, frames.role())
        assert not guard.wants_pause
    assert "moderation_stalled" == guard.failure
    assert guard.over
    assert guard.finished
    assert [] == out(guard)
    feed(guard, frames.text("感词"))
    guard.tick(0.0)
    guard.end(0.0)
    assert [] == out(guard)


@pytest.mark.parametrize("large", [0, 1])
def test_one_frame_may_be_larger_than_all_there_is_room_for(large: int) -> None:
    """Be it the one that waits or one that waits behind it."""
    image = frames.delta({"content": "敏" if large == 0 else "", "image": "A" * 5000})
    events = [image, frames.text("好")] if large == 0 else [frames.text("敏"), image, frames.text("好")]
    assert events == whole(lexicon(held_bytes=1000), *events)


def test_a_short_tool_name_at_the_head_of_the_queue_stops_nothing() -> None:
    """Nor does the tail of reasoning before it; each is checked when the next surface begins."""
    events = [frames.delta({"reasoning_content": "ab"}), frames.tool(name="f"), frames.text("c" * 9), frames.finish()]
    guard = remote(depth=1, held_bytes=300)
    for event in events:
        feed(guard, event)
        passed(guard)
    guard.end(0.0)
    assert guard.failure is None
    assert events == out(guard)


def test_no_more_checks_are_in_flight_than_the_policy_allows() -> None:
    """The next window is cut when a verdict comes."""
    guard = remote(depth=2, choices=3)
    feed(
        guard,
        *(event for index in range(3) for event in (frames.text("aaaa", index=index), frames.finish(index=index))),
    )
    windows = asked(guard)
    assert 2 == len(windows) == guard.in_flight
    assert guard.deadline() is None
    guard.judged(windows[1], PASS, 0.0)
    assert 1 == len(asked(guard))
    assert 2 == guard.in_flight


def test_a_tick_cuts_what_has_waited_long_enough() -> None:
    """`deadline` says when; the earliest of all runs counts."""
    guard = remote(choices=2)
    assert guard.deadline() is None
    feed(guard, frames.text("a", index=1), now=2.0)
    feed(guard, frames.text("b"), now=1.0)
    assert 11.0 == guard.deadline()
    guard.tick(10.9)
    assert [] == asked(guard)
    guard.tick(11.0)
    assert ["b"] == [window.passage.copy for window in asked(guard)]
    assert 12.0 == guard.deadline()


# What the client sees


def test_a_violation_ends_its_choice_and_no_other() -> None:
    """What was cleared leaves, a closing frame stands for the rest, later frames are dropped and counted."""
    guard = lexicon(choices=2)
    feed(guard, frames.role(), frames.text("ab"), frames.text("c敏"), frames.text("x", index=1), frames.text("感词d"))
    assert not guard.over
    assert guard.cut
    feed(guard, frames.text("efg"), frames.finish(), frames.text("y", index=1), frames.finish(index=1), frames.usage())
    sent = whole(guard)
    assert [frames.role(), frames.text("ab")] == sent[:2]
    assert closed(role=False) == said(sent[2:3])
    assert [frames.text("x", index=1), frames.text("y", index=1), frames.finish(index=1), frames.usage()] == sent[3:]
    assert not guard.over
    assert Violation(0, "content", 3, "word", "lexicon", "block") == guard.tally.violations[0]
    assert (9, 4, 3, 3) == (guard.tally.came, guard.tally.released, guard.tally.blocked, guard.tally.late)


def test_the_upstream_is_stopped_when_no_choice_is_left() -> None:
    """As many as were asked for, and at least those that have begun."""
    for asked_for, ended, over in ((1, [0], True), (2, [0], False), (2, [0, 1], True), (1, [1], True)):
        guard = lexicon(choices=asked_for)
        feed(guard, *(frames.text(BAD, index=index) for index in ended))
        assert over is guard.over
    guard = lexicon(choices=1)
    feed(guard, frames.role(index=1), frames.text(BAD))
    assert not guard.over
    feed(guard, frames.text(BAD, index=1))
    assert guard.over
    guard = lexicon(choices=2)
    feed(guard, frames.finish(), frames.text(BAD, index=1))
    assert guard.over


def test_a_closing_frame_carries_what_all_frames_share() -> None:
    """The same id, model and time; a role first if no frame of the choice went out."""
    (role, closing) = whole(lexicon(), frames.text(BAD, id="one"))
    expected = json.loads(frames.delta({}, finish_reason="content_filter", id="one")[6:])
    assert expected == json.loads(closing[6:])
    expected["choices"] = [{"delta": {"role": "assistant", "content": ""}, "index": 0, "finish_reason": None}]
    assert expected == json.loads(role[6:])


def test_it_takes_them_from_the_newest_frame_that_has_choices() -> None:
    """Some servers send frames without choices whose id is empty; some count `created` up."""
    guard = remote()
    feed(guard, frames.text("aa"), frames.text("bb", id="new"), frames.chunk([], id=""))
    guard.end(0.0)
    guard.judged(*asked(guard), BLOCK, 0.0)
    role, closing, unsaid = (json.loads(raw[6:])["id"] for raw in out(guard))
    assert ("new", "new", "") == (role, closing, unsaid)


def test_a_notice_can_stand_in_the_place_of_the_text() -> None:
    """As the last content before the closing frame."""
    guard = lexicon(on_violation="replace", notice="…")
    sent = whole(guard, frames.role(), frames.text(BAD))
    assert [(0, {"content": "…"}, None), (0, {}, "content_filter")] == said(sent[1:])


def test_a_violation_can_end_the_reply_with_an_error() -> None:
    """After what is cleared, and nothing more: no closing frame, no usage."""
    guard = lexicon(on_violation="error", choices=2, usage=True)
    cleared = [frames.text("a"), frames.text("b", index=1), frames.text("敏")]
    feed(guard, *cleared, frames.text(f"c{BAD}"), frames.text("d", index=1), frames.usage())
    assert ("content_filter", True, True) == (guard.failure, guard.over, guard.finished)
    assert cleared == whole(guard)


def test_a_frame_with_a_blocked_choice_beside_a_live_one_is_sent_without_it() -> None:
    """Entry by entry; with nothing left it is not sent at all. Only what left is counted."""
    guard = lexicon(choices=2)
    shared = frames.chunk([choice(0, content=BAD), choice(1, content="ok")], extra={"service_tier": "x"})
    sent = whole(guard, shared, frames.chunk([choice(0, content="x")]), frames.chunk([choice(0), choice(1, "stop")]))
    assert [*closed(), (1, {"content": "ok"}, None), (1, {}, "stop")] == said(sent)
    assert "x" == json.loads(sent[2][6:])["service_tier"]
    assert (5, 2, 1) == (guard.tally.came, guard.tally.released, guard.tally.late)


def test_a_frame_that_waits_for_two_choices_waits_for_both() -> None:
    """And a violation of one leaves it waiting for the other."""
    guard = remote(choices=2, depth=2)
    feed(
        guard,
        frames.chunk([choice(0, content="aaaa"), choice(1, content="bbbb")]),
        frames.finish(),
        frames.finish(index=1),
    )
    first, second = asked(guard)
    guard.judged(first, BLOCK, 0.0)
    assert closed() == said(out(guard))
    guard.judged(second, PASS, 0.0)
    assert [(1, {"content": "bbbb"}, None), (1, {}, "stop")] == said(out(guard))


def test_a_second_verdict_may_take_back_more_than_the_first() -> None:
    """With context a window shows text that was cleared; frames of it that have not left are dropped then."""
    guard = remote(choices=2, depth=9, cutting=Cutting(holdback_chars=2, first_chars=1, max_chars=2, context_chars=9))
    feed(guard, frames.text("bbbb", index=1), frames.text("aa"))
    other, first = asked(guard)
    feed(guard, frames.text("aa"))
    (second,) = asked(guard)
    guard.judged(first, PASS, 0.0)
    guard.judged(second, PASS, 0.0)
    feed(guard, frames.text("cc"))
    (third,) = asked(guard)
    feed(guard, frames.text("dd"))
    (fourth,) = asked(guard)
    assert (0, 0) == (third.start, fourth.start)
    guard.judged(fourth, BLOCK, 0.0)
    guard.judged(third, BLOCK, 0.0)
    guard.end(0.0)
    guard.judged(other, PASS, 0.0)
    passed(guard)
    assert guard.finished
    assert [(1, {"content": "bbbb"}, None), *closed()] == said(out(guard))


def test_no_window_is_cut_for_a_choice_that_has_ended() -> None:
    """Nor for a reply that has failed or that nobody reads: a check costs money."""
    guard = remote(depth=1, choices=2)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.finish())
    (window,) = asked(guard)
    guard.judged(window, BLOCK, 0.0)
    assert [] == asked(guard)
    for gone in (True, False):
        guard = remote(depth=1)
        feed(guard, frames.text("aaaa"), frames.delta({"reasoning": "bbbb"}), frames.finish())
        (window,) = asked(guard)
        if gone:
            guard.abandon()
            guard.judged(window, PASS, 99.0)
        else:
            guard.failed(window, 99.0)
        guard.tick(999.0)
        assert [] == asked(guard)
        assert guard.deadline() is None
        assert guard.finished


def test_without_a_verdict_nothing_leaves() -> None:
    """The reply fails after what is cleared."""
    guard = remote(choices=2)
    feed(guard, frames.role(), frames.text("aaaa"), frames.role(index=1), frames.finish())
    guard.failed(*asked(guard), 0.0)
    assert ("moderation_unavailable", True, True) == (guard.failure, guard.over, guard.finished)
    assert [frames.role()] == out(guard)


def test_a_missing_verdict_on_a_choice_that_has_ended_ends_nothing_else() -> None:
    """Nobody waits for it, in the middle of a reply or behind its end; and it clears nothing."""
    guard = remote(choices=2, depth=9, usage=True)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.finish(), frames.text("c", index=1))
    first, second = asked(guard)
    guard.judged(second, BLOCK, 0.0)
    guard.failed(first, 0.0)
    assert guard.failure is None
    assert closed() == said(whole(guard, frames.finish(index=1)))[:2]
    guard = remote(depth=9, usage=True)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.finish())
    first, second = asked(guard)
    guard.judged(second, BLOCK, 0.0)
    guard.end(0.0)
    assert guard.finished
    guard.failed(first, 0.0)
    assert guard.failure is None
    guard = remote(depth=2, choices=3)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.finish())
    feed(
        guard, *(event for index in (1, 2) for event in (frames.text("cccc", index=index), frames.finish(index=index)))
    )
    first, second = asked(guard)
    guard.judged(second, BLOCK, 0.0)
    assert [1] == [window.run.choice for window in asked(guard)]
    guard.failed(first, 0.0)
    assert [2] == [window.run.choice for window in asked(guard)]  # its place in flight is free again
    guard = remote(whole=True, depth=9, choices=2)
    guard.feed(Chunk.body(body({"content": "aaaa", "refusal": "bbbb"}, {"content": "cccc"})), 0.0)
    windows = {window.passage.copy: window for window in asked(guard)}
    guard.judged(windows["bbbb"], BLOCK, 0.0)
    guard.failed(windows["aaaa"], 0.0)
    guard.judged(windows["cccc"], PASS, 0.0)
    assert ["", "cccc"] == [entry["message"]["content"] for entry in json.loads(out(guard)[0])["choices"]]


def test_a_client_that_has_gone_is_sent_nothing() -> None:
    """What is held is dropped, and what comes later."""
    guard = remote()
    feed(guard, frames.text("aaaa"), frames.finish(), frames.text("bbbb", index=1), frames.finish(index=1))
    guard.abandon()
    assert guard.finished
    first, second = asked(guard)
    guard.judged(first, BLOCK, 0.0)
    guard.failed(second, 0.0)
    feed(guard, frames.role())
    assert [] == out(guard)
    assert guard.failure is None


def test_many_violations_are_counted_and_a_hundred_are_told() -> None:
    """Only what does not cut can find more."""
    guard = lexicon(REVIEWED)
    events = [frames.text(BAD)] * 150
    assert events == whole(guard, *events)
    assert 100 == len(guard.tally.violations)
    assert not guard.cut
    assert 0 == guard.tally.blocked
    assert Violation(0, "content", 3, "word", "lexicon", "review") == guard.tally.violations[1]


# Usage


def test_a_client_that_asked_for_usage_gets_it_once() -> None:
    """The upstream's if that has come, else an estimate; not if nothing was cut, nor if nobody asked."""
    usage = frames.usage(5, 6)
    assert [frames.text("a"), frames.finish(), usage] == whole(
        lexicon(usage=True), frames.text("a"), frames.finish(), usage
    )
    assert [frames.text("a"), frames.finish()] == whole(lexicon(usage=True), frames.text("a"), frames.finish())
    sent = whole(lexicon(usage=True), frames.text("a" * 50), frames.text(BAD), usage)
    assert [{"prompt_tokens": 0, "completion_tokens": 15, "total_tokens": 15}] == _usages(sent)
    sent = whole(lexicon(usage=True, prompt_tokens=lambda: 7), frames.text("a"), frames.text(BAD), usage)
    assert [{"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}] == _usages(sent)
    assert [] == json.loads(sent[-1][6:])["choices"]
    assert json.loads(usage[6:])["id"] == json.loads(sent[-1][6:])["id"]
    assert [] == _usages(whole(lexicon(), frames.text(BAD), usage))
    early = frames.chunk([choice(0, content="a")], extra={"usage": {"total_tokens": 8}})
    assert [{"total_tokens": 8}] * 2 == _usages(whole(lexicon(usage=True), early, frames.delta({"refusal": BAD})))
    with_text = frames.chunk([choice(0, content=BAD)], extra={"usage": {"total_tokens": 9}})
    assert [{"total_tokens": 9}] == _usages(whole(lexicon(usage=True), with_text))


def test_usage_that_came_before_the_verdict_is_sent_once() -> None:
    """It waits behind the text, and the closing frame comes before it."""
    guard = remote(usage=True)
    feed(guard, frames.text("aaaa"), frames.finish(), frames.usage(5, 6))
    guard.end(0.0)
    guard.judged(*asked(guard), BLOCK, 0.0)
    sent = out(guard)
    assert closed() == said(sent)
    assert frames.usage(5, 6) == sent[-1]
    assert 1 == len(_usages(sent))


def test_usage_is_the_upstreams_business_while_a_choice_is_left() -> None:
    """One of two choices is cut, the other goes on to its end."""
    sent = whole(
        lexicon(usage=True, choices=2),
        frames.text(BAD),
        frames.text("a", index=1),
        frames.finish(index=1),
        frames.usage(),
    )
    assert 1 == len(_usages(sent))
    sent = whole(lexicon(usage=True, choices=2), frames.text(BAD), frames.text("a", index=1), frames.finish(index=1))
    assert [] == _usages(sent)


def _usages(raws: Iterable[bytes]) -> list[Any]:
    return [frame["usage"] for raw in raws if (frame := json.loads(raw[6:])).get("usage")]


# A reply that is not streamed


def reply(guard: Guard, body: bytes) -> Any:
    """What is made of a reply that is not streamed, with every window passed."""
    guard.feed(Chunk.body(body), 0.0)
    guard.end(0.0)
    passed(guard)
    assert guard.finished
    (chunk,) = guard.released
    return chunk.raw if chunk.raw == body else json.loads(chunk.raw)


def body(*messages: dict[str, Any]) -> bytes:
    """A whole reply with these messages."""
    frame = json.loads(frames.body(*("" for _ in messages)))
    for entry, message in zip(frame["choices"], messages, strict=True):
        entry["message"] = {"role": "assistant", **message}
    return json.dumps(frame).encode()


def test_a_clean_reply_is_forwarded_as_the_bytes_it_came_as() -> None:
    """With scanners and with moderators that are asked."""
    clean = b" " + frames.body("Hello", "你好") + b"\n"
    assert clean == reply(lexicon(whole=True, choices=2), clean)
    assert clean == reply(remote(whole=True, choices=2), clean)


def test_of_a_reply_that_violates_what_was_cleared_is_left() -> None:
    """Of its choice alone; the upstream's usage is kept, and what else stands in the frame."""
    guard = lexicon(whole=True, choices=2, usage=True, notice="for another policy")
    found = reply(guard, body({"content": f"ab\u200b{BAD}c"}, {"content": "ok"}))
    expected = json.loads(body({"content": "ab"}, {"content": "ok"}))
    expected["choices"][0] |= {"finish_reason": "content_filter", "logprobs": None}
    assert expected == found
    assert (9, 4, 3) == (guard.tally.came, guard.tally.released, guard.tally.blocked)


@pytest.mark.parametrize(
    ("message", "left"),
    [
        pytest.param({"content": BAD}, {"content": ""}, id="nothing was cleared"),
        pytest.param(
            {"content": "a", "reasoning_content": f"b{BAD}"}, {"content": "", "reasoning_content": "b"}, id="reasoning"
        ),
        pytest.param(
            {"content": f"a{BAD}", "reasoning": "b"}, {"content": "a", "reasoning": "b"}, id="after reasoning"
        ),
        pytest.param({"content": "a", "refusal": f"b{BAD}"}, {"content": "a", "refusal": "b"}, id="a refusal"),
        pytest.param({"content": [{"text": "a"}, {"text": f"b{BAD}"}]}, {"content": "ab"}, id="parts"),
        pytest.param({"content": "a", "tool_calls": [{"function": {"name": BAD}}]}, {"content": "a"}, id="a tool call"),
        pytest.param({"content": "a", "note": BAD}, {"content": "a"}, id="an unknown field"),
        pytest.param({"content": None, "note": BAD}, {"content": ""}, id="no content"),
        pytest.param({"content": "a\u200b", "note": BAD}, {"content": "a\u200b"}, id="nothing follows what is hidden"),
    ],
)
def test_a_message_that_violates_keeps_its_cleared_prose(message: dict[str, Any], left: dict[str, Any]) -> None:
    """In the order in which a stream would have said it: nothing that comes behind the violation."""
    (found,) = reply(lexicon(whole=True), body(message))["choices"]
    assert {"role": "assistant", **left} == found["message"]
    assert "content_filter" == found["finish_reason"]


def test_the_cut_counts_characters_as_they_were_read() -> None:
    """A pair in halves is one character, though its copy be longer: 🉀 is 〔本〕."""
    halves = [{"text": half} for half in ["\ud83c", "\ude40"] * 4]
    (found,) = reply(lexicon(whole=True), body({"content": [*halves, {"text": BAD}]}))["choices"]
    assert "🉀" * 4 == found["message"]["content"]


def test_a_whole_reply_is_cut_where_remote_verdicts_say() -> None:
    """What its windows have cleared by then; a verdict on something else cuts the prose where it stands."""
    guard = remote(whole=True, depth=9)
    guard.feed(Chunk.body(body({"content": "abcdef", "reasoning": "ghij"})), 0.0)
    content, reasoning = sorted(asked(guard), key=lambda window: window.passage.copy)
    guard.judged(reasoning, PASS, 0.0)
    guard.judged(content, BLOCK, 0.0)
    guard.end(0.0)
    message = json.loads(out(guard)[0])["choices"][0]["message"]
    assert {"role": "assistant", "reasoning": "ghij", "content": ""} == message


def test_a_notice_and_an_error_in_a_whole_reply() -> None:
    """The notice follows what was cleared; an error leaves no body."""
    (found,) = reply(lexicon(whole=True, on_violation="replace", notice="…"), body({"content": f"a{BAD}"}))["choices"]
    assert "a…" == found["message"]["content"]
    guard = lexicon(whole=True, on_violation="error")
    guard.feed(Chunk.body(body({"content": BAD})), 0.0)
    assert ("content_filter", [], True) == (guard.failure, guard.released, guard.finished)


def test_a_string_outside_the_choices_fails_a_whole_reply() -> None:
    """There is no choice to end."""
    guard = lexicon(whole=True)
    guard.feed(Chunk.body(frames.body("ok")[:-1] + f',"note":"{BAD}"}}'.encode()), 0.0)
    assert ("content_filter", [], True) == (guard.failure, guard.released, guard.finished)
    assert not guard.cut


def test_a_whole_reply_is_written_anew_where_it_could_be_read_differently() -> None:
    """As the body it is, not as an event."""
    found = reply(lexicon(whole=True), b'{"id":1,"id":2,"choices":[]}')
    assert {"id": 2, "choices": []} == found


def test_a_choice_that_stands_twice_makes_a_whole_reply_unreadable() -> None:
    """Two messages would be cut by the reading of one."""
    guard = lexicon(whole=True)
    frame = json.loads(frames.body("ok", BAD))
    frame["choices"][1]["index"] = 0
    guard.feed(Chunk.body(json.dumps(frame).encode()), 0.0)
    assert ("upstream_malformed", []) == (guard.failure, guard.released)


def test_a_whole_reply_without_a_finish_is_read_to_its_end() -> None:
    """The end of the upstream ends its runs."""
    whole_reply = b'{"choices":[{"index":0,"message":{"content":"\xe6\x95\x8f"}}]}'
    assert whole_reply == reply(lexicon(whole=True), whole_reply)


# Shadow


def test_a_shadow_holds_and_changes_nothing_and_measures_everything() -> None:
    """Text after the finish leaves, and what cannot be read, and frames that others would write anew."""
    events = [
        frames.text(BAD),
        frames.text("a敏"),
        ": 敏感词\n".encode() + frames.delta({"note": BAD}),
        frames.finish(),
        frames.text("late"),
        frames.data("{"),
        frames.data(b'{"id":1,"id":2,"choices":[]}'),
        frames.chunk([], extra={"banner": BAD}),
    ]
    for unknown in ("check", "drop", "pass"):
        guard = lexicon(hold=False, unknown_fields=unknown)
        for event in events:
            feed(guard, event)
            assert [event] == out(guard)
        guard.end(0.0)
        assert guard.finished
        assert not guard.over
        assert not guard.cut
        assert guard.failure is None
        found = [violation.surface for violation in guard.tally.violations]
        assert (["content", "?note", "?banner"] if unknown == "check" else ["content"]) == found
        assert 4 == guard.tally.late


def test_a_shadow_tells_of_each_evasion_once() -> None:
    """And goes on reading."""
    guard = lexicon(hold=False)
    feed(guard, frames.text("a"), frames.text("\u200b" * 65 + "b"), frames.text("c"), frames.text(BAD), frames.finish())
    assert ["evasion", "word"] == [violation.label for violation in guard.tally.violations]


def test_a_shadow_lets_verdicts_and_their_absence_change_nothing() -> None:
    """They are counted."""
    guard = remote(hold=False, depth=9, choices=3)
    events = [event for index in range(3) for event in (frames.text("aaaa", index=index), frames.finish(index=index))]
    feed(guard, *events)
    assert events == out(guard)
    first, second, third = asked(guard)
    guard.judged(first, BLOCK, 0.0)
    guard.failed(second, 0.0)
    guard.judged(third, PASS, 0.0)
    guard.end(0.0)
    assert (0, True, None, False) == (guard.in_flight, guard.finished, guard.failure, guard.over)
    assert [Violation(0, "content", 0, "label", "model", "block", 90, "call-1")] == guard.tally.violations
    assert [] == out(guard)


# What the gate looks at


def test_a_guard_says_when_the_upstream_is_to_be_stopped() -> None:
    """When no choice is left."""
    guard = lexicon()
    assert not guard.finished
    assert not guard.over
    feed(guard, frames.text(BAD))
    assert guard.over


class Twice:
    """A scanner that finds two things at once, the later one first."""

    held = 0

    def feed(self, text: str) -> Sequence[Hit]:
        return [Hit(3, 4, "b", "block", "x"), Hit(1, 2, "a", "block", "x")]

    def finish(self) -> Sequence[Hit]:
        return ()


def test_the_first_of_several_hits_decides() -> None:
    """And is told first."""
    guard = Guard(Policy(), lambda: [Twice()])
    sent = whole(guard, frames.text("abcde"))
    assert closed() == said(sent)
    assert ["a", "b"] == [violation.label for violation in guard.tally.violations]


@pytest.mark.parametrize(
    ("options", "unverified"),
    [
        ({}, {"opaque": 300}),
        ({"opaque": "drop"}, {}),
        ({"unknown_fields": "pass"}, {"unknown_field": 303}),
        ({"unknown_fields": "drop"}, {}),
    ],
)
def test_what_an_option_lets_leave_unread_is_counted(options: dict[str, Any], unverified: dict[str, int]) -> None:
    """By the option, in characters: nothing leaves without a verdict and without a trace."""
    guard = Guard(Policy(**options))
    guard.feed(Chunk.event({"choices": [{"index": 0, "delta": {"extra": "abc", "signature": "A" * 300}}]}), 0.0)
    assert unverified == guard.tally.unverified()


def test_the_longest_wait_of_a_released_frame_is_known() -> None:
    """A frame that waited for a window until it passed; what leaves at once has not waited."""
    guard = Guard(Policy(), remote=True)
    guard.feed(Chunk.event({"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}]}), 1.0)
    assert 0.0 == guard.tally.longest_hold_s
    [window] = guard.checks
    guard.judged(window, PASS, 3.5)
    assert 2.5 == guard.tally.longest_hold_s


def test_nobody_is_shown_what_no_client_will_get() -> None:
    """A window of an ended run that waits when its choice is ended is not worth a call any more."""
    guard = remote(choices=2)
    feed(guard, frames.delta({"reasoning": "aaaa"}), frames.text("bbbb"), frames.text("x", index=1), frames.finish())
    reasoning, content = guard.checks
    assert "bbbb" == guard.show(content, 0.0)
    guard.judged(content, BLOCK, 0.0)
    assert "" == guard.show(reasoning, 0.0)
