"""The guard of one reply, rule by rule: what the client sees, of a stream, of a whole reply, and of a shadow."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from guards import BAD, BLOCK, PASS, REVIEWED, asked, choice, closed, feed, lexicon, out, passed, remote, said, whole

from relay.pure.guard import Guard, Violation
from relay.pure.openai import Chunk
from relay.pure.window import Cutting
from relay.testing import frames

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
