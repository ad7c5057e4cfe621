"""`otel`: what the spans of a request say, where they come from, and what happens when nobody takes them."""

import asyncio
import os
import re
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from relay.errors import Reject
from relay.exchange import STOPPED_BY, Exchange, Outcome
from relay.options import ConfigError, Context, build
from relay.plugin import Plugin, Reply
from relay.pure.openai import Chunk
from relay.testing import frames
from relay.testing.reply import Lent
from relay.testing.run import Ran, run
from relay_plugins.otel import Otel, tracing
from relay_plugins.otel.context import MAX_STATE_CHARS

THEIRS = "0af7651916cd43dd8448eb211c80319c"
CHAT = {"model": "gpt-4", "messages": [{"role": "user", "content": "canary-prompt"}], "stream": True}
PARENT = f"00-{THEIRS}-b7ad6b7169203331-01"


class Spans(InMemorySpanExporter):
    """What was sent, and with what."""

    options: Mapping[str, Any]

    def made(self, **options: Any) -> "Spans":
        self.options = options
        return self

    def shutdown(self) -> None:
        """What was sent stays, and more may come."""

    @property
    def server(self) -> ReadableSpan:
        [span] = (span for span in self.get_finished_spans() if span.kind is SpanKind.SERVER)
        return span

    @property
    def clients(self) -> Sequence[ReadableSpan]:
        return [span for span in self.get_finished_spans() if span.kind is SpanKind.CLIENT]

    @property
    def client(self) -> ReadableSpan:
        [span] = self.clients
        return span


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None but a test's own."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Spans:
    spans = Spans()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", spans.made)
    return spans


def said(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def configured(**table: object) -> Plugin:
    return build(Otel, table, "otel", context=Context(folder=Path(), environ={"TOKEN": "secret"}, kinds={}))


# Off


LOADS = """
import sys
{before}
import relay.cli, relay.serve, relay_plugins.otel
from relay.assembly import registries
registries().plugins.find("otel")
print([name for name, module in sys.modules.items() if module and name.startswith({names})])
"""


@pytest.mark.parametrize(
    ("before", "names"),
    [
        pytest.param("sys.modules['opentelemetry'] = None", ("opentelemetry", "google."), id="not installed"),
        # redis-py loads the metrics where they are installed; those are not ours.
        pytest.param(
            "",
            (
                "opentelemetry.exporter",
                "opentelemetry.sdk.trace",
                "opentelemetry.proto",
                "google.",
                "relay_plugins.otel.",
            ),
            id="installed",
        ),
    ],
)
def test_who_does_not_use_it_does_not_load_it(before: str, names: tuple[str, ...]) -> None:
    """Nor does who looks at what plugins there are."""
    source = LOADS.format(before=before, names=names)
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "[]" == done.stdout.strip()


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The start stops with the line to run."""
    monkeypatch.delitem(sys.modules, "relay_plugins.otel.tracing")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(ConfigError, match=re.escape('pip install "moderelay[otel]"')):
        configured()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"endpoint": "collector:4318"}, "has to be a URL that begins with http:// or https://"),
        ({"endpoint": "http://collector:4318"}, "collectors take traces at http://collector:4318/v1/traces"),
        ({"endpoint": "http://collector:port/v1/traces"}, "is no URL"),
        ({"endpoint": "http://me:secret@collector/v1/traces"}, "send it as a header instead"),
        ({"endpoint": "http://collector/v1/tra\nces"}, "has to be a URL"),
        ({"headers": {"a b": "x"}}, "the header 'a b' cannot be sent"),
        ({"headers": {"a": "x\ny"}}, "the header 'a' cannot be sent"),
        ({"sample_ratio": 1.5}, "sample_ratio"),
        ({"sample_rate": 0.5}, "did you mean 'sample_ratio'"),
    ],
)
def test_what_stops_the_start(table: dict[str, object], problem: str) -> None:
    """A configuration that cannot be meant is refused with a remedy, and no secret is shown."""
    with pytest.raises(ConfigError, match=problem) as caught:
        configured(**table)
    assert "secret" not in str(caught.value)


def test_it_wraps_no_reply() -> None:
    """So a chunk costs nothing."""
    assert Otel.on_stream is Plugin.on_stream


# What the spans say


async def test_a_request_and_its_call(spans: Spans) -> None:
    """From the arrival to the end, the call in between."""
    ran = await run(Otel(), CHAT, answer=["Hel", "lo"])
    assert "Hello" == ran.reply.text
    server, client = spans.server, spans.client
    assert ("POST /v1/chat/completions", "chat gpt-4") == (server.name, client.name)
    assert client.parent is not None
    assert client.parent.span_id == server.context.span_id
    assert server.start_time <= client.start_time <= client.end_time <= server.end_time
    assert ("request-1", "completed", 200) == tuple(
        said(server)[name] for name in ("relay.request_id", "relay.outcome", "http.response.status_code")
    )
    assert ("upstream", "upstream.example", 443, ("stop",)) == tuple(
        said(client)[name]
        for name in ("relay.upstream", "server.address", "server.port", "gen_ai.response.finish_reasons")
    )
    assert f"00-{client.context.trace_id:032x}-{client.context.span_id:016x}" == traceparent(ran)[:52]


async def test_two_in_one_chain(spans: Spans) -> None:
    """As for two collectors: each tells its own spans."""
    ran = await run(Otel(service_name="two"), CHAT, before=[Otel(service_name="one")], answer=["Hello"])
    assert [] == ran.raised
    told = [(span.resource.attributes["service.name"], span.kind) for span in spans.get_finished_spans()]
    assert {(name, kind) for name in ("one", "two") for kind in (SpanKind.SERVER, SpanKind.CLIENT)} == {*told}
    assert 4 == len(told)


def traceparent(ran: Ran) -> str:
    return ran.exchange.upstream_headers["traceparent"]


@pytest.mark.parametrize("cuts", [(), None], ids=["whole", "byte by byte"])
@pytest.mark.parametrize("stream", [True, False])
async def test_a_reply_in_pieces(spans: Spans, cuts: Any, stream: bool) -> None:
    """However it comes, the same is told of it, and nothing of what it says."""
    usage = {"usage": {"prompt_tokens": 5, "completion_tokens": 2}}
    streamed = [*frames.stream(["canary-", "reply"])[:-1], frames.chunk([], extra=usage), frames.done()]
    answer = b"".join(streamed) if stream else frames.body("canary-reply", tokens=(5, 2))
    ran = await run(Otel(), CHAT, stream=stream, answer=answer, cuts=cuts)
    assert "canary-reply" == ran.reply.text
    told = said(spans.client)
    assert (5, 2, ("stop",), "gpt-3.5-turbo-1106") == tuple(
        told[name]
        for name in (
            *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "gen_ai.response.finish_reasons"),
            "gen_ai.response.model",
        )
    )
    assert told["gen_ai.response.id"].startswith("chatcmpl-")
    assert stream is ("gen_ai.response.time_to_first_chunk" in told)
    assert b"canary" not in encode_spans(spans.get_finished_spans()).SerializeToString()


async def test_an_upstream_that_tells_little(spans: Spans) -> None:
    """What it does not tell is not made up."""
    odd = frames.data('{"id":7,"model":null,"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":["x"]}]}')
    await run(Otel(), CHAT, answer=odd + frames.done())
    assert not {name for name in said(spans.client) if name.startswith(("gen_ai.response.", "gen_ai.usage."))} - {
        "gen_ai.response.time_to_first_chunk"
    }


async def test_every_choice_has_its_reason(spans: Spans) -> None:
    """In the order of the choices, not of their ends."""
    ends = [
        frames.chunk([{"delta": {}, "index": index, "finish_reason": reason}])
        for index, reason in ((1, "length"), (0, "stop"))
    ]
    await run(Otel(), CHAT, n=2, answer=b"".join([*ends, frames.done()]))
    assert ("stop", "length") == said(spans.client)["gen_ai.response.finish_reasons"]
    assert 2 == said(spans.client)["gen_ai.request.choice.count"]


async def test_an_answer_without_a_call(spans: Spans) -> None:
    """Nobody was asked, so no call is told."""
    ran = await run(Answering(), CHAT, before=[Otel()])
    assert ran.sent is None
    assert not spans.clients
    assert "completed" == said(spans.server)["relay.outcome"]


class Answering(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        return Reply((Chunk.event({"choices": []}),))


class Refusing(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[STOPPED_BY] = ("lexicon", "rude")
        ex.moderated(0.25)
        raise Reject("canary", code="content_filter")


class Failing(Plugin):
    async def on_request(self, ex: Exchange) -> Reply | None:
        raise ZeroDivisionError("canary")


async def test_a_refusal(spans: Spans) -> None:
    """It says who refuses and why, and is no failure."""
    await run(Refusing(), CHAT, before=[Otel()])
    told = said(spans.server)
    assert ("lexicon", "rude", 0.25, "refused", "content_filter", 400) == tuple(
        told[name]
        for name in (
            *("relay.stopped_by", "relay.label", "relay.moderated_s", "relay.outcome", "relay.code"),
            "http.response.status_code",
        )
    )
    assert (StatusCode.UNSET, None) == (spans.server.status.status_code, told.get("error.type"))


async def test_a_failure(spans: Spans) -> None:
    """Its code, and nothing of its words."""
    await run(Failing(), CHAT, before=[Otel()])
    assert "internal_error" == said(spans.server)["error.type"]
    assert (StatusCode.ERROR, None) == (spans.server.status.status_code, spans.server.status.description)
    assert () == spans.server.events
    assert b"canary" not in encode_spans(spans.get_finished_spans()).SerializeToString()


async def test_a_stream_that_breaks_off(spans: Spans) -> None:
    """It has failed although its status was 200."""
    await run(Otel(), CHAT, answer=b"".join(frames.stream(["Hel"])[:1]))
    assert (200, "upstream_incomplete") == (
        said(spans.server)["http.response.status_code"],
        said(spans.server)["error.type"],
    )
    assert "incomplete" == said(spans.client)["error.type"]


async def test_what_a_plugin_stops_has_not_failed(spans: Spans) -> None:
    class Stops(Plugin):
        async def on_request(self, ex: Exchange) -> Reply | None:
            ex.loop.call_soon(ex.stop, Outcome("filtered"))
            return None

    await run(Stops(), CHAT, before=[Otel()], answer=["Hello"])
    assert "error.type" not in said(spans.server)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(st.characters()),
    lambda below: st.lists(below, max_size=20) | st.dictionaries(st.text(max_size=3), below, max_size=3),
)
FIELDS = ("temperature", "top_p", "frequency_penalty", "max_tokens", "max_completion_tokens", "seed", "top_k", "stop")


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
@settings(max_examples=30)
async def test_whatever_a_request_sets_can_be_sent(fields: dict[str, Any]) -> None:
    """One value that cannot would take the spans of others with it."""
    with pytest.MonkeyPatch.context() as patch:
        spans = Spans()
        patch.setattr(tracing, "OTLPSpanExporter", spans.made)
        await run(Setting(fields=fields), CHAT, before=[Otel()])
    encode_spans(spans.get_finished_spans()).SerializeToString()
    assert all(len(str(value)) < 2000 for value in said(spans.client).values())


class Setting(Plugin):
    fields: dict[str, Any]

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.request.update(self.fields)
        return None


# Contexts


async def test_a_strangers_trace_is_linked(spans: Spans) -> None:
    await run(Otel(), CHAT, headers={"traceparent": PARENT, "tracestate": "a=1"})
    assert spans.server.parent is None
    [link] = spans.server.links
    assert int(THEIRS, 16) == link.context.trace_id != spans.server.context.trace_id
    assert not link.context.trace_state


async def test_a_trusted_trace_goes_on(spans: Spans) -> None:
    ran = await run(Otel(trust_context=True), CHAT, headers={"traceparent": PARENT, "tracestate": "a=1"})
    assert spans.server.parent is not None
    assert int(THEIRS, 16) == spans.server.parent.trace_id == spans.client.context.trace_id
    assert "a=1" == ran.exchange.upstream_headers["tracestate"]


async def test_a_trusted_client_says_what_is_sampled(spans: Spans) -> None:
    ran = await run(Otel(trust_context=True), CHAT, headers={"traceparent": PARENT[:-1] + "0"})
    assert not spans.get_finished_spans()
    assert traceparent(ran).startswith(f"00-{THEIRS}-")
    assert traceparent(ran).endswith("-00")


@pytest.mark.parametrize("trust", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "no"},
        {"traceparent": "00-" + "0" * 32 + "-" + "0" * 16 + "-01"},
        {"traceparent": PARENT + "-" + "x" * 600},
        {"traceparent": "ff" + PARENT[2:]},
        {"tracestate": "a=1"},
        {"traceparent": "é"},
    ],
    ids=["words", "noughts", "long", "version", "state alone", "no ASCII"],
)
async def test_what_is_no_context(spans: Spans, headers: dict[str, str], trust: bool) -> None:
    """A trace begins here, as if nothing had come."""
    ran = await run(Otel(trust_context=trust), CHAT, headers=headers)
    assert (None, ()) == (spans.server.parent, spans.server.links)
    assert "tracestate" not in ran.exchange.upstream_headers
    assert ran.raised == []


@pytest.mark.parametrize(
    "state", ["a=" + "1" * MAX_STATE_CHARS, " " * 8000 + ",", "a=é", "a=1\x00"], ids=["long", "spaces", "é", "nought"]
)
async def test_a_state_that_is_not_handed_on(spans: Spans, state: str) -> None:
    """The trace goes on without it."""
    ran = await run(Otel(trust_context=True), CHAT, headers={"traceparent": PARENT, "tracestate": state})
    assert int(THEIRS, 16) == spans.server.context.trace_id
    assert "tracestate" not in ran.exchange.upstream_headers


async def test_what_is_not_sampled(spans: Spans) -> None:
    """It is told to nobody, and the upstream hears that."""
    ran = await run(Otel(sample_ratio=0.0), CHAT, headers={"traceparent": PARENT})
    assert not spans.get_finished_spans()
    assert THEIRS not in traceparent(ran)


async def test_disabled_by_the_environment(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    ran = await run(Otel(), CHAT)
    assert not spans.get_finished_spans()
    assert {} == dict(ran.exchange.upstream_headers)


# Who says what


async def test_the_environment_says_what_the_file_does_not(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=theirs,deployment.environment.name=prod")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    await run(Otel(), CHAT)
    assert not spans.get_finished_spans()
    assert {"endpoint": None, "headers": None} == spans.options
    await run(Otel(sample_ratio=1.0, endpoint="http://c/v1/traces"), CHAT)
    resource = spans.server.resource.attributes
    assert ("theirs", "prod") == (resource["service.name"], resource["deployment.environment.name"])
    assert "http://c/v1/traces" == spans.options["endpoint"]


async def test_the_file_wins(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "theirs")
    plugin = configured(service_name="ours", headers={"x-token": {"env": "TOKEN"}})
    assert "secret" not in repr(plugin)
    await run(plugin, CHAT)
    assert "ours" == spans.server.resource.attributes["service.name"]
    assert {"x-token": "secret"} == spans.options["headers"]


async def test_its_own_name(spans: Spans) -> None:
    await run(Otel(), CHAT)
    assert "moderelay" == spans.server.resource.attributes["service.name"]


# Collectors that do not take what is sent


class Refused(Spans):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.FAILURE


async def test_it_is_said_that_traces_are_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "OTLPSpanExporter", Refused().made)
    lent = Lent()
    ran = await run(Otel(), CHAT, lent=lent)
    assert "Hello" == ran.reply.text
    assert [("the collector does not take traces", 2)] == [
        (line["event"], line["spans_lost"]) for line in lent.lines if line["level"] == "warning"
    ]


def test_it_is_not_said_often() -> None:
    lent = Lent()
    exporter = tracing.TellingExporter(Refused(), lent.services.log)
    for _ in range(100):
        exporter.export(())
    assert 1 == len(lent.lines)


class Hanging(Spans):
    """A collector that does not answer, until it is given up."""

    def __init__(self) -> None:
        super().__init__()
        self.given_up = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        assert self.given_up.wait(10)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.given_up.set()


async def test_a_collector_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is given up, which is said, and nothing is left running."""
    before = set(threading.enumerate())
    collector = Hanging()
    monkeypatch.setattr(tracing, "OTLPSpanExporter", collector.made)
    monkeypatch.setattr(tracing, "CLOSE_S", 0.01)
    lent = Lent()
    await run(Otel(), CHAT, lent=lent)
    assert collector.given_up.is_set()
    assert "the collector does not take the last traces" in [line["event"] for line in lent.lines]
    for thread in set(threading.enumerate()) - before:
        if "otel" in thread.name.lower():
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()
