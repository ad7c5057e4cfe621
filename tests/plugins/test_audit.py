"""The plugin `audit`: what is written down of an exchange, and what of its texts."""

import asyncio
import hashlib
import hmac
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.errors import Reject, RelayError
from relay.exchange import STOPPED_BY, VIOLATIONS, Outcome
from relay.options import ConfigError
from relay.plugin import Plugin
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest
from relay.pure.tally import Violation
from relay.secret import Secret
from relay.testing import frames
from relay.testing.reply import Kept, Lent, exchange
from relay.testing.run import run
from relay.told import Told
from relay_plugins.audit import Audit
from relay_plugins.audit.record import Policy, canonical
from relay_plugins.audit.record import record as record_of
from relay_plugins.audit.said import MAX_TEXTS, Said
from relay_plugins.audit.verify import verify
from relay_plugins.auth import Auth
from relay_plugins.lexicon import Lexicon
from relay_plugins.moderation import Moderation

PROMPT, REPLY, USER = "Schlafittchen", "Kuddelmuddel ist überall", "ann@example"
DIGEST_KEY = "0123456789abcdef0123"
MESSAGES = [{"role": "user", "content": PROMPT}]


def lines(folder: Path) -> list[dict]:
    """All that stands in the files of a folder, verified."""
    assert [] == [checked.problem for checked in verify([folder]) if checked.problem]
    return [json.loads(line) for path in sorted(folder.glob("*.jsonl")) for line in path.read_bytes().splitlines()]


def records(folder: Path) -> list[dict]:
    return [line for line in lines(folder) if line["kind"] == "exchange"]


async def recorded(folder: Path, *, plugin: Plugin | None = None, audit: dict | None = None, **asked: object) -> dict:
    """The one record of one request through `audit`, and behind it through `plugin`."""
    asked = {"messages": MESSAGES, "user": USER, "answer": [REPLY[:5], REPLY[5:]], **asked}
    first = Audit(folder=folder, **(audit or {}))
    ran = await (run(first, **asked) if plugin is None else run(plugin, before=[first], **asked))
    assert [] == [error.__cause__ for error in ran.raised]
    [record] = await asyncio.to_thread(records, folder)
    return record


def hmac_of(text: str) -> str:
    return hmac.new(DIGEST_KEY.encode(), text.encode(), hashlib.sha256).hexdigest()


# What is written down


async def test_an_exchange(tmp_path: Path) -> None:
    """Who asked for what, how it ended, and how long it took; nothing of what was said."""
    record = await recorded(tmp_path)
    assert record.pop("duration_ms") >= 0
    assert len(record.pop("prev")) == 64
    assert record.pop("time").endswith("Z")
    assert {
        "seq": 1,
        "kind": "exchange",
        "request_id": "request-1",
        "operation": "chat",
        "caller": "tester",
        "chain": None,
        "model": "gpt-4",
        "stream": True,
        "outcome": "completed",
        "status": 200,
        "code": None,
        "stopped_by": None,
        "label": None,
        "verdicts": [],
        "prompt_tokens": None,
        "completion_tokens": None,
        "moderation_ms": None,
    } == record


@pytest.mark.parametrize("stream", [True, False])
async def test_what_the_upstream_took(tmp_path: Path, stream: bool) -> None:
    """It is asked to tell it."""
    answer = b"".join([*frames.stream([REPLY])[:-1], frames.usage(21, 7), frames.done()])
    if not stream:
        answer = json.dumps(
            {**json.loads(frames.body(REPLY)), "usage": {"prompt_tokens": 21, "completion_tokens": 7}}
        ).encode()
    record = await recorded(tmp_path, stream=stream, answer=answer)
    assert (21, 7, stream) == (record["prompt_tokens"], record["completion_tokens"], record["stream"])


async def test_who_was_turned_away(tmp_path: Path) -> None:
    """It stands first, so it sees whom the others refuse, by which code."""
    record = await recorded(tmp_path, plugin=Auth(keys=[]), headers={"Authorization": "Bearer sk-wrong"})
    assert ("refused", 401, "invalid_api_key") == tuple(record[name] for name in ("outcome", "status", "code"))
    assert "sk-wrong" not in str(record)
    assert record["model"] is None  # nothing of it was read


async def test_what_was_found_in_a_reply(tmp_path: Path) -> None:
    """Who stopped it, where, and what others found that did not."""
    lexicon = Lexicon(words=["überall"], label="all", action="block")
    review = Lexicon(words=["Kuddelmuddel"], label="mess", action="review")
    record = await recorded(tmp_path, plugin=Moderation(moderators=(review, lexicon)))
    assert ("filtered", 200, "lexicon", "all") == tuple(
        record[name] for name in ("outcome", "status", "stopped_by", "label")
    )
    found = [(each["direction"], each["surface"], each["action"], each["label"]) for each in record["verdicts"]]
    assert [("response", "content", "review", "mess"), ("response", "content", "block", "all")] == found
    assert record["moderation_ms"] is not None


async def test_what_was_found_in_a_request(tmp_path: Path) -> None:
    record = await recorded(tmp_path, plugin=Moderation(moderators=(Lexicon(words=[PROMPT], label="word"),)))
    assert (400, "content_filter", "word") == (record["status"], record["code"], record["label"])
    [found] = record["verdicts"]
    assert ("request", "messages[0]", None) == (found["direction"], found["surface"], found["choice"])
    assert PROMPT not in str(record)


async def test_the_verdicts_are_bounded() -> None:
    """One who finds something in every word says nothing new after a hundred."""
    moderation = Moderation(moderators=(Lexicon(words=["a"], label="a", action="review"),))
    ran = await run(moderation, messages=[{"role": "user", "content": "a " * 300}])
    assert 100 == len(ran.exchange[VIOLATIONS])
    assert isinstance(ran.exchange[VIOLATIONS][0], Violation)


UNKNOWN = "my number is 13812345678"


async def test_the_name_of_an_unknown_field_is_not_written(tmp_path: Path) -> None:
    """A client, or a server, can say in it what it likes; that the field was unknown is told."""
    moderation = Moderation(moderators=(Lexicon(words=[PROMPT], label="word"),))
    record = await recorded(
        tmp_path / "asked", plugin=moderation, messages=[{"role": "user", "content": "Hi"}], **{UNKNOWN: PROMPT}
    )
    assert [("request", "?")] == [(each["direction"], each["surface"]) for each in record["verdicts"]]
    answer = b"".join(
        [
            frames.data(json.dumps({"choices": [{"index": 0, "delta": {UNKNOWN: "überall"}}]}).encode()),
            *frames.stream(["x"]),
        ]
    )
    moderation = Moderation(moderators=(Lexicon(words=["überall"], label="all"),))
    policy = {"text": "digest", "digest_key": Secret(DIGEST_KEY)}
    record = await recorded(tmp_path / "said", plugin=moderation, answer=answer)
    assert [("response", "?")] == [(each["direction"], each["surface"]) for each in record["verdicts"]]
    record = await recorded(tmp_path / "digest", audit=policy, answer=answer)
    assert ["?", "content"] == [each["surface"] for each in record["reply"]]
    assert UNKNOWN not in str(await asyncio.to_thread(all_of, tmp_path))


def all_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*.jsonl"))


class Breaks(Plugin):
    async def on_request(self, ex):
        raise Reject(PROMPT, code="c" * 99, status=418)


async def test_messages_of_errors_are_not_written(tmp_path: Path) -> None:
    """They may quote what was sent; codes are names."""
    record = await recorded(tmp_path, plugin=Breaks())
    assert (418, "c" * 64) == (record["status"], record["code"])
    assert PROMPT not in str(record)


def odd(code: object, stopped_by: object, found: object = None) -> Plugin:
    """Stops a request, and leaves on it what is no text."""

    class Odd(Plugin):
        async def on_request(self, ex):
            ex[STOPPED_BY] = stopped_by
            if found is not None:
                ex[VIOLATIONS] = [found]
            raise RelayError("No.", code=code)

    return Odd()


@pytest.mark.parametrize(
    ("code", "stopped_by", "told"),
    [
        (None, ("m", None), (None, "m", None)),
        (7, (8, 9), ("7", "8", "9")),
        ("c" * 99, ("m" * 99, "\ud800"), ("c" * 64, "m" * 64, "?")),
    ],
)
async def test_odd_names(tmp_path: Path, code: object, stopped_by: object, told: tuple) -> None:
    """Plugins of others may give what is none."""
    record = await recorded(tmp_path, plugin=odd(code, stopped_by))
    assert told == (record["code"], record["stopped_by"], record["label"])


@pytest.mark.parametrize(
    ("stopped_by", "found", "error"),
    [
        (7, None, "TypeError"),
        (("a", "b", "c"), None, "ValueError"),
        (("m", "l"), 7, "AttributeError"),
        (("m", "l"), Violation(None, "tools", 0, "l", "m", "block", score=object()), "TypeError"),
    ],
)
async def test_no_record_is_lost(tmp_path: Path, stopped_by: object, found: object, error: str) -> None:
    """Where one cannot be made, what is sure of it is written, and the log tells of the fault."""
    ran = await run(odd("c", stopped_by, found), before=[Audit(folder=tmp_path)], messages=MESSAGES)
    assert [error] == [type(raised.__cause__).__name__ for raised in ran.raised]
    [record] = await asyncio.to_thread(records, tmp_path)
    assert ("request-1", "unavailable", 500, error) == tuple(
        record[name] for name in ("request_id", "outcome", "status", "incomplete")
    )


@pytest.mark.parametrize("operation", ["models", "quota"])
async def test_other_operations(tmp_path: Path, operation: str) -> None:
    """Whatever is asked with a key is written down."""
    audit = Audit(folder=tmp_path)
    async with audit.lifespan(Lent().services):
        ex = exchange(operation=operation)
        assert await audit.on_request(ex) is None
        ex.outcome = Outcome("completed")
        ex.tells(lambda: Told("GET", 200, ex.started, None))
        await audit.on_end(ex)
    [record] = await asyncio.to_thread(records, tmp_path)
    assert (operation, None, 200) == (record["operation"], record["model"], record["status"])


# Texts


@pytest.mark.parametrize("stream", [True, False])
async def test_nothing_of_the_texts_by_default(tmp_path: Path, stream: bool) -> None:
    """Neither the prompt nor the reply, nor who the client says that its user is."""
    await recorded(tmp_path, stream=stream, tools=[{"type": "function", "function": {"name": PROMPT}}])
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir()).decode()
    for word in (PROMPT, "Kuddel", USER):
        assert word not in written


async def test_nothing_is_wrapped_by_default(tmp_path: Path) -> None:
    """A chunk costs nothing: its sink is the next one's."""
    sink = Kept()
    assert sink is Audit(folder=tmp_path).on_stream(exchange(), sink)


@pytest.mark.parametrize("stream", [True, False])
async def test_digests(tmp_path: Path, stream: bool) -> None:
    """Who has the key and a text can say whether it was this; who has not can guess nothing."""
    policy = {"text": "digest", "user": "digest", "digest_key": Secret(DIGEST_KEY)}
    record = await recorded(tmp_path, audit=policy, stream=stream)
    asked = json.dumps(MESSAGES, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert {"hmac_sha256": hmac_of(asked), "bytes": len(asked)} == record["prompt"]
    assert {"hmac_sha256": hmac_of(USER)} == record["user"]
    said = {"choice": 0, "surface": "content", "bytes": len(REPLY.encode()), "hmac_sha256": hmac_of(REPLY)}
    assert [said] == record["reply"]
    assert not {PROMPT, REPLY, USER} & set(str(record).split('"'))


@pytest.mark.parametrize("cuts", [(), None])
async def test_whole_texts(tmp_path: Path, cuts: object) -> None:
    """Where it is wished; of a reply that is cut what the client got."""
    record = await recorded(tmp_path, audit={"text": "full", "user": "full"}, cuts=cuts)
    assert MESSAGES == json.loads(record["prompt"]["text"])
    assert [{"choice": 0, "surface": "content", "bytes": 25, "text": REPLY}] == record["reply"]
    assert USER == record["user"]


async def test_what_the_client_got(tmp_path: Path) -> None:
    """Not what the upstream said."""
    moderation = Moderation(moderators=(Lexicon(words=["überall"]),))
    record = await recorded(
        tmp_path, plugin=moderation, audit={"text": "full"}, answer=["Kuddel", "muddel ist ", "über", "all"]
    )
    assert "Kuddelmuddel ist " == record["reply"][0]["text"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, 1500), max_size=8), digest=st.booleans())
def test_cut_anywhere(tmp_path: Path, cuts: list[int], digest: bool) -> None:
    """What is kept of a reply does not depend on how its bytes came."""
    answer = b"".join(
        [
            *(frames.text(piece) for piece in ("Kud", "del", "🎈", "é")),
            frames.text("zwei", index=1),
            frames.tool(name="find"),
            frames.tool('{"q": "x"}'),
            frames.finish("tool_calls"),
            frames.done(),
        ]
    )
    policy = {"text": "digest", "digest_key": Secret(DIGEST_KEY)} if digest else {"text": "full"}
    audit = Audit(folder=tmp_path, **policy)
    ran = asyncio.run(run(audit, n=2, answer=answer, cuts=sorted({cut for cut in cuts if cut < len(answer)})))
    told = {(each["choice"], each["surface"]): each for each in ran.exchange[audit._said].told()}
    texts = {(0, "content"): "Kuddel🎈é", (1, "content"): "zwei", (0, "tool_calls.0"): 'find\n{"q": "x"}'}
    assert {place: len(text.encode()) for place, text in texts.items()} == {
        place: each["bytes"] for place, each in told.items()
    }
    for place, text in texts.items():
        assert (hmac_of(text) if digest else text) == told[place]["hmac_sha256" if digest else "text"]


async def test_texts_are_bounded(tmp_path: Path) -> None:
    """Of each no more than was wished, to a whole character; its length is told."""
    messages = [{"role": "user", "content": "ä" * 3000}]
    record = await recorded(
        tmp_path, audit={"text": "full", "max_text_kb": 1}, messages=messages, answer=["x" * 1023, "äöü"]
    )
    assert 1023 <= len(record["prompt"]["text"].encode()) <= 1024
    assert 6000 < record["prompt"]["bytes"]
    assert ["x" * 1023, 1029] == [record["reply"][0]["text"], record["reply"][0]["bytes"]]


async def test_surfaces_are_bounded(tmp_path: Path) -> None:
    """A server may invent as many as it likes: those beyond are only counted."""
    invented = {"delta": {f"field{number} of mine": "some text" for number in range(99)}, "index": 0}
    answer = b"".join([frames.data(json.dumps({"choices": [invented]}).encode()), *frames.stream(["x"])])
    record = await recorded(tmp_path, audit={"text": "full"}, answer=answer)
    assert MAX_TEXTS + 1 == len(record["reply"])
    assert "others" == record["reply"][-1]["surface"]


async def test_odd_texts(tmp_path: Path) -> None:
    """Halves of surrogate pairs, integers beyond 64 bits, a user that is none: they are written as JSON can say them."""
    messages = [{"role": "user", "content": "a", "n": 2**70}]
    answer = b"".join(
        [frames.data(b'{"choices": [{"index": 0, "delta": {"content": "a\\ud800"}}]}'), *frames.stream(["b"])]
    )
    record = await recorded(
        tmp_path, audit={"text": "full", "user": "full"}, messages=messages, user=["x"], answer=answer
    )
    assert 2**70 == json.loads(record["prompt"]["text"])[0]["n"]
    assert (None, "a?b") == (record["user"], record["reply"][0]["text"])
    assert b'"a?"' == canonical("a\ud800")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=8,
    )
)
def test_the_canonical_form(value: object) -> None:
    """It is what Python's own library writes, as the docs say."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert text.encode("utf-8", "replace") == canonical(value)


NUMBERS = ("1e-7", "1E16", "1.0", "-0.0", "12345678901234567890123", "-9223372036854775809", "1e22", "5e-324")


@pytest.mark.parametrize("number", [*NUMBERS, f"[{','.join(NUMBERS)}]"])
async def test_the_documented_digest(tmp_path: Path, number: str) -> None:
    """Who has the bytes that went to the upstream comes to the same, however its numbers are written."""
    body = f'{{"messages": [{{"role": "user", "content": "é\\u2028", "n": {number}, "a": 1}}]}}'.encode()
    asked = json.dumps(json.loads(body)["messages"], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    ex = exchange()
    ex.loaded = ChatRequest(body)
    ex.tells(lambda: Told("POST", 200, ex.started, None))
    made = record_of(ex, Policy("digest", "none", Secret(DIGEST_KEY)), None)
    assert hmac_of(asked) == made["prompt"]["hmac_sha256"]


def test_an_unclear_index_is_no_text() -> None:
    """A frame of which nobody can say whose text it is passes, and is the guard's business."""
    kept = Kept.__new__(Kept)
    kept.chunks, kept.late, kept.ends = [], [], []
    said = Said(kept, Audit(text="full")._policy, whole=False)
    for frame in (
        {"choices": [{"index": "x", "delta": {"content": "a"}}, {"delta": {"content": "b"}}]},
        {"choices": 3},
    ):
        said.feed(Chunk.event(frame))
    said.feed(Chunk.body(b"[]"))
    assert 3 == len(kept.chunks)


# Options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text": "digest"}, "needs a digest_key"),
        ({"user": "digest"}, "needs a digest_key"),
        ({"digest_key": Secret(DIGEST_KEY)}, "leave it out"),
        ({"text": "digest", "digest_key": Secret("short")}, "openssl rand -hex 32"),
    ],
)
def test_options_that_cannot_be(options: dict, message: str) -> None:
    """Each is refused with the remedy."""
    with pytest.raises(ValueError, match=message):
        Audit(**options)


async def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """The start, or the reload, is refused, and says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="make the folder writable"):
        async with Audit(folder=tmp_path / "file" / "below").lifespan(Lent().services):
            pass


async def test_the_folder_by_default(tmp_path: Path) -> None:
    """Where the relay keeps its data; nobody else may read what is there."""
    async with Audit().lifespan(Lent(tmp_path).services):
        pass
    [path] = (tmp_path / "audit").iterdir()
    assert (0o700, 0o600) == (path.parent.stat().st_mode & 0o777, path.stat().st_mode & 0o777)
