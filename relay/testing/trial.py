"""A plugin on trial: the conversations that it is tried with, one after another."""

from __future__ import annotations

import asyncio
import dataclasses
import tracemalloc
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

import relay.store
from relay.errors import PluginError
from relay.generation import CLOSE_TIMEOUT_S
from relay.generations import OPEN_TIMEOUT_S
from relay.plugin import Plugin, Reply
from relay.pure.openai import Chunk
from relay.testing import frames
from relay.testing.conversation import CASES, Case, Client, Conversation, Ending, cached, paced, says
from relay.testing.finding import Promise, Report
from relay.testing.look import Look
from relay.testing.replies import (
    EVERY_KIND,
    FAILED,
    MAX_CUTS,
    NO_TEXT,
    ODD,
    divided,
    in_turns,
    long_reply,
    some,
    stream,
)
from relay.testing.reply import Lent
from relay.testing.requests import MESSAGES
from relay.testing.said import Said, said

MAX_LEFT: Final = 12
MAX_WAITS: Final = 50
TURNS_AFTER: Final = 8
MAX_HELD_BYTES: Final = 1_000_000  # of the 2,000,000 of a long reply
HASTE_S: Final = 0.02  # for what has been found out already
MAX_HUNG: Final = 10
TASK_TURNS: Final = 50


class Trial:
    """A plugin on trial. See `contract` for what it is given."""

    def __init__(
        self,
        plugin: Plugin | Callable[[], Plugin],
        request: Mapping[str, object],
        headers: Mapping[str, str] | None,
        before: tuple[Plugin, ...],
        lent: Callable[[], Lent] | Lent | None,
        patience_s: float,
        changed: Mapping[str, object],
    ) -> None:
        # A plugin is its configuration: another one with the same fields is the same, and fresh.
        self._make: Callable[[], Plugin] = _another(plugin) if isinstance(plugin, Plugin) else plugin
        self._asked: dict[str, Any] = {"request": {**request, **changed}, "headers": headers}
        self._before = before
        self._lend = lent if callable(lent) else (lambda: lent) if lent is not None else Lent
        self._patience_s = patience_s
        self._look = Look()
        self._notes: list[str] = []
        self._count = 0
        self._plugin: Plugin
        self._lent: Lent
        self._opened = AsyncExitStack()
        # Whether a fresh one says the same, and whether one that is not fresh says another thing.
        self._steady, self._remembers = True, False

    async def run(self, answer: str) -> Report:
        loop = asyncio.get_running_loop()
        heard, tasks = loop.get_exception_handler(), asyncio.all_tasks()
        loop.set_exception_handler(lambda _, about: self._look.hear(about))
        try:
            try:
                await self._open()
                await self._try(answer)
            finally:
                await self._close()
            await self._look_for_tasks(tasks)
        finally:
            loop.set_exception_handler(heard)
        return Report(self._look.findings, self._count, tuple(self._notes))

    async def _open(self) -> None:
        """A fresh instance, open. Raises TimeoutError for one that is not in the time that a relay gives it."""
        await self._close()
        self._plugin, self._lent = self._make(), self._lend()
        if self._plugin.needs_store and self._lent.services.store is None:
            raise ValueError(
                f"{type(self._plugin).__name__} needs a store; give lent=Lent(store=…), with a ScriptedStore or embedded_store()"
            )
        self._opened = AsyncExitStack()
        for each in (*self._before, self._plugin):
            async with _in_time(OPEN_TIMEOUT_S, f"{type(each).__name__}.lifespan does not come to its yield"):
                await self._opened.enter_async_context(each.lifespan(self._lent.services))

    async def _close(self) -> None:
        async with _in_time(CLOSE_TIMEOUT_S, "a lifespan does not end after its yield"):
            await self._opened.aclose()

    # One conversation

    async def _talk(self, case: str, ending: Ending, **how: Any) -> Conversation:
        """Hold one, and look at what the plugin did; with a fresh instance where this one refuses what the first let in."""
        talk = await self._held(ending, **how)
        if self._count > 1 and _limited(talk):
            await self._open()
            talk = await self._held(ending, **how)
        self._look.look(talk, case)
        return talk

    def _conversation(self, **how: Any) -> Conversation:
        return Conversation(
            self._plugin,
            before=self._before,
            lent=self._lent,
            patience_s=HASTE_S if self._look.hung else self._patience_s,
            **{**self._asked, **how},
        )

    async def _held(self, ending: Ending, **how: Any) -> Conversation:
        self._count += 1
        make_client = how.pop("make_client", Client)
        return await self._conversation(client=make_client(), **how).go(ending)

    # The cases

    async def _try(self, answer: str) -> None:
        reply = stream([answer])
        first = await self._talk("a stream", says(reply))
        if isinstance(first.error, PluginError):
            return
        if first.error is not None:
            self._look.note("tried", "a stream", f"refused the request by {first.error.status} {first.error.code}")
        if self._hopeless():
            return
        answers = bool(first.answered)
        expected = said(first)
        await self._whole(answer)
        if first.error is None and not answers:
            await self._steadiness(reply, expected)
            if first.probe is not None:
                await self._cuts(answer, expected)
                await self._otherwise(answer, expected)
            await self._kinds()
            await self._requests(reply)
            await self._endings(answer)
            if not self._hopeless():
                await self._slow(answer, expected)
                await self._after_one_that_left(answer, expected)
                await self._two_at_once(answer, expected)
                if first.probe is not None:
                    await self._long()
        elif answers:
            self._notes.append("it answers this request itself, so what it does to replies was not tried")
            await self._talk("its own answer, read slowly", says(b""), make_client=lambda: Client(slow=True))
        await self._leaving(answer)
        await self._operations()

    def _hopeless(self) -> bool:
        """An `on_end` that does not return, or work that does not stop, takes five seconds; and ends that do not come."""
        return self._look.hung >= MAX_HUNG or self._look.slow

    async def _steadiness(self, reply: bytes, expected: Said) -> None:
        """Whether it can be compared at all."""
        if said(await self._talk("a stream", says(reply))) == expected:
            return
        await self._open()
        if said(await self._talk("a stream", says(reply))) != expected:
            self._steady = False
            self._notes.append("it says another thing each time, so its replies were not compared")
        else:
            self._remembers = True
            self._look.note("state", "a second request", "gave the second of two equal requests another reply")

    async def _same(self, promise: Promise, case: str, seen: str, expected: Said, ending: Ending, **how: Any) -> None:
        if self._remembers:
            await self._open()
        talk = await self._talk(case, ending, **how)
        if self._steady and talk.error is None and not talk.hung and said(talk) != expected:
            self._look.note(promise, case, seen)

    async def _cuts(self, answer: str, expected: Said) -> None:
        """The text in other pieces, and the bytes in others."""
        for case, pieces in divided(answer):
            await self._same("cut", case, "let another reply through", expected, says(stream(pieces)))
            if self._hopeless():
                return
        reply = stream([answer])
        for case, cuts in (("byte by byte", None), ("in reads of 7 bytes", range(7, len(reply), 7))):
            await self._same("cut", case, "let another reply through", expected, says(reply, cuts))

    async def _otherwise(self, answer: str, expected: Said) -> None:
        """The same text in a reply that is not streamed, wherever it ends, and in two choices that come in turns."""
        if expected.kind != "completed":
            return  # one that cuts the reply may count chunks, or all choices together
        seen = "did to a reply that is not streamed another thing than to a stream"
        for end in (*some(range(1, len(answer)), MAX_LEFT), len(answer)):
            if self._hopeless():
                return
            if self._remembers:
                await self._open()
            text = answer[:end]
            streamed = await self._talk(f"a stream of {end} characters", says(stream([text])))
            if streamed.error is None and not streamed.hung and said(streamed).kind == "completed":
                whole = says(frames.body(text))
                await self._same("whole", f"a reply of {end} characters", seen, said(streamed), whole, stream=False)
        seen = "did to two choices that come in turns another thing than to one"
        await self._same("choices", "in turns", seen, expected.twice(), says(in_turns(answer)), n=2)

    async def _requests(self, reply: bytes) -> None:
        """What clients ask beside one message of text."""
        for what, messages in MESSAGES.items():
            if not self._hopeless():
                request = {**self._asked["request"], "messages": messages}
                await self._talk(f"a request with {what}", says(reply), request=request)

    async def _whole(self, answer: str) -> None:
        await self._talk("a reply that is not streamed", says(frames.body(answer)), stream=False)
        cases = {name: case for name, case in CASES.items() if not case.request.get("stream", True) and name != "whole"}
        for name, case in cases.items():
            await self._talk(name, case.ending, **case.request)

    async def _operations(self) -> None:
        """Requests that are none for a chat completion, so `ex.request` is not theirs."""
        for operation in sorted(self._plugin.serves - {"chat"}):
            answer = Reply((Chunk.body(b"{}"),))
            await self._talk(f"a request for {operation}", says(b""), operation=operation, inner_answers=answer)
        if self._plugin.routes:
            self._notes.append("its translate was not tried: what is sent to its routes is known to it alone")

    async def _kinds(self) -> None:
        """What models say beside text."""
        await self._talk("two choices, tools, usage, comments", says(b"".join(EVERY_KIND)), n=2)
        await self._talk("what is odd in a stream", says(b"".join(ODD)))
        await self._talk("a whole reply of two choices", says(frames.body("One.", "Two.")), stream=False, n=2)
        await self._talk("a whole reply without text", says(NO_TEXT), stream=False)

    async def _endings(self, answer: str) -> None:
        begun = stream([answer[: len(answer) // 2], answer[len(answer) // 2 :]])
        cases = {
            **{name: case for name, case in CASES.items() if case.request.get("stream", True) and name != "completed"},
            "upstream failed before the first byte": Case(says(begun), "", {"inner_refuses": FAILED}),
            "upstream reported an error": Case(says(b"".join([*frames.stream([answer])[:2], frames.error()])), ""),
            "no [DONE]": Case(says(begun.removesuffix(frames.done())), "completed"),
            "an early answer behind it": Case(says(b""), "completed", {"inner_answers": cached(True)}),
            "a whole early answer behind it": Case(
                says(b""), "completed", {"inner_answers": cached(False), "stream": False}
            ),
        }
        for name, case in cases.items():
            if self._hopeless():
                return
            await self._talk(name, case.ending, **case.request)

    async def _slow(self, answer: str, expected: Said) -> None:
        seen, events = "let another reply through", frames.stream([answer])
        reply = says(b"".join(events))
        await self._same("pause", "a client that reads slowly", seen, expected, reply, make_client=_slow)
        # One that has come in one read nobody holds up any more.
        await self._talk("a client that reads slowly, an event a turn", paced(events), make_client=_slow)
        await self._talk("an early answer, read slowly", says(b""), inner_answers=cached(True), make_client=_slow)

    async def _after_one_that_left(self, answer: str, expected: Said) -> None:
        """What was held of a reply that its client left is nobody else's."""
        seen = "gave a request another reply after one whose client had left"
        for place in some(range(1, len(answer)), MAX_LEFT):
            case = f"client gone after {place} characters"
            talk = await self._talk(case, paced(frames.stream([answer[:place], answer[place:]]), leaves_after=2))
            if self._hopeless() or talk.error is not None:
                return
            if not self._remembers:
                await self._same("state", case, seen, expected, says(stream([answer])))

    async def _two_at_once(self, answer: str, expected: Said) -> None:
        """Two conversations, an event of each in turn."""
        size = max(1, len(answer) // MAX_CUTS)
        events = frames.stream([answer[start : start + size] for start in range(0, len(answer), size)])
        talks = [self._conversation(client=Client()) for _ in range(2)]
        self._count += 2
        await asyncio.gather(*(talk.go(paced(events)) for talk in talks))
        for talk in talks:
            self._look.look(talk, "two at once")
        if self._steady and not self._remembers and not any(talk.error or talk.hung for talk in talks):
            alone = await self._talk("a stream, an event a turn", paced(events))
            if said(alone) == expected and any(said(talk) != expected for talk in talks):
                self._look.note("state", "two at once", "gave two requests at once other replies than one alone")

    async def _leaving(self, answer: str) -> None:
        """The client leaves whenever `on_request` waits, and at each turn of the reply."""
        events = frames.stream([answer[: len(answer) // 2], answer[len(answer) // 2 :]])
        for wait in range(1, MAX_WAITS + 1):
            talk = await self._talk(f"client gone while on_request waits, {wait}", paced(events), leaves_at=wait)
            if talk.waits < wait or self._hopeless():
                break
        for turns in range(len(events) + TURNS_AFTER):
            if self._hopeless():
                return
            talk = await self._talk(f"client gone after {turns} turns", paced(events, leaves_after=turns))
            if talk.error is not None or talk.answered is not None:
                return

    async def _long(self) -> None:
        """A reply of two megabytes: how much of it is held before its end."""
        traced = tracemalloc.is_tracing()
        if not traced:
            tracemalloc.start()
        try:
            before, _ = tracemalloc.get_traced_memory()
            held: list[int] = []
            ending = paced(long_reply(), at_eof=lambda: held.append(tracemalloc.get_traced_memory()[0] - before))
            talk = await self._talk("a long reply", ending, make_client=lambda: Client(forgets=True), seen=_Forgetful())
        finally:
            if not traced:
                tracemalloc.stop()
        if held and held[0] > MAX_HELD_BYTES and talk.error is None:
            self._look.note("memory", "a long reply", f"held {held[0] / 1e6:.1f} MB of a reply of 2 MB")

    async def _look_for_tasks(self, before: set[asyncio.Task[Any]]) -> None:
        left: set[asyncio.Task[Any]] = set()
        for _ in range(TASK_TURNS):
            others = asyncio.all_tasks() - before - {asyncio.current_task()}
            left = {task for task in others if not _of_a_store(task)}
            if not left:
                return
            await asyncio.sleep(0)
        for task in left:
            self._look.note("tasks", "after all", f"has left the task {getattr(task.get_coro(), '__qualname__', task)}")
            task.cancel()
        await asyncio.wait(left, timeout=1.0)


@asynccontextmanager
async def _in_time(seconds: float, otherwise: str) -> AsyncIterator[None]:
    """Raises TimeoutError with a sentence if the block takes longer."""
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise TimeoutError(
            f"{otherwise} within {seconds:g} s; what it waits for needs a time-out of its own"
        ) from error


def _of_a_store(task: asyncio.Task[Any]) -> bool:
    """A connection of the store that was lent lives as long as that does."""
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_filename.startswith(tuple(relay.store.__path__))


def _another(plugin: Plugin) -> Callable[[], Plugin]:
    def make() -> Plugin:
        other: Plugin = dataclasses.replace(plugin)
        return other

    return make


class _Forgetful(list[tuple[str, str]]):
    """Of what happens in a long reply nothing is written down."""

    def append(self, each: tuple[str, str]) -> None: ...


def _slow() -> Client:
    return Client(slow=True)


def _limited(talk: Conversation) -> bool:
    """Whether the request was refused by the plugin, or one before it, or cut where a quota ended."""
    if talk.ex.outcome is not None and talk.ex.outcome.kind == "exhausted":
        return True
    refused = talk.error is not None and not isinstance(talk.error, PluginError)
    return refused and not any(link is talk.subject for link in talk.entered)
