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
import threading
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
_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_UTC_Z

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
        processors=(
            _describe_exception,
            _stamp,
            _encode,
        ),
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
        def tell(self: structlog.BoundLoggerBase, event: str, /, **fields: object) -> None:
            line: Any = {**self._context, **fields} if self._context else fields
            line["event"] = event
            for process in self._processors:
                line = process(self._logger, level, line)
            self._logger.msg(line)

        return tell

    def nothing(self: structlog.BoundLoggerBase, event: str, /, **fields: object) -> None:
        """Below the level."""

    written = LEVELS[LEVELS.index(least) :]
    methods = {level: method(level) if level in written else nothing for level in LEVELS}
    error = methods["error"]

    def exception(self: structlog.BoundLoggerBase, event: str, /, **fields: object) -> None:
        error(self, event, **{"exc_info": True, **fields})

    return type("BoundLogger", (structlog.BoundLoggerBase,), {**methods, "exception": exception})


class _Lines(structlog.BytesLogger):
    """Whole lines to a stream; a line that the stream refuses is dropped."""

    __slots__ = ()

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream)
        # structlog's waits for itself for ever where a collection, in the midst of a line, ends an object that has to be
        # told of in another.
        self._lock = threading.RLock()  # type: ignore[assignment]

    def msg(self, message: bytes) -> None:
        try:  # not `suppress`, which takes as long as the rest
            with self._lock:
                self._write(message + b"\n")
                self._flush()
        except (OSError, ValueError, RuntimeError):
            # A broken pipe, a full disk; the stream has been closed; it is in such a midst.
            pass


def _stamp(_logger: WrappedLogger, level: str, fields: EventDict) -> EventDict:
    """Level and time come last."""
    fields["level"] = level
    fields["timestamp"] = datetime.now(UTC)  # orjson writes it as `isoformat` does, in a third of the time
    return fields


def _encode(_logger: WrappedLogger, _method: str, fields: EventDict) -> bytes:
    """The line as bytes, whatever the fields hold."""
    try:
        return orjson.dumps(fields, default=_type_name, option=_OPTIONS)
    except orjson.JSONEncodeError:
        # Half a surrogate pair in a model's name, an integer of 20 digits, a dict that holds itself: orjson refuses
        # the whole line for one value.
        moment = fields.pop("timestamp")
        scalars: EventDict = {key: _scalar(value) for key, value in fields.items()}
        return orjson.dumps({**scalars, "timestamp": moment}, option=_OPTIONS)


def _describe_exception(_logger: WrappedLogger, _method: str, fields: EventDict) -> EventDict:
    """Replace `exc_info` (True, an exception, or `sys.exc_info()`) by its type and the frames it went through."""
    told = fields.pop("exc_info", None)
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
    return fields


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
