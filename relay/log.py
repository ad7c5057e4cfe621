"""One JSON line an event, and the only file that names structlog.

The app writes one canonical line per request; everything else is a start, a stop, or something gone wrong. A line is

    {"event": "request", "outcome": "completed", …, "level": "info", "timestamp": "2026-01-31T12:00:00.000000Z"}

**What may not be in a line**: prompts, replies, keys, headers. Nothing here takes a request or a body, and what is not
plain JSON data is written as the name of its type, so an object handed over by mistake shows nothing of itself. An
exception is written as its type and the places it went through, without its message: messages quote their input.

No contextvars: a callback on a pooled upstream connection runs in the context of the request that opened the connection,
and would put one user's id on another's line. Bind to the logger what a line needs.

A line that cannot be written is lost. Logging never raises into its caller: a relay whose log is gone still serves.
Not known here: a reader that is slow. Standard output to a full pipe blocks the loop, as any write to it does.
"""

import sys
import traceback
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, BinaryIO, Protocol, cast

import orjson
import structlog
from structlog.typing import EventDict, WrappedLogger

LEVELS = ("debug", "info", "warning", "error", "critical")

# A dataclass may be a configuration with its secrets, a subclass of str a secret itself.
_OPTIONS = (
    orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE
)

# Deep enough for a plugin under the chain under the server; a runaway recursion has a thousand.
_FRAMES = 20


class Logger(Protocol):
    """What the rest of the relay knows of a logger: an event's name and its fields, which are plain JSON data.

    `event`, `level`, `timestamp` and structlog's `method_name` are no names for a field.
    """

    def debug(self, event: str, /, **fields: object) -> None: ...
    def info(self, event: str, /, **fields: object) -> None: ...
    def warning(self, event: str, /, **fields: object) -> None: ...
    def error(self, event: str, /, **fields: object) -> None: ...
    def exception(self, event: str, /, **fields: object) -> None:
        """As `error`, with the exception being handled; or with `exc_info=` an exception."""

    def line(self, event: str, fields: dict[str, Any], /) -> None:
        """As `info`, for what is told often: `fields` is the logger's from now on, which costs less than a copy."""

    def bind(self, **fields: object) -> "Logger":
        """A logger which adds `fields` to each of its lines."""


def configure(stream: BinaryIO | None = None, level: str = "info") -> Logger:
    """A logger that writes to `stream` (standard output unless given; nowhere if that is closed) from `level` up.

    Nothing global is set: two relays in one process may log to two places. Raises ValueError for an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown log level {level!r}; one of {', '.join(LEVELS)}")
    # Python has no sys.stdout when descriptor 1 was closed at its start.
    stream = stream or getattr(sys.stdout, "buffer", None)
    logger = structlog.wrap_logger(
        _Lines(stream) if stream is not None else structlog.ReturnLogger(),
        processors=(_written,),
        wrapper_class=_bound_logger(level),
        context_class=dict,
    )
    # `bind` builds the real logger behind the lazy proxy, once; this is what `cache_logger_on_first_use` would do.
    return cast("Logger", logger.bind())


def _bound_logger(least: str) -> type[structlog.BoundLoggerBase]:
    """The wrapper class for lines from the level `least` up.

    structlog's own (`make_filtering_bound_logger`) hands the fields on by name four times before the first processor sees
    them, which costs more than all the processors; a line for each request has twenty of them.
    """

    def method(level: str) -> Callable[..., None]:
        def line(self: structlog.BoundLoggerBase, event: str, fields: dict[str, Any], /) -> None:
            if self._context:
                fields = {**self._context, **fields}
            fields["event"] = event
            [process] = self._processors
            self._logger.msg(process(self._logger, level, fields))

        return line

    def nothing(self: structlog.BoundLoggerBase, event: str, fields: dict[str, Any], /) -> None:
        """Below the level."""

    def named(line: Callable[..., None]) -> Callable[..., None]:
        def tell(self: structlog.BoundLoggerBase, event: str, /, **fields: object) -> None:
            line(self, event, fields)

        return tell

    written = LEVELS[LEVELS.index(least) :]
    lines = {level: method(level) if level in written else nothing for level in LEVELS}
    error = lines["error"]

    def exception(self: structlog.BoundLoggerBase, event: str, /, **fields: object) -> None:
        error(self, event, {"exc_info": True, **fields})

    methods = {level: named(line) for level, line in lines.items()}
    return type("BoundLogger", (structlog.BoundLoggerBase,), {**methods, "exception": exception, "line": lines["info"]})


class _Lines(structlog.BytesLogger):
    """Writes each line whole, and at once.

    A binary stream of Python's takes a write of one thread after the other, each whole, so no lock of ours is needed; and
    who comes back into the midst of one (a collection that ends an object that has to be told of) is told so, and not kept
    waiting for itself.
    """

    def msg(self, message: bytes) -> None:
        try:  # not `suppress`, which takes as long as the rest
            self._write(message)
            self._flush()
        except (OSError, ValueError, RuntimeError):
            # A broken pipe, a full disk; the stream has been closed; it is in such a midst.
            pass


def _written(_logger: WrappedLogger, level: str, fields: EventDict) -> bytes:
    """The line as bytes, whatever the fields hold. Level and time come last."""
    if "exc_info" in fields:
        _describe_exception(fields)
    fields["level"] = level
    fields["timestamp"] = datetime.now(UTC)  # orjson writes it as `isoformat` does, in a third of the time
    try:
        return orjson.dumps(fields, _type_name, _OPTIONS)
    except orjson.JSONEncodeError:
        # Half a surrogate pair in a model's name, an integer of 20 digits, a dict that holds itself: orjson refuses
        # the whole line for one value.
        moment = fields.pop("timestamp")
        scalars: EventDict = {key: _scalar(value) for key, value in fields.items()}
        return orjson.dumps({**scalars, "timestamp": moment}, option=_OPTIONS)


def _describe_exception(fields: EventDict) -> None:
    """Replace `exc_info` (True, an exception, or `sys.exc_info()`) by its type and the frames it went through."""
    told = fields.pop("exc_info")
    if told is True:
        told = sys.exc_info()
    error = told[1] if isinstance(told, tuple) else told
    if isinstance(error, BaseException):
        fields["exception"] = _qualified_name(error)
        fields["frames"] = _frames(error.__traceback__)
        cause = error.__cause__ if error.__suppress_context__ else error.__context__
        if cause is not None:
            fields["cause"] = _qualified_name(cause)
            fields["cause_frames"] = _frames(cause.__traceback__)


def _frames(trace: TracebackType | None) -> list[str]:
    """The last frames, the innermost last, as `file:line function`."""
    # Not `traceback.extract_tb`: it asks the disk for each file, on the loop.
    walked = deque(traceback.walk_tb(trace), maxlen=_FRAMES)
    return [f"{frame.f_code.co_filename}:{line} {frame.f_code.co_qualname}" for frame, line in walked]


def _qualified_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _type_name(value: object) -> str:
    return f"<{type(value).__name__}>"


def _scalar(value: object) -> str | int | float | bool | None:
    """`value` as orjson is sure to take it, or the name of its type."""
    if type(value) is str:
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or type(value) is float or (isinstance(value, int) and value.bit_length() < 64):
        return value
    return _type_name(value)
