"""The guard of one reply, rule by rule: what is guarded, who a text belongs to, when a run ends.

In which order frames leave is in `test_guard_order.py`, what the client sees in `test_guard_answer.py`.
"""

import json
from typing import Any

import pytest
from guards import BAD, BLOCK, PASS, asked, choice, closed, feed, lexicon, out, passed, remote, said, whole

from relay.pure.openai import Chunk
from relay.pure.policy import Policy
from relay.pure.surfaces import says
from relay.pure.window import Cutting
from relay.testing import frames


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
