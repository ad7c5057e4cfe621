import asyncio
from collections.abc import Callable

import pytest
from multidict import CIMultiDict

from relay.delivery import StreamDelivery
from relay.errors import InternalError, Unavailable
from relay.exchange import CALLER, Exchange, Key, Outcome, ReplyHeaders
from relay.pure.openai import Chunk
from relay.pure.request import ChatRequest, InvalidRequest
from relay.testing import frames
from relay.testing.reply import HandBody, Kept, exchange
from relay.told import Told

COUNT = Key("count", int)
GONE = Outcome("client_gone")
DRAINED = Outcome("drained", Unavailable("Later.", code="draining"))


class Recording:
    """A flow that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def pause(self) -> None:
        self.told.append("pause")

    def resume(self) -> None:
        self.told.append("resume")

    def stop(self, outcome: Outcome) -> None:
        self.told.append(outcome)


def attached() -> tuple[Exchange, Recording]:
    ex, flow = exchange(), Recording()
    ex.attach(flow)
    return ex, flow


async def turn() -> None:
    """One turn of the loop."""
    await asyncio.sleep(0)


# Pausing


async def test_two_holders() -> None:
    """Reading goes on when the last of those who paused it has resumed; nobody resumes for another."""
    ex, flow = attached()
    ex.pause("gate")
    ex.pause("writer")
    ex.resume("gate")
    await turn()
    assert flow.told == ["pause"]
    assert ex.paused
    ex.resume("writer")
    await turn()
    assert flow.told == ["pause", "resume"]
    assert not ex.paused


async def test_a_set_no_counter() -> None:
    """Who pauses twice resumes once; who never paused resumes nothing."""
    ex, flow = attached()
    ex.pause("gate")
    ex.pause("gate")
    ex.resume("writer")
    await turn()
    assert flow.told == ["pause"]
    ex.resume("gate")
    ex.resume("gate")
    await turn()
    assert flow.told == ["pause", "resume"]


async def test_resume_waits_for_its_turn() -> None:
    """`resume` does nothing inside the call, and nothing later if somebody has paused again by then."""
    ex, flow = attached()
    ex.pause("gate")
    ex.resume("gate")
    assert flow.told == ["pause"]
    ex.pause("writer")
    await turn()
    assert "resume" not in flow.told


async def test_paused_before_the_reply() -> None:
    """What was paused before the reply came is paused when it comes."""
    ex, flow = exchange(), Recording()
    ex.pause("quota")
    ex.attach(flow)
    assert flow.told == ["pause"]


async def test_resumed_before_the_reply() -> None:
    """What was paused and resumed before the reply came never stops it."""
    ex, flow = exchange(), Recording()
    ex.pause("quota")
    ex.resume("quota")
    ex.attach(flow)
    await turn()
    assert "pause" not in flow.told


async def test_resume_inside_feed() -> None:
    """A sink that pauses and resumes inside `feed` does not have the parser entered a second time."""

    class Nervous(Kept):
        def feed(self, chunk: Chunk) -> None:
            ex.pause(self)
            super().feed(chunk)
            ex.resume(self)

    ex, body, kept = exchange(), HandBody(), Nervous()
    StreamDelivery(ex, kept, body).start()
    said = frames.stream(["a", "b", "c"])
    body.say(*said)
    body.eof()
    assert (await kept.ended()).kind == "completed"
    assert kept.raw == b"".join(said[:-1])
    assert not body.reentered


# Stopping


async def test_first_stop_counts() -> None:
    """The flow is stopped once, with the outcome that came first."""
    ex, flow = attached()
    ex.stop(DRAINED)
    ex.stop(GONE)
    assert flow.told == [DRAINED]
    assert ex.stopped is not None


async def test_stop_before_the_reply() -> None:
    """A reply that was stopped before it came is stopped when it comes, whoever holds it."""
    ex, flow = exchange(), Recording()
    ex.pause("gate")
    ex.stop(GONE)
    ex.stop(DRAINED)
    ex.attach(flow)
    assert flow.told == [GONE]


async def test_stop_inside_feed() -> None:
    """A stop inside `feed` closes the upstream at once; the end comes later, once, and nothing is fed before it."""

    class Satisfied(Kept):
        def feed(self, chunk: Chunk) -> None:
            super().feed(chunk)
            ex.stop(DRAINED)
            ex.stop(GONE)
            assert not self.ends

    ex, body, kept = exchange(), HandBody(), Satisfied()
    StreamDelivery(ex, kept, body).start()
    body.say(b"".join(frames.stream(["a", "b"])))
    body.eof()
    assert body.closed
    assert await kept.ended() is DRAINED
    assert len(kept.chunks) == 1
    assert len(kept.ends) == 1


# Shared state


async def test_keys() -> None:
    """A value is found under its key, and only under that one: another key of the same name is another."""
    ex = exchange()
    assert COUNT not in ex
    assert ex.get(COUNT, 7) == 7
    ex[COUNT] = 3
    assert COUNT in ex
    assert ex[COUNT] == 3
    assert ex.get(COUNT, 7) == 3
    assert Key("count", int) not in ex


async def test_missing_key() -> None:
    """A value that nobody has set is named in the error."""
    with pytest.raises(KeyError, match="caller is not set: no plugin before this one gives it"):
        exchange()[CALLER]


def test_key_repr() -> None:
    """A key shows its name and type."""
    assert repr(COUNT) == "<Key count: int>"


# Reply headers

CHANGES: dict[str, Callable[[ReplyHeaders], object]] = {
    "[]=": lambda headers: headers.__setitem__("a", "2"),
    "del": lambda headers: headers.__delitem__("a"),
    "add": lambda headers: headers.add("a", "2"),
    "extend": lambda headers: headers.extend({"b": "2"}),
    "update": lambda headers: headers.update({"a": "2"}),
    "update keywords": lambda headers: headers.update(a="2"),
    "merge": lambda headers: headers.merge({"b": "2"}),
    "setdefault": lambda headers: headers.setdefault("b", "2"),
    "pop": lambda headers: headers.pop("a"),
    "popone": lambda headers: headers.popone("a"),
    "popall": lambda headers: headers.popall("a"),
    "popitem": lambda headers: headers.popitem(),
    "clear": lambda headers: headers.clear(),
}
READERS = {"copy", "get", "getall", "getone", "items", "keys", "to_dict", "values"}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_reply_headers(change: Callable[[ReplyHeaders], object]) -> None:
    """Headers can be changed until the head has left; then every way to change one is an error that changes nothing."""
    headers = ReplyHeaders(a="1")
    change(headers)
    assert headers != CIMultiDict(a="1")
    headers = ReplyHeaders(a="1")
    headers.sent = True
    with pytest.raises(RuntimeError, match="the head of the reply has left"):
        change(headers)
    assert headers == CIMultiDict(a="1")


def test_every_change_is_known() -> None:
    """No method of a multidict is forgotten: each either reads or is in the table above."""
    public = {name for name in dir(CIMultiDict) if not name.startswith("_")}
    assert public - READERS == {name.split()[0] for name in CHANGES if name.isidentifier() and name != "del"}


# Spawned work


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_spawn() -> None:
    """Spawned work runs, and what it returns is there for who waits for it."""

    async def answer() -> int:
        return 42

    assert await exchange().spawn(answer()) == 42


async def test_close() -> None:
    """Spawned work is cancelled, and has ended when `close` returns, its clean-up included."""
    told = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await turn()
            told.append("clean")

    ex = exchange()
    tasks = [ex.spawn(work()), ex.spawn(work())]
    await turn()
    await ex.close()
    assert told == ["clean", "clean"]
    assert all(task.cancelled() for task in tasks)
    await ex.close()


async def test_spawn_after_close() -> None:
    """What is spawned after the end never starts."""
    ex, told = exchange(), []

    async def work() -> None:
        told.append("started")

    await ex.close()
    task = ex.spawn(work())
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == []


@pytest.fixture
async def reported() -> list[dict[str, object]]:
    """What the loop's exception handler is told."""
    found: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: found.append(context))
    return found


async def test_spawned_work_fails(reported: list[dict[str, object]]) -> None:
    """Work that raises ends the reply with an internal error and is reported, never lost."""
    ex, flow = attached()

    async def work() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ex.spawn(work())
    await turn()
    [outcome] = flow.told
    assert isinstance(outcome, Outcome)
    assert outcome.kind == "internal_error"
    assert isinstance(outcome.error, InternalError)
    [context] = reported
    assert isinstance(context["exception"], ZeroDivisionError)
    assert context["message"] == "spawned work failed, of request request-1"


async def test_work_that_does_not_end(monkeypatch: pytest.MonkeyPatch, reported: list[dict[str, object]]) -> None:
    """Work that goes on although it was cancelled is left behind and reported: an exchange always ends."""
    monkeypatch.setattr("relay.exchange.CLOSE_TIMEOUT_S", 0.01)
    free = asyncio.Event()

    async def stubborn() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            await free.wait()

    ex = exchange()
    task = ex.spawn(stubborn())
    await turn()
    await ex.close()
    assert [context["task"] for context in reported] == [task]
    free.set()
    await task


# The request


async def test_request_is_read_once() -> None:
    """The chat request is read when it is first looked at, and then kept."""
    ex, reads = exchange(), []

    def load() -> ChatRequest:
        reads.append(1)
        return ChatRequest(b'{"messages":[{"content":"Hi"}]}')

    ex.loads(load)
    assert ex.loaded is None
    assert reads == []
    assert ex.request is ex.request
    assert ex.loaded is ex.request
    assert reads == [1]


async def test_bad_request() -> None:
    """A request that cannot be read is an error for each who looks at it, and nothing counts as loaded."""
    ex = exchange(messages=[])
    for _ in range(2):
        with pytest.raises(InvalidRequest):
            _ = ex.request
    assert ex.loaded is None


async def test_no_request() -> None:
    """A list of models has no chat request."""
    ex = Exchange("id", "models", headers=exchange().headers)
    with pytest.raises(RuntimeError, match="a models request has no chat request"):
        _ = ex.request


async def test_what_is_told_is_told_in_the_end() -> None:
    """Whoever asks before does not get half of it."""
    ex = exchange()
    with pytest.raises(RuntimeError, match="ask for `told` in `on_end`"):
        _ = ex.told
    told = Told("POST", 200, ex.started, None)
    ex.tells(lambda: told)
    assert ex.told is told
    ex.forget()
    with pytest.raises(RuntimeError):
        _ = ex.told


async def test_headers_for_the_upstream() -> None:
    """Nobody who does not set one pays for them."""
    ex = exchange()
    assert b"" == ex.upstream_lines
    assert {} == dict(ex.upstream_headers)
    ex.upstream_headers["x-a"] = "b"
    assert b"\r\nx-a: b" == ex.upstream_lines
