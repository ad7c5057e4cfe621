"""One JSON line an event; never a secret; never an exception for the caller."""

import io
import os
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime

import orjson
import pytest
from multidict import CIMultiDict

from relay.log import LEVELS, configure
from relay.secret import Secret

CANARY = "sk-canary-0123456789"


@pytest.fixture
def stream():
    return io.BytesIO()


def lines(stream):
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_line_is_json_with_level_and_utc_time(stream):
    """A line holds the event, its fields, the level, and the time in UTC."""
    configure(stream).info("request", outcome="completed", chunks=3, duration_s=0.25, upstream=None)
    assert stream.getvalue().endswith(b"}\n")
    [line] = lines(stream)
    moment = datetime.fromisoformat(line.pop("timestamp"))
    assert UTC.utcoffset(None) == moment.utcoffset()
    assert line == {
        "event": "request",
        "level": "info",
        "outcome": "completed",
        "chunks": 3,
        "duration_s": 0.25,
        "upstream": None,
    }


def test_fields_stand_in_their_order(stream):
    """What is bound, what is given, the event, the exception, and last the level and the time: as people read them."""
    logger = configure(stream).bind(worker=1, zebra=2)
    logger.info("request", b=1, a=2, zebra=3)
    logger.error("failed", exc_info=ValueError(), a=1)
    logger.info("odd", b=1, half="\ud83d")  # no line that orjson takes
    first, second, third = lines(stream)
    assert ["worker", "zebra", "b", "a", "event", "level", "timestamp"] == list(first)
    assert ["worker", "zebra", "a", "event", "exception", "frames", "level", "timestamp"] == list(second)
    assert ["worker", "zebra", "b", "half", "event", "level", "timestamp"] == list(third)
    assert 3 == first["zebra"]


@pytest.mark.parametrize("neighbour", ["plain", "\ud800"])
def test_time_is_written_in_one_way(stream, neighbour):
    """To the microsecond, and with a Z."""
    configure(stream).info("request", model=neighbour)
    [line] = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{6})?Z", line["timestamp"])


def test_an_event_is_not_a_format(stream):
    """A per cent sign in it, or a field that a method has a name for, is a text like any other."""
    configure(stream).info("100 %s", self="x")
    [line] = lines(stream)
    assert ("100 %s", "x") == (line["event"], line["self"])


def test_one_event_is_one_line(stream):
    """A line feed in a value cannot forge a second line."""
    configure(stream).warning("request", model='x\n{"event": "forged"}')
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("level", LEVELS)
def test_level_is_a_threshold(stream, level):
    """What is below the level is not written."""
    logger = configure(stream, level)
    for method in (logger.debug, logger.info, logger.warning, logger.error):
        method("event")
    written = ("debug", "info", "warning", "error")[LEVELS.index(level) :]
    assert list(written) == [line["level"] for line in lines(stream)]


def test_unknown_level_is_refused(stream):
    """A level that does not exist is an error that names those that do."""
    with pytest.raises(ValueError, match="'loud'; one of debug, info, warning, error, critical"):
        configure(stream, "loud")


def test_bound_fields_are_on_every_line_of_that_logger_only(stream):
    """`bind` makes another logger and leaves the first as it was."""
    logger = configure(stream)
    bound = logger.bind(request_id="r1")
    bound.info("one")
    bound.info("two", key="demo")
    logger.info("three")
    assert [line.get("request_id") for line in lines(stream)] == ["r1", "r1", None]


def test_two_loggers_do_not_share_a_stream(stream):
    """Nothing global is configured."""
    other = io.BytesIO()
    configure(stream).info("here")
    configure(other).info("there")
    assert [line["event"] for line in lines(stream)] == ["here"]
    assert [line["event"] for line in lines(other)] == ["there"]


def test_standard_output_is_the_default(capfdbinary):
    """Without a stream lines go to standard output, and at once."""
    configure().info("started")
    assert orjson.loads(capfdbinary.readouterr().out)["event"] == "started"


@dataclass
class Holder:
    """A dataclass, which orjson would write out field by field."""

    token: str


class Text(str):
    """A str of somebody's own, which orjson would write as it is."""


@pytest.mark.parametrize("value", [
    Secret(CANARY),
    Holder(CANARY),
    Text(CANARY),
    CANARY.encode(),
    CIMultiDict(authorization=CANARY),
    ValueError(CANARY),
    [Secret(CANARY)],
    {"deep": {"er": Holder(CANARY)}},
])  # fmt: skip
@pytest.mark.parametrize("neighbour", ["plain", "\ud800"])
def test_objects_show_only_their_type(stream, value, neighbour):
    """What is not plain JSON data is written as the name of its type, also where orjson refuses the line."""
    configure(stream).info("request", value=value, model=neighbour)
    assert CANARY.encode() not in stream.getvalue()
    [line] = lines(stream)
    assert line["event"] == "request"


def test_exception_is_its_type_and_its_way_without_its_message(stream):
    """An exception's message may quote a prompt or a key: the line says what it was and where it went through."""

    def parse(text):
        return int(text)

    try:
        try:
            parse(CANARY)
        except ValueError as error:
            raise RuntimeError(CANARY) from error
    except RuntimeError:
        configure(stream).exception("plugin_failed", plugin="quota")
    assert CANARY.encode() not in stream.getvalue()
    [line] = lines(stream)
    assert (line["level"], line["plugin"]) == ("error", "quota")
    assert (line["exception"], line["cause"]) == ("builtins.RuntimeError", "builtins.ValueError")
    assert line["frames"][-1].startswith(f"{__file__}:")
    assert line["cause_frames"][-1].endswith("parse")


def test_exception_may_be_handed_over(stream):
    """`exc_info` takes an exception that is not being handled, as a task's is not."""
    configure(stream).error("task_failed", exc_info=OSError(CANARY))
    [line] = lines(stream)
    assert (line["exception"], line["frames"]) == ("builtins.OSError", [])


def test_exception_outside_of_a_handler(stream):
    """`exception` with nothing to describe is a line without one."""
    configure(stream).exception("odd")
    [line] = lines(stream)
    assert "exception" not in line


def test_deep_recursion_is_cut(stream):
    """A runaway recursion shows its last frames only."""

    def dive(depth):
        if depth == 0:
            raise RuntimeError
        dive(depth - 1)

    try:
        dive(200)
    except RuntimeError:
        configure(stream).exception("failed")
    [line] = lines(stream)
    assert len(line["frames"]) == 20


def holding_itself():
    loop = {}
    loop["self"] = loop
    return loop


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("half \ud83d", "half \\ud83d"),
        (2**70, "<int>"),
        (10**5000, "<int>"),
        (holding_itself(), "<dict>"),
        ({1: "key"}, "<dict>"),
        (object(), "<object>"),
        (float("nan"), None),
    ],
    ids=["surrogate", "long", "endless", "circle", "integer-key", "object", "nan"],
)
def test_any_value_makes_a_line(stream, value, written):
    """No value of a field makes logging fail, or a line that is no JSON."""
    configure(stream).info("request", value=value, chunks=3)
    [line] = lines(stream)
    assert (written, 3) == (line["value"], line["chunks"])


def test_one_bad_value_spares_its_neighbours(stream):
    """Beside a value that orjson refuses, scalars are written as ever."""
    scalars = {"text": "né", "chunks": 3, "ratio": 0.5, "streamed": True, "model": None}
    configure(stream).info("request", **scalars, huge=2**70)
    [line] = lines(stream)
    assert scalars == {name: line[name] for name in scalars}


def test_closed_stream_loses_the_line(stream):
    """A closed stream does not reach the caller."""
    logger = configure(stream)
    stream.close()
    logger.info("request")
    logger.bind(a=1).error("request")


def test_broken_pipe_loses_the_line():
    """A reader that went away does not reach the caller, however many lines follow."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as pipe:
        logger = configure(pipe)
        for _ in range(3):
            logger.info("request")


def test_no_standard_output(monkeypatch):
    """A process that was started with descriptor 1 closed has no sys.stdout; it logs nowhere."""
    monkeypatch.setattr(sys, "stdout", None)
    configure().info("request")


def test_a_line_in_the_midst_of_a_line():
    """A collection while one is written may end an object that has to be told of: that line is lost, and nothing waits."""

    class Interrupted(io.BytesIO):
        def write(self, line):
            if b"outer" in line:
                log.error("inner")
            return super().write(line)

    stream = Interrupted()
    log = configure(stream)
    log.info("outer")
    log.info("next")
    assert {"outer", "next"} <= {line["event"] for line in lines(stream)}
