"""The second listener, over a real socket."""

import asyncio
import threading
from types import SimpleNamespace

import orjson
import pytest
from aiohttp.test_utils import RawTestServer, TestClient

from relay.admin import Admin, Readiness
from relay.admin_api import AdminApi
from relay.metrics import Metrics
from relay.secret import Secret
from relay.testing.reply import Lent
from relay.workers import Desk

TOKEN = "t0ken-é"


class Relay:
    """What an Admin knows of the relay it speaks for."""

    def __init__(self):
        self.metrics = Metrics(models=["small"], upstreams=["main"])
        self.readiness = Readiness(True)

    def ready(self):
        return self.readiness


@pytest.fixture
def relay():
    return Relay()


@pytest.fixture
async def listen(relay):
    """Start a listener and connect to it: `client = await listen(token)`."""
    clients = []

    async def start(token=None, api=None):
        admin = Admin(relay.metrics, relay.ready, token, api)
        client = TestClient(RawTestServer(admin.handle))
        clients.append(client)
        await client.start_server()
        return client

    yield start
    for client in clients:
        await client.close()


async def error_of(response):
    """The error object, after checking that it has an OpenAI error body's four members."""
    assert response.content_type == "application/json"
    error = (await response.json())["error"]
    assert {"message", "type", "param", "code"} == set(error)
    return error


async def test_healthz_answers_whatever_the_readiness(listen, relay):
    """A relay that drains is alive: killing it would cut its streams."""
    relay.readiness = Readiness(False, ("draining",))
    client = await listen()
    response = await client.get("/healthz")
    assert (response.status, await response.text()) == (200, "ok")


async def test_readyz_ready(listen):
    """200 while new requests may come."""
    client = await listen()
    response = await client.get("/readyz")
    assert (response.status, await response.json()) == (200, {"ready": True, "reasons": []})


async def test_readyz_says_why_not_and_changes_its_mind(listen, relay):
    """503 with the reasons; the question is put anew at each request."""
    client = await listen()
    relay.readiness = Readiness(False, ("the store does not answer", "draining"))
    response = await client.get("/readyz")
    assert response.status == 503
    assert await response.json() == {"ready": False, "reasons": ["the store does not answer", "draining"]}
    relay.readiness = Readiness(True)
    response = await client.get("/readyz")
    assert response.status == 200


async def test_metrics_speak_both_formats(listen, relay):
    """The body and its content type follow the Accept header, also one that came in two lines."""
    relay.metrics.stream_opened()
    client = await listen()
    response = await client.get("/metrics")
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "\nrelay_open_streams 1.0\n" in await response.text()
    accepts = [("Accept", "application/openmetrics-text; version=1.0.0"), ("Accept", "text/plain;q=0.5")]
    response = await client.get("/metrics", headers=accepts)
    assert response.headers["Content-Type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert (await response.text()).endswith("# EOF\n")


class HeldMetrics(Metrics):
    """Metrics whose exposition takes until it is let go."""

    def __init__(self):
        super().__init__(models=[], upstreams=[])
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def render(self, accept=""):
        self.begun.set()
        self.let_go.wait(10)
        return super().render(accept)


async def test_loop_runs_while_metrics_are_rendered(listen, relay):
    """A scrape under way does not hold up another request."""
    relay.metrics = HeldMetrics()
    client = await listen()
    scrape = asyncio.ensure_future(client.get("/metrics"))
    await asyncio.to_thread(relay.metrics.begun.wait, 10)
    response = await client.get("/healthz")
    assert (response.status, scrape.done()) == (200, False)
    relay.metrics.let_go.set()
    assert (await scrape).status == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
async def test_head_is_get_without_the_body(listen, path):
    """HEAD has the status and the headers of GET, its length too, and no body."""
    client = await listen()
    response = await client.head(path)
    assert (response.status, await response.read()) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_other_methods_are_refused(listen, path, method):
    """405 names the methods that are allowed."""
    client = await listen()
    response = await client.request(method, path)
    assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
    assert (await error_of(response))["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/", "/metrics/", "/v1/chat/completions", "/administrator", "/%ff%00", "/..%2fadmin"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_everything_else_is_not_found(listen, path, method):
    """404 as an OpenAI error body, whatever the path."""
    client = await listen()
    response = await client.request(method, path)
    assert (response.status, (await error_of(response))["code"]) == (404, "not_found")


@pytest.mark.parametrize("path", ["/admin", "/admin/", "/admin/events", "/%61dmin/events"])
async def test_admin_without_a_configured_token_says_how_to_set_it(listen, path):
    """403 for everybody, with the remedy."""
    client = await listen()
    response = await client.get(path, headers={"Authorization": "Bearer "})
    assert response.status == 403
    error = await error_of(response)
    assert error["code"] == "admin_token_not_configured"
    assert "RELAY_ADMIN_TOKEN" in error["message"]


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}x"]
)
async def test_admin_refuses_a_wrong_token(listen, authorization):
    """401 with the scheme to use, and without the token."""
    client = await listen(Secret(TOKEN))
    headers = {} if authorization is None else {"Authorization": authorization}
    response = await client.post("/admin/events", headers=headers)
    assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert (await error_of(response))["code"] == "invalid_admin_token"
    assert TOKEN not in await response.text()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_admin_with_the_token_reaches_the_pages(listen, scheme):
    """The right token is let in; store/test_admin_api tells what is there."""
    client = await listen(Secret(TOKEN), AdminApi(None, Lent().services.log))
    response = await client.get("/admin/nothing", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert (response.status, (await error_of(response))["code"]) == (404, "not_found")


async def test_admin_before_the_store_is_open(listen):
    """503 for a moment, to those who have the token."""
    client = await listen(Secret(TOKEN))
    response = await client.get("/admin/keys", headers={"Authorization": f"Bearer {TOKEN}"})
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert (await error_of(response))["code"] == "starting"
    response = await client.get("/admin/keys")
    assert response.status == 401


async def test_a_supervisor_before_a_worker_serves(relay):
    """Which names the configuration has taken is not known yet, so nobody is given one of them."""
    desk = Desk(None, Secret(TOKEN), Lent().services.log)
    desk.open(SimpleNamespace(metrics=relay.metrics, readiness=relay.ready), SimpleNamespace(reload=None))
    async with TestClient(RawTestServer(desk.handle)) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        response = await client.post("/admin/keys", json={"name": "shop"}, headers=headers)
        assert (response.status, (await error_of(response))["code"]) == (503, "starting")
        desk.described(["shop"], {})
        response = await client.post("/admin/keys", json={"name": "shop"}, headers=headers)
        assert (response.status, (await error_of(response))["code"]) == (409, "no_store")


async def test_token_that_is_no_utf8(listen):
    """Bytes of any kind in the header are a wrong token, not a fault of ours."""
    client = await listen(Secret(TOKEN))
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"GET /admin/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer \xff\xfe\r\nConnection: close\r\n\r\n")
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    assert head.startswith(b"HTTP/1.1 401 ")
    assert orjson.loads(body)["error"]["code"] == "invalid_admin_token"


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/admin/", "/none"])
async def test_headers_of_every_answer(listen, path):
    """No answer is cached, guessed at, or names the versions of what serves it."""
    client = await listen()
    response = await client.get(path)
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Server"] == "relay"
