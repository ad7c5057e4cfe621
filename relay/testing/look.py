"""What a plugin did in a conversation, held against what it has promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from relay.chain import END_TIMEOUT_S
from relay.errors import PluginError
from relay.plugin import Reply
from relay.pure.openai import Chunk
from relay.testing.conversation import Conversation
from relay.testing.finding import Finding, Promise
from relay.testing.said import choices_of

_SAID: Final = ("content", "reasoning_content", "refusal", "tool_calls")


class Look:
    """Looks at conversations, and collects what is found.

    unheard: what went to the loop's exception handler in one, by `hear`. hung: how many have not ended.
    """

    def __init__(self) -> None:
        self.hung = 0
        self._seen: dict[tuple[Promise, str], list[str]] = {}
        self._unheard: list[str] = []

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(Finding(promise, tuple(cases), seen) for (promise, seen), cases in self._seen.items())

    @property
    def slow(self) -> bool:
        """An `on_end` that does not return, or work that does not stop, which takes five seconds each time."""
        return any("longer than" in seen or "goes on although" in seen for _, seen in self._seen)

    def hear(self, about: Mapping[str, Any]) -> None:
        """What the loop's exception handler is told."""
        self._unheard.append(_told(about))

    def note(self, promise: Promise, case: str, seen: str) -> None:
        cases = self._seen.setdefault((promise, seen), [])
        if case not in cases:
            cases.append(case)

    def look(self, talk: Conversation, case: str) -> None:
        for error in talk.errors:
            if error.plugin == "subject":
                self.note("raises", case, _raised(error))
        while self._unheard:
            self.note("tasks", case, self._unheard.pop())
        if not any(error.hook in ("feed", "end") for error in talk.errors):
            self._look_at_ends(talk, case)
        if talk.probe is not None and talk.probe.changed:
            self.note("chunks", case, "changed a chunk that it was fed")
        if talk.probe is not None and _goes_on(talk):
            self.note("finish", case, "said more of a choice after its finish_reason")
        for wrong in talk.probe.wrong if talk.probe is not None else ():
            self.note("chunks", case, wrong)
        if talk.went_on:
            self.note("leave", case, "went on in on_request when that was cancelled")
        self._look_at_request(talk, case)

    def _look_at_ends(self, talk: Conversation, case: str) -> None:
        probe = talk.probe if talk.probe is not None and talk.probe.made else None
        if probe is not None and probe.ends_in and not probe.ends_out:
            self.note("end", case, "did not pass the end on")
        elif talk.hung and talk.ex.paused:
            self.note("pause", case, "has paused the upstream for good")
        if probe is not None and probe.ends_out > max(1, probe.ends_in):
            self.note("end", case, "passed the end on more than once")
        if probe is not None and probe.hid:
            self.note("end", case, "passed the end of a reply that had failed on as that of a whole one")
        if probe is not None and probe.late:
            self.note("late", case, "fed chunks after the end")
        self.hung += talk.hung

    def _look_at_request(self, talk: Conversation, case: str) -> None:
        passed = any(link is talk.subject for link in talk.entered)
        passed |= talk.subject.on_request is None and talk.error is None
        answered = talk.answered if talk.answered is not None and not talk.times("on_request", "inner") else None
        if passed and answered is None:
            for key in talk.subject.plugin.gives:
                if key not in talk.ex:
                    self.note("gives", case, f"gives {key.name!r} and has not set it")
                elif not _is_a(talk.ex[key], key.type):
                    kind = type(talk.ex[key]).__name__
                    self.note("gives", case, f"has set {key.name!r} to a {kind}, which is to be a {key.type.__name__}")
        for name, value in talk.ex.reply_headers.items():
            if not _fits_a_header(value):
                self.note("answer", case, f"has set the header {name!r} to what is no string of one line")
        if answered is not None:
            for seen in _wrong_with(answered, talk.ex.operation == "chat" and talk.ex.request.stream):
                self.note("answer", case, seen)


def _raised(error: PluginError) -> str:
    cause = error.__cause__
    if isinstance(cause, TimeoutError) and error.hook == "on_end":
        return f"took longer than {END_TIMEOUT_S:g} s in on_end"
    return f"raised in {error.hook}: {type(cause).__name__}: {cause}".removesuffix(": ")


def _told(about: Mapping[str, Any]) -> str:
    error = about.get("exception")
    message = str(about.get("message", "")).partition(", of request")[0]
    return f"started work that failed: {type(error).__name__}: {error}" if error is not None else f"has {message}"


def _goes_on(talk: Conversation) -> bool:
    """Whether a choice says more after it was finished."""
    finished = set()
    for chunk in talk.kept.chunks:
        for index, choice in choices_of(chunk):
            delta = choice.get("delta")
            if index in finished and isinstance(delta, dict) and any(delta.get(name) for name in _SAID):
                return True
            if choice.get("finish_reason") is not None:
                finished.add(index)
    return False


def _is_a(value: object, kind: type) -> bool:
    try:
        return isinstance(value, kind)
    except TypeError:  # of a protocol, or list[str]
        return True


def _fits_a_header(value: object) -> bool:
    return isinstance(value, str) and not {"\r", "\n", "\0"}.intersection(value)


def _wrong_with(reply: Reply, streams: bool) -> Iterator[str]:
    """What is wrong with an early answer."""
    if any(not _fits_a_header(value) for value in reply.headers.values()):
        yield "answered with a header that is no string of one line"
    if not all(isinstance(chunk, Chunk) for chunk in reply.chunks):
        yield "answered with what are no chunks"
    elif streams and reply.status == 200:
        if any(not chunk.raw.startswith(b"data:") or not chunk.raw.endswith(b"\n\n") for chunk in reply.chunks):
            yield "answered a request for a stream with what are no events"
        elif any(chunk.data.strip() == b"[DONE]" for chunk in reply.chunks):
            yield "answered with a [DONE] of its own"
    elif len(reply.chunks) != 1 or reply.chunks[0].json is None:
        yield "answered a request for a whole reply with what is not one JSON object"
