"""The relay against its own OpenAPI document: schemathesis makes requests of it, right ones and wrong ones.

No answer may be a failure of ours, and each has to be one that the document describes: its status, its content type, its
headers and its body, every event of a stream included; what is right is accepted and what is wrong refused.

The long run makes RELAY_FUZZ_CASES cases at least, 10,000 unless it says otherwise; `-rP` shows what came of them.
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from relay.testing import Abort, Close, Head, Script, Send, answers, frames, refused, streamed, whole

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "openapi.json"
LONG = int(os.environ.get("RELAY_FUZZ_CASES", "10000"))
OPERATIONS = 2  # that take a body, so that there is no end of cases for them

HELLO = frames.stream(["Hel", "lo ", "世界"], tokens=(41, 6))
WELL = answers(["Hel", "lo ", "世界"])


def badly():
    """An upstream that is well every other time, and otherwise fails in one way after the other."""
    failures = itertools.cycle(
        [
            *(refused(status) for status in (400, 401, 403, 404, 413, 422, 429, 500, 502, 503, 504)),
            whole(b"<html>", content_type="text/html"),
            Script(Close()),
            Script(Head(), Send(b"".join(HELLO[:3])), Close()),
            Script(Head(), Send(b"".join(HELLO[:3])), Abort()),
            streamed([*HELLO[:3], frames.error()]),
            streamed([*HELLO[:3], frames.data("[DONE]x")]),
            streamed(HELLO[:-1]),
            whole(frames.error_body()),
        ]
    )
    well = itertools.cycle([True, False])

    def turn(request):
        return WELL(request) if next(well) else next(failures)

    return turn


@pytest.fixture
def reader():
    """One way of reading upstream bodies: other tests show that they do not differ."""
    return "push"


@pytest.fixture
def fuzz(serve, guarded, tmp_path):
    """`await fuzz(script, cases, …)`: the relay with its whole shipped chain, and how many cases there were of it.

    The rest are options of schemathesis. It must find nothing.
    """

    async def fuzz(script, cases, *options):
        limit = {"use": "rate_limit", "requests_per_minute": 10_000_000, "concurrent_streams": 100}
        auth, moderation = guarded()
        chain = [auth, {"use": "parameters"}, limit, moderation, {"use": "history", "max_turns": 3}]
        rig = await serve(script, chain=[*chain, {"use": "bingcheng"}])
        report = tmp_path / "report.json"
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", HERE / "schemathesis.toml"),
            *("run", DOCUMENT, "--url", rig.url, "-H", f"Authorization: {rig.session.headers['Authorization']}"),
            *("--max-examples", cases // OPERATIONS, "--continue-on-failure", "--no-shrink"),
            *("--report", "json", "--report-json-path", report, *options),
        ]
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            cwd=tmp_path,
            env={**os.environ, "SCHEMATHESIS_HOOKS": "fuzz_checks", "PYTHONPATH": str(HERE)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            printed, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert report.exists(), printed.decode()
        told = json.loads(report.read_bytes())
        assert (0, True, 0) == (process.returncode, told["complete"], told["test_cases"]["errored"]), printed.decode()
        generated = told["test_cases"]["generated"]
        counted = Counter((line["status"], line["code"]) for line in rig.requests)
        streams = sum(bool(line["stream"] and line["chunks"]) for line in rig.requests)
        print(f"{generated} cases, seed {told['seed']}, {told['running_time']:.0f} s")
        print(f"{rig.upstream.received} requests to the upstream, {streams} streams")
        for (status, code), count in counted.most_common():
            print(f"{count} × {status or 'no status'} {code or ''}")
        return rig, generated

    return fuzz


# What is asked of answers while the upstream is not well: right requests may fail, but not in just any way.
DESCRIBED = (
    "status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance,"
    "stream_ends_once,nothing_of_ours_breaks"
)
SHORT = ("--seed", "1", "--phases")
ALL = ("--phases", "examples,coverage,fuzzing")
long = pytest.mark.long


@pytest.mark.parametrize(
    ("cases", "options"),
    [pytest.param(200, (*SHORT, "examples,coverage"), id="short"), pytest.param(LONG, ALL, id="long", marks=long)],
)
async def test_with_an_upstream_that_is_well(fuzz, cases, options):
    """Nothing fails, what is right is answered, what is wrong is refused before anybody is asked."""
    rig, generated = await fuzz(WELL, cases, *options)
    assert generated >= cases
    assert {200, 400, 401, 404, 405} <= {line["status"] for line in rig.requests}
    answered = [line for line in rig.requests if line["chunks"]]
    assert len(answered) == rig.upstream.received
    assert {True, False} == {line["stream"] for line in answered}


@pytest.mark.parametrize(
    ("cases", "options"),
    [pytest.param(200, (*SHORT, "fuzzing"), id="short"), pytest.param(LONG, ALL, id="long", marks=long)],
)
async def test_with_an_upstream_that_fails(fuzz, cases, options):
    """Every failure is one that the document describes, in a stream too."""
    rig, generated = await fuzz(badly(), cases, "--checks", DESCRIBED, *options)
    rig.loudest = "warning"  # an upstream that fails so often is put aside
    assert generated >= cases
    assert {200, 400, 404, 413, 422, 429, 502} <= {line["status"] for line in rig.requests}
