"""What is secret stays secret on every way that a request can fail; and each request has one line.

The relay is driven through all of its errors (`CASES`). What a client may see of its own request is said case by case
(`echo`).
"""

import asyncio
import json
import re
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import aiohttp

from canaries import CHAT, FORBIDDEN, FORBIDDEN_BY_TENCENT, PATIENCE_S, Answer, search
from relay.metrics.families import OTHER, REFUSALS, UNJUDGED, UPSTREAM_ERRORS

# What goes wrong


@dataclass(frozen=True)
class Case:
    """drive: does it, and gives the answer. code: of the error that was answered; None: another end, or no error.

    echo: canaries of its own that the client may be
    shown again, with the reason in the table.
    """

    drive: Callable
    code: str | None = None
    echo: frozenset = frozenset()


def asked(words="", **options):
    return lambda world: world.post(words, **options)


def sent(data, **options):
    return lambda world: world.wire(data(world.canaries) if callable(data) else data, **options)


def head(can, *lines, path=CHAT, version="1.1"):
    """A head with the canary of a key, of a cookie and of the query, and `lines`."""
    first = f"POST {path}?q={can['query']} HTTP/{version}"
    known = ("Host: relay", f"Authorization: Bearer sk-{can['client_key']}", f"Cookie: s={can['cookie']}")
    return "\r\n".join((first, *known, *lines, "", "")).encode()


async def _over_limits(world, **limits):
    key = await world.new_key(f"limited-{next(iter(limits))}", limits=limits)
    before = world.upstream.received
    first = asyncio.create_task(world.post("upstream:waits", key=key, stream=True))
    try:
        await world.upstream.until(lambda: world.upstream.received > before)
        return await world.post(key=key)
    finally:
        world.go.set()
        await first
        world.go.clear()


async def _over_quota(world):
    return await world.post("x" * 250_000, key=await world.new_key("poor"))


async def _revoked(world):
    key = await world.new_key("revoked")
    await world.admin("PATCH", "/admin/keys/revoked", json={"disabled": True})
    return await world.post(key=key)


async def _not_mine(world):
    return await world.post(key=await world.new_key("bound", models=["known"]))


async def _judged_again(world):
    """The service has been in trouble; ask until it is asked again."""
    async with asyncio.timeout(PATIENCE_S):
        while (await world.post()).code == "moderation_unavailable":
            await asyncio.sleep(0.1)


def _unjudged(**settings):
    async def drive(world):
        await _judged_again(world)
        before = world.fake.settings
        world.fake.change(**settings)
        try:
            return await world.post()
        finally:
            world.fake.settings = before

    return drive


async def _gone_early(world):
    can = world.canaries
    return await world.wire(head(can, "Content-Length: 500") + can["prompt"].encode(), half=True)


async def _gone_later(world):
    world.asked += 1
    async with asyncio.timeout(PATIENCE_S):
        url = f"http://127.0.0.1:{world.port}{CHAT}"
        headers = {"Authorization": f"Bearer sk-{world.canaries['client_key']}"}
        body = world.body("upstream:waits", stream=True)
        async with aiohttp.ClientSession() as client, client.post(url, json=body, headers=headers) as response:
            await response.content.readany()
            response.close()
    return Answer(0, b"", b"")


# The key that a client has sent is shown to it, but for its middle: no eight letters of it in a row.
CASES = {
    # No requests
    "another version": Case(sent(lambda can: head(can, version="9.9")), "bad_request"),
    "no HTTP": Case(sent(lambda can: f"{can['prompt']}\r\n{can['header']}\r\n\r\n".encode()), "bad_request"),
    "TLS": Case(sent(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"), "bad_request"),
    "two hosts": Case(sent(lambda can: head(can, f"Host: {can['header']}", "Content-Length: 0")), "bad_request"),
    "a length that is none": Case(sent(lambda can: head(can, f"Content-Length: {can['header']}")), "bad_request"),
    "a coding that is none": Case(sent(lambda can: head(can, f"Transfer-Encoding: {can['header']}")), "bad_request"),
    "a name that is none": Case(sent(lambda can: head(can, f"{can['header']} x: y")), "bad_request"),
    "a value that is none": Case(sent(lambda can: head(can, f"X: {can['header']}\0")), "bad_request"),
    "a chunk that is none": Case(
        sent(lambda can: head(can, "Transfer-Encoding: chunked") + f"{can['prompt']}\r\n".encode()), "bad_request"
    ),
    "a header too long": Case(sent(lambda can: head(can, f"X: {can['header'] * 500}")), "headers_too_large"),
    "too many headers": Case(
        sent(lambda can: head(can, *(f"X-{number}: {can['header']}" for number in range(200)))), "headers_too_large"
    ),
    "headers too long in all": Case(
        sent(lambda can: head(can, *(f"X-{number}: {can['header'] * 200}" for number in range(20)))), "headers_too_large"
    ),
    # Requests that are refused as they are
    "no such path": Case(lambda world: world.post(path=f"/v1/{world.canaries['query']}"), "not_found"),
    "another method": Case(asked(method="PUT"), "method_not_allowed"),
    "compressed": Case(asked(headers={"Content-Encoding": "gzip"}.items()), "unsupported_media_type"),
    "too large": Case(asked("x" * 1_000_000), "request_too_large"),
    "a body that does not come": Case(
        sent(lambda can: head(can, "Content-Length: 500") + can["prompt"].encode()), "request_timeout"
    ),
    "no key": Case(asked(headers={"Authorization": ""}.items()), "invalid_api_key"),
    "another scheme": Case(lambda world: world.post(headers=[("Authorization", f"Basic {world.canaries['wrong']}")]), "invalid_api_key"),
    "a wrong key": Case(lambda world: world.post(key=f"sk-{world.canaries['wrong']}"), "invalid_api_key"),
    "a key that is no text": Case(
        sent(lambda can: b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer \xff\xfe" + can["wrong"].encode() + b"\r\n\r\n"),
        "invalid_api_key",
    ),
    "a revoked key": Case(_revoked, "invalid_api_key"),
    "no JSON": Case(lambda world: world.post(raw=b'{"model": ' + world.canaries["prompt"].encode()), "invalid_json"),
    "no UTF-8": Case(lambda world: world.post(raw=world.canaries["prompt"].encode() + b"\xff"), "invalid_json"),
    "a list": Case(lambda world: world.post(raw=json.dumps([world.canaries["prompt"]]).encode()), "invalid_json"),
    "a key twice": Case(
        lambda world: world.post(raw=b'{"%(c)b": 1, "%(c)b": 2}' % {b"c": world.canaries["field"].encode()}), "repeated_key"
    ),
    "messages that are none": Case(lambda world: world.post(messages=world.canaries["prompt"]), "invalid_messages"),
    "a model that is none": Case(asked(model=7), "invalid_model"),
    "a model of others": Case(_not_mine, "invalid_model"),
    "models of two chains": Case(asked(model="closed", models=["known"]), "mixed_models"),
    "stream": Case(lambda world: world.post(stream=world.canaries["value"]), "invalid_stream"),
    **{
        name: Case(lambda world, name=name: world.post(**{name: world.canaries["value"] * 4}), f"invalid_{name}")
        for name in (
            *("n", "temperature", "max_tokens", "max_completion_tokens", "presence_penalty", "frequency_penalty"),
            *("top_p", "user", "logit_bias"),
        )
    },
    "a keyword that is none": Case(
        lambda world: world.post(raw=json.dumps({"keyword": [world.canaries["prompt"]]}).encode(), path="/api/v2.Gptliu/search"),
        "invalid_keyword",
    ),
    "a keyword too long": Case(
        lambda world: world.post(raw=json.dumps({"keyword": world.canaries["prompt"] * 30_000}).encode(), path="/api/v2.Gptliu/search"),
        "keyword_too_long",
    ),
    # Limits
    "too fast": Case(lambda world: _over_limits(world, requests_per_minute=1), "rate_limit_exceeded"),
    "too many at once": Case(
        lambda world: _over_limits(world, concurrent_streams=1), "too_many_requests_in_flight",
    ),
    "too poor": Case(_over_quota, "insufficient_user_quota"),
    # Upstreams
    "upstream: whole": Case(asked(), echo=frozenset({"reply"})),
    "upstream: a stream": Case(asked(stream=True), echo=frozenset({"reply"})),
    **{f"upstream: {status}": Case(asked(f"upstream:{status}"), "upstream_auth") for status in (401, 403)},
    **{f"upstream: {status}": Case(asked(f"upstream:{status}"), "upstream_error") for status in (302, 500, 502, 503)},
    "upstream: busy": Case(asked("upstream:429"), "rate_limit_exceeded"),
    # What an upstream says of a request its client is told, but for keys and addresses.
    "upstream: blames": Case(asked("upstream:blames"), "context_length", echo=frozenset({"blame"})),
    "upstream: quotes the key": Case(asked("upstream:quotes"), OTHER, echo=frozenset({"blame"})),
    "upstream: names it": Case(asked("upstream:names"), OTHER, echo=frozenset({"blame"})),
    "upstream: HTML": Case(asked("upstream:html"), "upstream_malformed"),
    "upstream: nothing": Case(asked("upstream:nothing", stream=True), "upstream_incomplete"),
    "upstream: a reset": Case(asked("upstream:reset"), "upstream_unavailable"),
    "upstream: none": Case(asked(model="closed"), echo=frozenset({"reply"})),
    "upstream: no HTTP": Case(asked("upstream:not_http"), "upstream_unavailable"),
    "upstream: silence": Case(asked("upstream:silence"), "upstream_timeout"),
    "upstream: half": Case(asked("upstream:half", stream=True), "upstream_incomplete", echo=frozenset({"reply"})),
    "upstream: idle": Case(asked("upstream:idle", stream=True), "upstream_timeout", echo=frozenset({"reply"})),
    "upstream: garbage": Case(asked("upstream:garbage", stream=True), "upstream_malformed", echo=frozenset({"reply"})),
    "upstream: reports": Case(asked("upstream:reports", stream=True), "upstream_error", echo=frozenset({"reply"})),
    # Plugins that quote
    **{f"plugin: {hook}": Case(asked(f"break:{hook}"), "internal_error") for hook in ("on_request", "group", "on_stream")},
    "plugin: feed": Case(asked("break:feed", stream=True), "internal_error"),
    "plugin: a later feed": Case(asked("upstream:breaks_feed", stream=True), "internal_error"),
    "plugin: end": Case(asked("break:end", stream=True), "internal_error", echo=frozenset({"reply"})),
    **{
        f"plugin: {where}": Case(asked(f"break:{where}"), echo=frozenset({"reply"}))
        for where in ("on_end", "log", "callback", "task", "future", "slow")
    },
    "plugin: overdue": Case(asked("break:overdue"), "overdue"),
    "plugin: spawn": Case(asked("break:spawn upstream:silence"), "internal_error"),
    # Moderation
    "a prompt that is not allowed": Case(asked(FORBIDDEN), "content_filter"),
    "one that the service blocks": Case(asked(FORBIDDEN_BY_TENCENT), "content_filter"),
    "a reply that is not allowed": Case(asked("upstream:says"), echo=frozenset({"reply"})),
    "one that the service blocks, streamed": Case(asked("upstream:says_tencent", stream=True)),
    "a reply that cannot be moderated": Case(asked("upstream:stalls", stream=True), "moderation_stalled"),
    "a moderator that quotes the prompt": Case(asked("break:moderator"), "moderation_unavailable"),
    "one that gives no verdict": Case(asked("break:verdict"), "moderation_unavailable"),
    "one that quotes the reply": Case(asked("upstream:breaks_moderator", stream=True), "moderation_unavailable"),
    "the service: too many calls": Case(_unjudged(error_share=1, errors={"RequestLimitExceeded": 1}), "moderation_unavailable"),
    "the service: no answer": Case(_unjudged(outage="black_hole"), "moderation_unavailable"),
    **{
        f"the service: {kind}": Case(_unjudged(error_share=1, errors={kind: 1}), "moderation_unavailable")
        for kind in ("reset", "garbage", "InvalidParameterValue")
    },
    "the service: another account": Case(_unjudged(error_share=1, errors={"AuthFailure.SecretIdNotFound": 1}), "moderation_unavailable"),
    "the service: not any more": Case(asked(), "moderation_unavailable"),
    # Clients that leave
    "gone before the body": Case(_gone_early),
    "gone in the stream": Case(_gone_later),
    # Nothing was asked
    "the models": Case(asked(method="GET", path="/v1/models", raw=b"")),
    "the quota": Case(asked(method="GET", path="/v1/quota", raw=b"")),
    "a preflight": Case(asked(method="OPTIONS", raw=b"")),
}  # fmt: skip

# Without a store, and at the end: after them the process serves nothing else.
LAST = {"auth_unavailable", "quota_unavailable", "draining"}
# For which a disk has to fail (tests/plugins/test_audit_files.py).
ELSEWHERE = {"audit_unavailable"}


async def drive(world, name, case):
    """One case: note its answer, and wait for as many lines as there were requests."""
    answer = await case.drive(world)
    world.answers.append((name, answer.said, case.echo))
    if answer.code != case.code and not (case.code == OTHER and answer.code not in (None, *REFUSALS)):
        world.unlike.append((name, case.code, answer.code))
    await world.until(lambda: len(world.requests) >= world.asked - world.open)
    return answer


async def test_no_canary_sings(world):
    """Every refusal there is, and all else that goes wrong with a request: nobody is told what is not his."""
    world = await world()
    listening = asyncio.create_task(_events(world))
    provoked = set()
    for name, case in CASES.items():
        answer = await drive(world, name, case)
        provoked.add(answer.code if answer.code in REFUSALS else OTHER)
    await _look(world, "after all")
    # The store goes away while a stream is open.
    unseen = await world.new_key("unseen")
    await _judged_again(world)
    before = world.upstream.received
    live = asyncio.create_task(world.post("upstream:mutters", stream=True))
    world.open = 1
    await world.upstream.until(lambda: world.upstream.received > before)
    await asyncio.to_thread(world.redis.main.kill)
    for key, code in (("", "quota_unavailable"), (unseen, "auth_unavailable")):
        await drive(world, code, Case(asked(key=key), code))
    await _look(world, "without a store")
    # SIGTERM, for the last time of asking; and again, for the end of the stream.
    world.process.send_signal(signal.SIGTERM)
    await world.until(lambda: world.events("draining"))
    await drive(world, "draining", Case(asked(), "draining"))
    world.process.send_signal(signal.SIGTERM)
    answer = await live
    world.answers.append(("drained", answer.said, frozenset()))
    assert "draining" == answer.code
    async with asyncio.timeout(PATIENCE_S):
        assert 0 == await world.process.wait()
        await world._reading
        events = await listening
    provoked |= LAST | ELSEWHERE
    assert [] == world.unlike
    assert set(REFUSALS) == provoked
    # One line a request, and nothing beside lines.
    assert world.asked == len(world.requests)
    assert world.asked == len({line["request_id"] for line in world.requests})
    assert [] == world.odd
    # The whole of it, and what is on disk.
    kept = [path for path in (world.folder / "relay-data").rglob("*") if path.is_file()]
    assert kept
    search(world, events, *(path.read_bytes() for path in kept))
    reasons = re.findall(rb'relay_moderation_checks_total{moderator="tencent",outcome="(\w+)"} [1-9]', world.metrics)
    assert set(UNJUDGED) <= {reason.decode() for reason in reasons}
    kinds = re.findall(rb'relay_upstream_errors_total{kind="(\w+)",upstream="\w+"} [1-9]', world.metrics)
    assert set(UPSTREAM_ERRORS) - {OTHER} <= {kind.decode() for kind in kinds}


async def _events(world):
    """What the operator's stream of events says, to its end."""
    url = f"http://127.0.0.1:{world.admin_port}/admin/events"
    headers = {"Authorization": f"Bearer {world.canaries['admin_token']}"}
    said = b""
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers, params={"last": "100"}) as response:
        assert 200 == response.status
        with suppress(aiohttp.ClientError):
            async for part in response.content.iter_any():
                said += part
    return said


async def _look(world, when):
    """All that the admin listener answers."""
    can = world.canaries
    unseen = frozenset()
    for path in (
        "/metrics",
        "/healthz",
        "/readyz",
        "/admin/keys",
        "/admin/audit",
        "/admin/quota/k",
        "/admin/quota/k/entries",
        "/admin/openapi.json",
    ):
        answer = await world.admin("GET", path)
        world.answers.append((f"{when}: {path}", answer.said, unseen))
        if path == "/metrics":
            world.metrics = answer.said
    # What an operator does wrong: nothing of it is said again but the names in it, which are no secrets.
    wrong = {"name": "x", "labels": {can["label"]: 7}, can["field"]: can["value"]}
    for method, path, options, echo in (
        ("GET", "/admin/keys", {"token": can["wrong"]}, set()),
        ("POST", "/admin/keys", {"json": wrong}, {"field", "label"}),
        ("POST", "/admin/keys", {"data": can["value"].encode()}, set()),
        ("POST", "/admin/keys", {"json": {"name": can["value"] * 4}}, set()),
        ("PATCH", "/admin/keys/k", {"json": {"disabled": can["value"]}}, set()),
        ("PATCH", f"/admin/keys/{can['value']}", {"json": {"disabled": True}}, {"value"}),
        ("DELETE", f"/admin/keys/{can['value']}", {}, {"value"}),
        ("POST", f"/admin/keys/{can['value']}/rotate", {"json": {"overlap_s": can["label"]}}, set()),
        ("GET", f"/admin/audit?before={can['value']}", {}, set()),
        ("GET", f"/admin/audit?{can['value']}=x", {}, {"value"}),
        ("GET", f"/admin/quota/{can['value']}", {}, {"value"}),
        ("GET", f"/admin/quota/k?unit={can['value']}", {}, {"value"}),
        ("POST", "/admin/quota/k/top-up", {"json": {"amount": can["value"]}}, set()),
        ("GET", f"/admin/{can['value']}", {}, set()),
        ("PUT", "/admin/keys", {}, set()),
        ("GET", f"/{can['value']}", {}, set()),
        ("GET", f"/admin/events?kind={can['value']}", {}, {"value"}),
        ("GET", f"/admin/events?last={can['value']}", {}, set()),
    ):
        answer = await world.admin(method, path, **options)
        assert answer.status >= 400, (method, path, answer.said)
        world.answers.append((f"{when}: {method} {path}", answer.said, frozenset(echo)))
