"""Traces of a real relay, as a collector gets them by OTLP over HTTP."""

import asyncio

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from relay.testing import Gate, Head, Script, Send, frames, refused, streamed, whole

MODEL = "gpt-3.5-turbo-1106"
KEY = "sk-canary-client-2f6b1c90d7e84a53"  # the client's, as in conftest.py
CANARIES = (KEY, "sk-canary-upstream", "canary-prompt", "canary-reply")
THEIRS = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{THEIRS}-b7ad6b7169203331-01"
USAGE = frames.chunk([], extra={"usage": {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}})
HELLO = [*frames.stream(["Hel", "lo"])[:-1], USAGE, frames.done()]


class Collector:
    """Takes traces, and keeps them."""

    def __init__(self):
        self.requests = []
        self.headers = []
        self.url = ""

    async def take(self, request):
        assert request.content_type == "application/x-protobuf"
        self.requests.append(ExportTraceServiceRequest.FromString(await request.read()))
        self.headers.append(request.headers)
        done = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=done, content_type="application/x-protobuf")

    @property
    def resource(self):
        return values(self.requests[0].resource_spans[0].resource)

    @property
    def spans(self):
        """By name, the last of each."""
        return {
            span.name: span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


@pytest.fixture
async def collector():
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    collector.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/traces"
    yield collector
    await runner.cleanup()


def values(said):
    """The attributes of a span or a resource."""
    return {attribute.key: value(attribute.value) for attribute in said.attributes}


def value(any_value):
    kind = any_value.WhichOneof("value")
    return [value(each) for each in any_value.array_value.values] if kind == "array_value" else getattr(any_value, kind)


def chain(collector, **options):
    auth = {"use": "auth", "keys": [{"name": "tester", "key": KEY}]}
    moderation = {"use": "moderation", "moderators": [{"use": "lexicon", "words": ["forbidden fruit"]}]}
    return [{"use": "otel", "endpoint": collector.url, **options}, auth, moderation]


async def test_a_stream(serve, collector):
    """A span of the request, under it one of the call of its model, and the upstream knows the second one."""
    tables = chain(collector, headers={"X-Vendor": "token"}, service_name="gateway")
    rig = await serve(streamed(HELLO), chain=tables)
    await rig.ask(
        temperature=0,
        max_tokens=9,
        stop=["\n"],
        stream_options={"include_usage": True},
        headers={"traceparent": PARENT},
    )
    [line] = await rig.ended()
    await rig.stop()

    server, client = collector.spans["POST /v1/chat/completions"], collector.spans[f"chat {MODEL}"]
    assert 2 == len(collector.spans)
    assert (Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT) == (server.kind, client.kind)
    assert (b"", server.span_id) == (server.parent_span_id, client.parent_span_id)
    assert server.trace_id == client.trace_id != bytes.fromhex(THEIRS)
    assert [bytes.fromhex(THEIRS)] == [link.trace_id for link in server.links]
    assert server.start_time_unix_nano < client.start_time_unix_nano
    assert client.start_time_unix_nano < client.end_time_unix_nano <= server.end_time_unix_nano

    sent = rig.upstream.requests[0].header("traceparent").split("-")
    assert ["00", client.trace_id.hex(), client.span_id.hex()] == sent[:3]
    assert int(sent[3], 16) & 1

    assert {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "relay.request_id": line["request_id"],
        "relay.outcome": "completed",
    } == {name: said for name, said in values(server).items() if name != "relay.moderated_s"}
    said = values(client)
    assert 0 < said.pop("gen_ai.response.time_to_first_chunk") < 60
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.stream": True,
        "gen_ai.request.temperature": 0.0,
        "gen_ai.request.max_tokens": 9,
        "gen_ai.response.id": "chatcmpl-7MCqtZcvn8rKPLlY55821IkGgfkXT",
        "gen_ai.response.model": "gpt-3.5-turbo-1106",
        "gen_ai.response.finish_reasons": ["stop"],
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 2,
        "relay.upstream": "u0",
        "server.address": "127.0.0.1",
        "server.port": rig.upstream.port,
    } == said
    assert "gateway" == collector.resource["service.name"]
    assert {"service.version", "process.pid"} <= set(collector.resource)
    assert "token" == collector.headers[0]["X-Vendor"]


async def test_the_first_chunk_comes_before_the_last(serve, collector):
    gate = asyncio.Event()
    head = Head(headers=(("Content-Type", "text/event-stream"),))
    script = Script(head, Send(b"".join(HELLO[:2])), Gate(gate), Send(b"".join(HELLO[2:])))
    rig = await serve(script, chain=chain(collector))
    reply = await rig.post()
    await reply.content.readuntil(b"\n\n")
    await asyncio.sleep(0.05)  # at least so long after the first one
    gate.set()
    await reply.content.read()
    await rig.stop()
    client = collector.spans[f"chat {MODEL}"]
    took_s = (client.end_time_unix_nano - client.start_time_unix_nano) / 1e9
    assert 0 < values(client)["gen_ai.response.time_to_first_chunk"] < took_s - 0.04


async def test_nothing_that_was_said_is_told(serve, collector):
    """Neither the prompt, nor the reply, nor a key."""
    rig = await serve(whole(frames.body("canary-reply")), chain=chain(collector))
    await rig.ask(stream=False)
    await rig.stop()
    sent = b"".join(request.SerializeToString() for request in collector.requests)
    assert f"chat {MODEL}".encode() in sent
    for canary in CANARIES:
        assert canary.encode() not in sent


async def test_a_trusted_context_goes_on(serve, collector):
    """The client's span is the parent, and its state reaches the upstream."""
    rig = await serve(whole(frames.body("Hello")), chain=chain(collector, trust_context=True, sample_ratio=0))
    await rig.ask(stream=False, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    await rig.stop()
    server = collector.spans["POST /v1/chat/completions"]
    assert (bytes.fromhex(THEIRS), bytes.fromhex(PARENT[36:52])) == (server.trace_id, server.parent_span_id)
    assert 0 == len(server.links)
    asked = rig.upstream.requests[0]
    assert "vendor=1" == asked.header("tracestate")
    assert f"00-{THEIRS}-{collector.spans[f'chat {MODEL}'].span_id.hex()}-01" == asked.header("traceparent")


async def test_a_stranger_does_not_decide_what_is_sampled(serve, collector):
    """The upstream is told of a trace that nobody keeps."""
    rig = await serve(whole(frames.body("Hello")), chain=chain(collector, sample_ratio=0))
    await rig.ask(stream=False, headers={"traceparent": PARENT, "tracestate": "vendor=1"})
    await rig.stop()
    asked = rig.upstream.requests[0]
    assert not collector.requests
    assert THEIRS not in asked.header("traceparent")
    assert 0 == int(asked.header("traceparent")[-2:], 16) & 1
    assert asked.header("tracestate") is None


async def test_retries_are_one_call(serve, collector):
    """Every upstream that is asked is told of the same span."""
    rig = await serve(
        refused(503), whole(frames.body("Hello")), chain=chain(collector), upstreams=[{"priority": 0}, {"priority": 1}]
    )
    await rig.ask(stream=False)
    await rig.stop()
    client = collector.spans[f"chat {MODEL}"]
    assert [client.span_id.hex()] * 2 == [
        upstream.requests[0].header("traceparent").split("-")[2] for upstream in rig.upstreams
    ]
    assert "u1" == values(client)["relay.upstream"]
    assert "error.type" not in values(client)


async def test_who_is_not_let_in_has_a_span(serve, collector):
    """And no model was called; a refusal is no failure of the relay's."""
    rig = await serve(streamed(HELLO), chain=chain(collector))
    assert 401 == (await rig.ask(headers={"Authorization": "Bearer no"})).status
    await rig.stop()
    [server] = collector.spans.values()
    said = values(server)
    assert (401, "refused", "invalid_api_key") == tuple(
        said[name] for name in ("http.response.status_code", "relay.outcome", "relay.code")
    )
    assert Status.STATUS_CODE_UNSET == server.status.code
    assert "error.type" not in said


async def test_an_upstream_that_fails(serve, collector):
    """Both spans have failed, each with its own word for it, and none with a text."""
    rig = await serve(refused(500), chain=chain(collector))
    assert 502 == (await rig.ask()).status
    await rig.stop()
    server, client = collector.spans["POST /v1/chat/completions"], collector.spans[f"chat {MODEL}"]
    assert ("upstream_error", "status") == (values(server)["error.type"], values(client)["error.type"])
    assert [(Status.STATUS_CODE_ERROR, "")] * 2 == [
        (span.status.code, span.status.message) for span in (server, client)
    ]
    assert "u0" == values(client)["relay.upstream"]


async def test_who_stopped_a_reply(serve, collector):
    rig = await serve(streamed(frames.stream(["Eat the ", "forbidden fruit", "."])), chain=chain(collector))
    await rig.ask()
    await rig.stop()
    said = values(collector.spans["POST /v1/chat/completions"])
    assert ("filtered", "lexicon") == (said["relay.outcome"], said["relay.stopped_by"])
    assert said["relay.label"]


async def test_models(serve, collector):
    rig = await serve(streamed(HELLO), chain=chain(collector))
    async with rig.session.get(rig.url + "/v1/models") as response:
        await response.read()
    await rig.ended()
    await rig.stop()
    assert ["GET /v1/models"] == list(collector.spans)


async def test_a_reload_traces_on(serve, collector, tmp_path):
    """Each generation sends its own, also of a request that ends on the former one."""
    rig = await serve(whole(frames.body("Hello")), chain=chain(collector, service_name="old"), folder=tmp_path)
    await rig.ask(stream=False)
    rig.document["plugins"][0]["service_name"] = "new"
    await rig.reload()
    await rig.ask(stream=False)
    await rig.stop()
    await rig.until(lambda: len(collector.requests) == 2)
    assert {"old", "new"} == {
        values(request.resource_spans[0].resource)["service.name"] for request in collector.requests
    }
