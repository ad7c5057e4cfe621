"""Replies and requests moderated by Tencent's service, played by the fake that comes with the plugin."""

import asyncio
import re
from random import Random

import pytest

from relay.testing import Gate, Head, Script, Send, frames, streamed, whole
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY, Fake

BEFORE, PHRASE, AFTER = "It begins harmlessly, ", "forbidden fruit", " and there is more of it behind."
WORDS = [{"word": PHRASE, "label": "Porn", "score": 97}]
# So small that a short reply has many windows.
WINDOW = {"first_chars": 8, "sentence_chars": 8, "max_chars": 24, "max_wait_ms": 50}
CLEAN = "A long and harmless story. " * 12 + "它讲的是天气。" * 9 + "🎈❤\ufe0f"
CALLS = "relay_moderation_calls_total"
CHECKS = "relay_moderation_checks_total"
CHARACTERS = "relay_moderation_characters_total"
UNVERIFIED = "relay_released_unverified_characters_total"


@pytest.fixture
def reader():
    """How upstream bodies are read is tested elsewhere."""
    return "push"


@pytest.fixture
async def tms():
    async with Fake(keep_calls=10_000, words=WORDS) as fake:
        yield fake


@pytest.fixture
def moderated(tms, open_chain):
    """A chain with the fake as its moderator; by default of replies alone."""

    def chain(*, tencent=None, **options):
        asked = {"use": "tencent", "secret_id": SECRET_ID, "secret_key": SECRET_KEY, "endpoint": tms.endpoint}
        table = {"request": "off", "window": WINDOW, **options}
        return [*open_chain, {"use": "moderation", "moderators": [{**asked, **(tencent or {})}], **table}]

    return chain


def pieces(text, length=3):
    return [text[start : start + length] for start in range(0, len(text), length)]


def says(text, length=3):
    """An upstream that streams a text."""
    return streamed(frames.stream(pieces(text, length)))


def blurts(text):
    """One that says nothing before the text: so the head of the reply waits for a verdict."""
    return streamed(frames.stream(pieces(text))[1:])


def violations(rig):
    return [line for line in rig.log if line["event"] == "violation"]


class TestReplies:
    async def test_a_clean_one_comes_out_as_it_went_in(self, serve, moderated, tms):
        """Every window of it was asked about."""
        data = frames.stream(pieces(CLEAN))
        rig = await serve(streamed(data), chain=moderated())
        assert b"".join(data) == (await rig.ask()).data
        shown = [ask.text for ask in tms.counts.kept]
        assert any(
            each.startswith(CLEAN[:8]) for each in shown
        )  # two are asked about at a time, so it need not be the first
        assert any("🎈❤\ufe0f" in text for text in shown)
        assert sum(map(len, shown)) >= len(CLEAN)

    async def test_two_choices_and_a_tool(self, serve, moderated, tms):
        """Whatever they say is looked at, each for itself."""
        data = [
            *(frames.text(piece) for piece in pieces("One and one. " * 9)),
            *(frames.text(piece, index=1) for piece in pieces("二加二。" * 9)),
            frames.tool(name="weather"),
            *(frames.tool(piece) for piece in pieces('{"city": "東京"}')),
            frames.finish("tool_calls"),
            frames.finish(index=1),
            frames.done(),
        ]
        rig = await serve(streamed(data), chain=moderated())
        reply = await rig.ask(n=2)
        assert b"".join(data) == reply.data
        assert any("weather\n" in ask.text for ask in tms.counts.kept)

    @pytest.mark.parametrize("length", [1, 4, 7, 200])
    async def test_a_violation_does_not_get_out(self, serve, moderated, length):
        """Nothing of it, however it was cut; what is logged says where it stood and never what it was."""
        rig = await serve(says(BEFORE + PHRASE + AFTER, length), chain=moderated())
        reply = await rig.ask()
        assert 200 == reply.status
        assert BEFORE.startswith(reply.texts()[0])
        assert {0: "content_filter"} == reply.finishes()
        [line] = violations(rig)
        assert ("Porn", 97, "tencent", "block", "response", "content", 0) == tuple(
            line[name] for name in ("label", "score", "moderator", "action", "direction", "place", "choice")
        )
        assert re.fullmatch("[0-9a-f-]{36}", line["reference"])
        assert 0 <= line["position"] <= len(BEFORE)
        assert line["request_id"] == reply.headers["x-request-id"]
        assert "fruit" not in str(rig.log)
        assert ["filtered"] == [line["outcome"] for line in await rig.ended()]

    async def test_the_other_choice_goes_on(self, serve, moderated):
        data = [
            *(frames.text(piece) for piece in pieces(BEFORE + PHRASE)),
            *(frames.text(piece, index=1) for piece in pieces(CLEAN)),
            frames.finish(),
            frames.finish(index=1),
            frames.done(),
        ]
        rig = await serve(streamed(data), chain=moderated())
        reply = await rig.ask(n=2)
        assert CLEAN == reply.texts()[1]
        assert {0: "content_filter", 1: "stop"} == reply.finishes()

    async def test_the_upstream_is_stopped(self, serve, moderated):
        """Nobody pays for what is not read."""
        rig = await serve(
            Script(Head(), *map(Send, frames.stream(pieces(BEFORE + PHRASE + AFTER))[:-2]), Gate(asyncio.Event())),
            chain=moderated(),
        )
        await rig.ask()
        await rig.upstream.closed(rig.upstream.requests[0])

    async def test_whole_ones(self, serve, moderated):
        """They are looked at whole: clean ones come out as they went in, of others what was cleared."""
        body = frames.body(CLEAN)
        rig = await serve(whole(body), chain=moderated())
        assert body == (await rig.ask(stream=False)).data
        rig = await serve(whole(frames.body(BEFORE + PHRASE + AFTER)), chain=moderated())
        reply = await rig.ask(stream=False)
        assert {0: "content_filter"} == reply.finishes()
        assert BEFORE.startswith(reply.texts()[0])

    async def test_a_long_whole_one(self, serve, moderated, tms):
        """It is shown in windows of at most 10,000 characters, and a violation at any place of it is found."""
        text = "word " * 9000
        rig = await serve(whole(frames.body(text)), chain=moderated())
        assert text == (await rig.ask(stream=False)).texts()[0]
        assert 5 <= len(tms.counts.kept) <= 6
        for at in (0, 9_990, 20_000, len(text)):
            rig = await serve(whole(frames.body(text[:at] + PHRASE + text[at:])), chain=moderated())
            reply = await rig.ask(stream=False)
            assert text[:at].startswith(reply.texts()[0])
            assert {0: "content_filter"} == reply.finishes()


class TestVerdicts:
    MASKED = BEFORE + "*" * len("微信abc") + AFTER

    @pytest.fixture
    def advertises(self, tms):
        """Words that the service only suspects."""
        tms.change(words=[{"word": "微信abc", "label": "Ad", "suggestion": "Review", "score": 70}])
        return says(BEFORE + "微信abc" + AFTER)

    @pytest.mark.parametrize(
        "told", [{}, {"positions": "snippets"}, {"positions": "keywords"}, {"position_shift": 4}, {"details": "hits"}]
    )
    async def test_a_label_that_is_masked(self, serve, moderated, tms, advertises, told):
        """By the operator's wish; where the service says that it stands, or where the word is found."""
        tms.change(**told)
        rig = await serve(advertises, chain=moderated(labels={"Ad": {"mask": 60}}))
        reply = await rig.ask()
        assert self.MASKED == reply.texts()[0]
        assert {0: "stop"} == reply.finishes()
        assert {("Ad", "mask")} == {(line["label"], line["action"]) for line in violations(rig)}
        metrics = await rig.metrics()
        assert 5 == metrics[f'{CHARACTERS}{{state="blocked"}}']
        assert len(self.MASKED) - 5 == metrics[f'{CHARACTERS}{{state="released"}}']

    @pytest.mark.parametrize("written", ["微\u200b信abc", "微信ａｂｃ", "微信𝐚bc", "微信аbc"])
    async def test_a_word_in_disguise_is_masked(self, serve, moderated, tms, advertises, written):
        """The service knows it as it stands in its list; it is shown what is hidden, and what was written is masked."""
        if "ａ" in written:  # another width is no disguise: the service knows that too
            tms.change(words=[{"word": written, "label": "Ad", "suggestion": "Review", "score": 70}])
        rig = await serve(says(BEFORE + written + AFTER, 1), chain=moderated(labels={"Ad": {"mask": 60}}))
        assert BEFORE + "*" * len(written) + AFTER == (await rig.ask()).texts()[0]

    async def test_beside_the_lexicon(self, serve, moderated, tms, advertises):
        """Each has its own words; the service sees what was written, and the strictest verdict counts."""
        tms.change(words=[*tms.settings.words, {"word": PHRASE, "label": "Porn"}])
        chain = moderated(labels={"Ad": {"mask": 60}})
        chain[-1]["moderators"].insert(0, {"use": "lexicon", "words": ["harmlessly"], "action": "mask"})
        rig = await serve(advertises, chain=chain)
        assert "It begins **********, " + "*" * 5 + AFTER == (await rig.ask()).texts()[0]
        assert {"lexicon", "tencent"} == {line["moderator"] for line in violations(rig)}
        assert any("harmlessly" in ask.text for ask in tms.counts.kept)
        rig = await serve(says(BEFORE + PHRASE + AFTER), chain=chain)
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert "It begins **********, ".startswith(reply.texts()[0])

    async def test_two_policies_of_one_account(self, serve, moderated, tms):
        """Both are asked about the same windows; what one of them blocks does not leave."""
        chain = moderated(tencent={"biz_type": "strict"})
        chain[-1]["moderators"].append({**chain[-1]["moderators"][0], "biz_type": "lenient"})
        rig = await serve(says(CLEAN), chain=chain)
        assert CLEAN == (await rig.ask()).texts()[0]
        # In which order they come to the service is for their connections to say.
        strict, lenient = (
            sorted(ask.text for ask in tms.counts.kept if ask.biz_type == name) for name in ("strict", "lenient")
        )
        assert strict == lenient != []
        rig = await serve(says(BEFORE + PHRASE + AFTER), chain=chain)
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert BEFORE.startswith(reply.texts()[0])

    async def test_a_mask_in_a_whole_reply(self, serve, moderated, advertises):
        rig = await serve(whole(frames.body(BEFORE + "微信abc" + AFTER)), chain=moderated(labels={"Ad": {"mask": 60}}))
        assert self.MASKED == (await rig.ask(stream=False)).texts()[0]

    async def test_a_mask_without_a_place_blocks(self, serve, moderated, tms, advertises):
        """A model says that something is there, and not where."""
        tms.change(positions="none")
        rig = await serve(advertises, chain=moderated(labels={"Ad": {"mask": 60}}))
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert BEFORE.startswith(reply.texts()[0])

    async def test_a_mask_in_a_tools_arguments_blocks(self, serve, moderated, advertises):
        """A call with stars in it is not what the model wanted to be called."""
        data = [
            frames.tool(name="send"),
            *map(frames.tool, pieces('{"to": "微信abc"}')),
            frames.finish("tool_calls"),
            frames.done(),
        ]
        rig = await serve(streamed(data), chain=moderated(labels={"Ad": {"mask": 60}}))
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert "微信".encode() not in reply.data

    @pytest.mark.parametrize(
        ("options", "finish"),
        [
            ({}, "stop"),
            ({"on_review": "block"}, "content_filter"),
            ({"labels": {"Ad": {"block": 60}}}, "content_filter"),
            ({"labels": {"Ad": {"block": 71}}}, "stop"),
            ({"labels": {"Ad": {"review": 60}}, "on_review": "block"}, "content_filter"),
        ],
    )
    async def test_a_review(self, serve, moderated, advertises, options, finish):
        """It lets pass and is written down, unless the operator says otherwise."""
        rig = await serve(advertises, chain=moderated(**options))
        reply = await rig.ask()
        assert {0: finish} == reply.finishes()
        if finish == "stop":
            assert BEFORE + "微信abc" + AFTER == reply.texts()[0]
        elif "block" not in options.get("labels", {}).get("Ad", {}):
            assert {"block"} == {line["action"] for line in violations(rig)}

    async def test_the_strictest_of_all_that_was_found_counts(self, serve, moderated, tms):
        """The label at the top says Review, a detail says Block."""
        words = [{"word": "harmlessly", "label": "Polity", "suggestion": "Review"}, {"word": PHRASE, "label": "Ad"}]
        tms.change(words=words, priority=["Polity", "Ad"])
        rig = await serve(says(BEFORE + PHRASE + AFTER, 500), chain=moderated())
        reply = await rig.ask()
        assert {0: "content_filter"} == reply.finishes()
        assert "fruit" not in reply.texts()[0]
        assert ("Ad", "block") in {(line["label"], line["action"]) for line in violations(rig)}


class TestRequests:
    async def test_a_prompt_is_refused(self, serve, moderated):
        """A clean 400, and no upstream is asked."""
        rig = await serve(says("Hi"), chain=moderated(request="before"))
        reply = await rig.ask(messages=[{"role": "user", "content": f"Tell me of the {PHRASE}."}])
        assert (400, "content_filter") == (reply.status, reply.error["code"])
        assert not rig.upstream.requests
        [line] = violations(rig)
        assert ("request", "messages[0]", "Porn", 97, "tencent") == tuple(
            line[name] for name in ("direction", "place", "label", "score", "moderator")
        )
        assert re.fullmatch("[0-9a-f-]{36}", line["reference"])
        assert "fruit" not in str(rig.log)

    async def test_a_conversation_that_grows(self, serve, moderated, tms):
        """Only its new turn is asked about."""
        rig = await serve(says("Well."), chain=moderated(request="before", response="off"))
        messages = []
        for turn in range(5):
            messages += [{"role": "user", "content": f"question {turn}"}]
            before = len(tms.counts.kept)
            assert 200 == (await rig.ask(messages=messages)).status
            new = [f"question {turn}"] + ([f"answer {turn - 1}"] if turn else [])
            assert sorted(new) == sorted(ask.text for ask in [*tms.counts.kept][before:])
            messages += [{"role": "assistant", "content": f"answer {turn}"}]
        assert 20 - 4 == (await rig.metrics())[f'{CHECKS}{{moderator="tencent",outcome="cached"}}']

    async def test_a_verdict_is_kept_for_as_long_as_it_may(self, serve, moderated, tms):
        rig = await serve(says("Well."), chain=moderated(request="before", response="off", cache_s=0))
        await rig.ask()
        await rig.ask()
        assert 2 == tms.counts.calls

    async def test_equal_requests_at_once_cost_one_call(self, serve, moderated, tms):
        tms.change(p50_ms=100, p99_ms=100)
        rig = await serve(says("Well."), chain=moderated(request="before", response="off"))
        replies = await asyncio.gather(*(rig.ask() for _ in range(20)))
        assert {200} == {reply.status for reply in replies}
        assert 1 == tms.counts.calls

    async def test_a_long_prompt_is_asked_about_in_pieces(self, serve, moderated, tms):
        rig = await serve(says("Well."), chain=moderated(request="before", response="off", context_chars=5000))
        text = "b\u200bad " * 6000
        assert 200 == (await rig.ask(messages=[{"role": "user", "content": text}])).status
        assert all(len(ask.text) <= 10_000 for ask in tms.counts.kept)
        reply = await rig.ask(messages=[{"role": "user", "content": text + PHRASE}])
        assert 400 == reply.status


class TestService:
    async def test_a_session(self, serve, moderated, tms):
        """The windows of a reply are shown one after the other, under one name."""
        tms.change(p50_ms=20, p99_ms=20)
        text = "".join(f"This is sentence number {number}. " for number in range(40))
        rig = await serve(says(text), chain=moderated(tencent={"session": True}, request="before", depth=4))
        for _ in range(2):
            assert text == (await rig.ask()).texts()[0]
        asks = [ask for ask in tms.counts.kept if "messages" not in ask.session_id]
        sessions = list(dict.fromkeys(ask.session_id for ask in asks))
        assert 2 == len(sessions)
        for session in sessions:
            end = 0
            for ask in asks:
                if ask.session_id == session:
                    start = text.index(ask.text)
                    assert start == max(0, end - 15)
                    end = start + len(ask.text)
            assert len(text) == end
        # What a service that remembers says of a prompt, it need not say of the same prompt again.
        assert 2 == sum("messages" in ask.session_id for ask in tms.counts.kept)

    async def test_too_many_calls_are_no_failure(self, serve, moderated, tms):
        """They are made again, a little later, and nothing is lost."""
        tms.upcoming.extend(["RequestLimitExceeded"] * 12)
        rig = await serve(says(CLEAN, 40), chain=moderated())
        rig.loudest = "warning"
        replies = await asyncio.gather(*(rig.ask() for _ in range(8)))
        assert [CLEAN] * 8 == [reply.texts()[0] for reply in replies]
        assert 12 == tms.counts.refused["RequestLimitExceeded"]
        assert not any("unavailable" in str(line) for line in rig.log)
        assert not [name for name in await rig.metrics() if name.startswith(UNVERIFIED)]

    async def test_an_account_with_a_small_rate(self, serve, moderated, tms):
        """Windows grow: fewer calls, and everything is looked at."""
        tms.change(calls_per_second=30)
        rig = await serve(says(CLEAN), chain=moderated(tencent={"calls_per_second": 20}))
        replies = await asyncio.gather(*(rig.ask() for _ in range(12)))
        assert [CLEAN] * 12 == [reply.texts()[0] for reply in replies]
        assert {} == dict(tms.counts.refused)

    async def test_it_does_not_answer_before_the_head(self, serve, moderated, tms):
        """A 503, and nothing of the reply."""
        tms.change(outage="black_hole")
        rig = await serve(blurts(CLEAN), chain=moderated(deadline_ms=200))
        rig.loudest = "warning"
        reply = await rig.ask()
        assert (503, "moderation_unavailable") == (reply.status, reply.error["code"])
        assert "false" == reply.headers["x-should-retry"]

    async def test_it_does_not_answer_a_request(self, serve, moderated, tms):
        tms.change(outage="refuse")
        rig = await serve(says(CLEAN), chain=moderated(deadline_ms=200, request="before"))
        rig.loudest = "warning"
        reply = await rig.ask()
        assert (503, "moderation_unavailable") == (reply.status, reply.error["code"])
        assert not rig.upstream.requests

    async def test_it_falls_silent_inside_a_reply(self, serve, moderated, tms):
        """What was cleared stays, the stream ends with an error and in good order."""
        go = asyncio.Event()
        first, rest = CLEAN[:60], CLEAN[60:]
        events = frames.stream(pieces(first + rest))
        script = Script(Head(), *map(Send, events[:15]), Gate(go), *map(Send, events[15:]))
        rig = await serve(script, chain=moderated(deadline_ms=200))
        rig.loudest = "warning"
        wire = await rig.dial()
        wire.send(rig.request())
        await wire.through(b'"content":"')
        tms.change(outage="black_hole")
        go.set()
        rest = await wire.through(b"[DONE]")
        assert b"moderation_unavailable" in rest
        wire.leave()
        assert ["unavailable"] == [line["outcome"] for line in await rig.ended()]

    async def test_the_breaker(self, serve, moderated, tms):
        """While the service is down nobody waits for it; when it is back it is asked again, without a restart."""
        tms.change(outage="black_hole")
        rig = await serve(blurts("Hello. " * 9), chain=moderated(deadline_ms=100))
        rig.loudest = "warning"
        state = 'relay_moderation_breaker_state{moderator="tencent"}'
        async with asyncio.timeout(20):
            while (await rig.metrics()).get(state) != 2:
                assert {503} == {reply.status for reply in await asyncio.gather(*(rig.ask() for _ in range(8)))}
        calls = tms.counts.calls
        assert 503 == (await rig.ask()).status
        metrics = await rig.metrics()
        if metrics.get(state) == 2:
            assert calls == tms.counts.calls
            assert metrics[f'{CHECKS}{{moderator="tencent",outcome="breaker_open"}}'] >= 1
        tms.change(outage="none")
        async with asyncio.timeout(30):
            while (await rig.ask()).status != 200:
                await asyncio.sleep(0.05)
        assert state not in await rig.metrics()
        assert "moderator answers again" in {line["event"] for line in rig.log}

    @pytest.mark.parametrize(
        ("outage", "reason"), [({"outage": "refuse"}, "error"), ({"outage": "black_hole"}, "timeout")]
    )
    async def test_open(self, serve, moderated, tms, outage, reason):
        """The reply leaves as it came, and every character of it is counted."""
        tms.change(**outage)
        data = frames.stream(pieces(CLEAN))
        chain = moderated(on_failure="open", deadline_ms=100, window={**WINDOW, "max_chars": 400, "first_chars": 400})
        rig = await serve(streamed(data), chain=chain)
        rig.loudest = "warning"
        assert b"".join(data) == (await rig.ask()).data
        metrics = await rig.metrics()
        unverified = {name: value for name, value in metrics.items() if name.startswith(UNVERIFIED)}
        assert len(CLEAN) == sum(unverified.values())
        assert f'{UNVERIFIED}{{reason="{reason}"}}' in unverified

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"secret_key": "wrong"}, "secret_key does not belong to secret_id"),
            ({"secret_id": "AKIDwrong"}, "there is no such secret_id"),
        ],
    )
    async def test_wrong_credentials(self, serve, moderated, options, words):
        """Nothing leaves, and one line says what to mend."""
        rig = await serve(blurts(CLEAN), chain=moderated(tencent=options))
        rig.loudest = "error"
        assert [503] * 4 == [(await rig.ask()).status for _ in range(4)]
        [line] = [line for line in rig.log if line["level"] == "error"]
        assert words in line["reason"]
        assert "RequestId" in line["reason"]

    @pytest.mark.parametrize("share", [0.01, 0.1, 0.3])
    async def test_some_calls_fail(self, serve, moderated, tms, share):
        """Nothing is altered and nothing leaves unchecked; few replies are lost."""
        errors = {"InternalError.ErrTextTimeOut": 3, "http_502": 1, "reset": 1, "garbage": 1, "empty": 1}
        tms.change(error_share=share, errors=errors, seed=7)
        text = CLEAN + PHRASE + AFTER
        rig = await serve(says(text, 10), chain=moderated(window={**WINDOW, "max_chars": 100, "sentence_chars": 100}))
        rig.loudest = "warning"
        lost = 0
        for _ in range(5):
            for reply in await asyncio.gather(*(rig.ask() for _ in range(8))):
                if reply.status != 200:
                    assert "moderation_unavailable" == reply.error["code"]
                    lost += 1
                    continue
                assert CLEAN.startswith(reply.texts().get(0, ""))
                if reply.broken_by is not None:
                    assert "moderation_unavailable" == reply.broken_by
                    lost += 1
                else:
                    assert {0: "content_filter"} == reply.finishes()
        metrics = await rig.metrics()
        if "breaker_open" not in str(metrics):  # as it does where the machine stands still among the failures
            assert lost <= {0.01: 0, 0.1: 4, 0.3: 15}[share]
        assert not [name for name in metrics if name.startswith(UNVERIFIED)]


class TestMany:
    async def test_clients_that_leave_at_any_moment(self, serve, moderated, tms):
        """While the service has all its bad days: nothing is left, and who stays gets what is right."""
        errors = {"InternalError.ErrTextTimeOut": 2, "RequestLimitExceeded": 2, "reset": 1, "garbage": 1}
        tms.change(p50_ms=5, p99_ms=60, error_share=0.1, errors=errors)
        text = CLEAN + PHRASE + AFTER
        chain = moderated(request="parallel", tencent={"calls_per_second": 400}, deadline_ms=3000)
        rig = await serve(says(text, 7), chain=chain)
        rig.loudest = "warning"
        random = Random(7)

        async def client(number):
            wire = await rig.dial()
            wire.send(rig.request(user=str(number), messages=[{"role": "user", "content": f"canary-prompt {number}"}]))
            if number % 3:
                await asyncio.sleep(random.random() * 0.2)
                wire.leave(random.choice(("close", "reset")))
                return None
            return await wire.reply()

        replies = [reply for reply in await asyncio.gather(*map(client, range(120))) if reply is not None]
        for reply in replies:
            if reply.status == 200:
                assert CLEAN.startswith(reply.texts().get(0, ""))
                assert reply.broken_by == "moderation_unavailable" or {0: "content_filter"} == reply.finishes()
            else:
                assert (503, "moderation_unavailable") == (reply.status, reply.error["code"])
        # How many of the 40 get through in time is the machine's affair.
        assert sum(reply.status == 200 for reply in replies) >= 10
        await rig.until(lambda: not rig.replies)
        metrics = await rig.metrics()
        assert 'relay_moderation_checks_waiting{moderator="tencent"}' not in metrics
        assert not [name for name in metrics if name.startswith(UNVERIFIED)]


class TestMetrics:
    async def test_everything_is_counted(self, serve, moderated, tms):
        """Characters by what became of them, calls and what was scanned by them, verdicts by what they mean."""
        scripts = {
            "clean": says(CLEAN),
            "bad": says(BEFORE + PHRASE + AFTER, 500),
        }
        rig = await serve(
            lambda request: scripts[request.json["messages"][0]["content"]], chain=moderated(request="before")
        )
        for prompt in ("clean", "clean", "bad"):
            await rig.ask(messages=[{"role": "user", "content": prompt}])
        metrics = await rig.metrics()
        states = ("in", "checked", "released", "withheld", "blocked")
        counted = {state: metrics.get(f'{CHARACTERS}{{state="{state}"}}', 0) for state in states}
        came = 2 * len(CLEAN) + len(BEFORE + PHRASE + AFTER)
        assert came == counted["in"] == counted["released"] + counted["withheld"] + counted["blocked"]
        assert 2 * len(CLEAN) == counted["released"]
        assert tms.counts.calls == metrics[f'{CALLS}{{moderator="tencent"}}']
        scanned = metrics['relay_moderation_scanned_characters_total{moderator="tencent"}']
        assert tms.counts.characters == scanned
        assert scanned == counted["checked"]  # one prompt was known
        checks = {
            outcome: metrics.get(f'{CHECKS}{{moderator="tencent",outcome="{outcome}"}}', 0)
            for outcome in ("pass", "block", "cached", "error", "timeout")
        }
        assert {"pass": tms.counts.calls - 1, "block": 1, "cached": 1, "error": 0, "timeout": 0} == checks
        assert 1 == metrics['relay_moderation_violations_total{label="Porn",moderator="tencent"}']
        assert tms.counts.calls == metrics['relay_moderation_call_seconds_count{moderator="tencent"}']
        assert 3 == metrics["relay_moderation_hold_seconds_count"]
        assert 2 == metrics["relay_moderation_first_text_seconds_count"]
        assert 800 == metrics['relay_moderation_rate_ceiling{moderator="tencent"}']
        assert 720 < metrics['relay_moderation_rate_allowed{moderator="tencent"}'] <= 800
