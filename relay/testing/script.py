"""What an upstream is to do: a row of steps, all of them values.

`Script.acts()` turns steps into bytes and waits; it is pure, so the bytes of a reply can be had without a socket
(`Script.wire()`). Who carries a script out is `relay.testing.upstream`.
"""

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http.client import responses
from typing import Literal, TypeAlias

from relay.testing import frames


@dataclass(frozen=True, slots=True)
class Head:
    """The status line and the headers, in one write, and how the body that follows is framed.

    `framing`: "chunked" (each send is one HTTP chunk), "until-close" (the body ends with the connection), or a number,
    sent as Content-Length whether the body is that long or not.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/event-stream"),)
    framing: "Framing" = "chunked"

    def wire(self) -> bytes:
        match self.framing:
            case "chunked":
                framing = ("Transfer-Encoding", "chunked")
            case "until-close":
                framing = ("Connection", "close")
            case length:
                framing = ("Content-Length", str(length))
        lines = [
            f"HTTP/1.1 {self.status} {responses.get(self.status, '')}",
            *(f"{name}: {value}" for name, value in (*self.headers, framing)),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(frozen=True, slots=True)
class Send:
    """Bytes of the body in one write, and in one HTTP chunk where the body is chunked."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Split:
    """Bytes of the body in several sends, cut at the positions `at`, or byte by byte; `pace_s` seconds between two."""

    data: bytes
    at: tuple[int, ...] | None = None
    pace_s: float = 0


@dataclass(frozen=True, slots=True)
class Raw:
    """Bytes for the connection as they are, in one write: a head of one's own, a broken chunk, half a frame."""

    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """The end of the body. A script that runs out ends its body by itself; say it to do something afterwards."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Time in which nothing is sent."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Gate:
    """A wait until the test sets the event."""

    event: asyncio.Event


@dataclass(frozen=True, slots=True)
class Repeat:
    """The steps over and over: `times`, or until the connection ends. Other work has its turn before each round."""

    steps: tuple["Step", ...]
    times: int | None = None


@dataclass(frozen=True, slots=True)
class Close:
    """Close the connection in good order (FIN) after what has been sent."""


@dataclass(frozen=True, slots=True)
class Abort:
    """Reset the connection (RST). A reader that kept up still gets what was sent before."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Send nothing more and keep the connection until the client leaves."""


@dataclass(frozen=True, slots=True)
class CutOff:
    """A script that dies after so many bytes on the wire, head and framing counted. See `Script.cut_off`."""

    script: "Script"
    after_bytes: int
    by: "Step"


Step: TypeAlias = "Head | Send | Split | Raw | End | Pause | Gate | Repeat | Close | Abort | Hang | CutOff | Script"
Framing: TypeAlias = Literal["chunked", "until-close"] | int
Act: TypeAlias = bytes | Pause | Gate | Close | Abort | Hang
"""What is left of a script when framing is worked out: bytes to write, waits, and ways for the connection to end."""

_Flat: TypeAlias = Head | Send | Split | Raw | End | Pause | Gate | Close | Abort | Hang | CutOff
_RESET = Abort()


@dataclass(frozen=True, slots=True, init=False)
class Script:
    """What the upstream does with one request: steps, in order. A script may stand among the steps of another.

    When the steps run out, the body that a `Head` began is ended and the connection kept for the next request, except
    where only closing can end the body: "until-close", or a body that is not as long as its Content-Length said.
    Without a `Head` nothing is added and nothing is closed.
    """

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step) -> None:
        object.__setattr__(self, "steps", steps)

    def acts(self) -> Iterator[Act]:
        """Work out framing. Endless if the script is."""
        framing: Framing | None = None
        for step in _flat(self.steps):
            match step:
                case Head():
                    framing = step.framing
                    yield step.wire()
                case Send() | Split():
                    for number, piece in enumerate(_pieces(step)):
                        if number and isinstance(step, Split) and step.pace_s:
                            yield Pause(step.pace_s)
                        yield chunked(piece) if framing == "chunked" else piece
                        if isinstance(framing, int):
                            framing -= len(piece)
                case Raw(data):
                    yield data
                case End():
                    yield from _end(framing)
                    framing = None
                case CutOff():
                    yield from step.script._until(step.after_bytes, step.by)
                case _:
                    yield step
        yield from _end(framing)

    def wire(self) -> bytes:
        """All bytes of the reply, waits left out. Only for a script that ends."""
        return b"".join(act for act in self.acts() if isinstance(act, bytes))

    def cut_off(self, after_bytes: int, by: "Step" = _RESET) -> "Script":
        """The same script, dying `by` a reset after so many bytes of `wire()`.

        `by` is whatever comes in place of the rest: ``Close()``, ``Hang()``, ``Script(Raw(garbage), Close())``. A test of
        "dies at any byte" runs over ``range(len(script.wire()) + 1)``.
        """
        return Script(CutOff(self, after_bytes, by))

    def _until(self, after_bytes: int, by: "Step") -> Iterator[Act]:
        left = after_bytes
        for act in self.acts():
            if not isinstance(act, bytes):
                yield act
                continue
            if len(act) > left:
                yield act[:left]
                break
            yield act
            left -= len(act)
        yield from Script(by).acts()


def chunked(data: bytes) -> bytes:
    """`data` as one HTTP chunk (RFC 9112, 7.1). Nothing for nothing: an empty chunk would end the body.

    For many chunks in one write: ``Raw(b"".join(map(chunked, frames)))``.
    """
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def streamed(
    events: Iterable[bytes], pace_s: float = 0, per_write: int = 1, headers: Sequence[tuple[str, str]] = ()
) -> Script:
    """An event stream: `per_write` frames in each HTTP chunk, `pace_s` seconds between chunks."""
    queue = tuple(events)
    steps: list[Step] = [Head(headers=(("Content-Type", "text/event-stream"), *headers))]
    for start in range(0, len(queue), per_write):
        if start and pace_s:
            steps.append(Pause(pace_s))
        steps.append(Send(b"".join(queue[start : start + per_write])))
    return Script(*steps)


def whole(
    body: bytes, headers: Sequence[tuple[str, str]] = (), *, status: int = 200, content_type: str = "application/json"
) -> Script:
    """A body of known length in one piece."""
    return Script(Head(status, (("Content-Type", content_type), *headers), framing=len(body)), Send(body))


def refused(
    status: int,
    body: bytes | None = None,
    headers: Sequence[tuple[str, str]] = (),
    *,
    content_type: str = "application/json",
) -> Script:
    """An error status. The body is an OpenAI error unless given."""
    return whole(frames.error_body() if body is None else body, headers, status=status, content_type=content_type)


def _pieces(step: Send | Split) -> Iterable[bytes]:
    return frames.cut(step.data, step.at) if isinstance(step, Split) else (step.data,)


def _flat(steps: Iterable[Step]) -> Iterator[_Flat]:
    for step in steps:
        match step:
            case Script():
                yield from _flat(step.steps)
            case Repeat():
                times = step.times
                while times is None or times > 0:
                    yield Pause(0)  # so that steps which neither send nor wait, repeated for ever, do not hold the loop
                    yield from _flat(step.steps)
                    times = None if times is None else times - 1
            case _:
                yield step


def _end(framing: Framing | None) -> Iterator[Act]:
    """End the body. `framing` as a number is what the body still owes its Content-Length."""
    if framing == "chunked":
        yield b"0\r\n\r\n"
    elif framing:
        yield Close()
