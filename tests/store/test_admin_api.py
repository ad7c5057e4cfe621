"""The admin API over a real socket and a real store, and the document that describes it: every route, every status."""

import asyncio
import json
import re
from pathlib import Path
from urllib.parse import quote

import jsonschema_rs
import pytest
import schemathesis
from aiohttp.test_utils import RawTestServer, TestClient

from relay import admin_api
from relay.admin import Admin, Readiness
from relay.admin_api import MAX_BODY_BYTES, ROUTES, AdminApi
from relay.admin_events import PATH as EVENTS
from relay.admin_openapi import PATH, document, rendered
from relay.admin_reload import PATH as RELOAD
from relay.administration import Administration
from relay.keyring import digest, is_issued
from relay.ledger import AMOUNT_MAX, Ledger
from relay.options import ConfigError
from relay.secret import Secret
from relay.store.port import StoreError
from relay.testing.reply import Lent

DOCUMENT = json.loads(rendered())
AUTH = {"Authorization": "Bearer t0ken"}
GRANT = 10_000


class Api:
    """The second listener, a client of it, and what was logged."""

    def __init__(self, administration, token="t0ken", reload=None):
        self.lent = Lent()
        api = AdminApi(administration, self.lent.services.log)
        admin = Admin(self.lent.metrics, lambda: Readiness(True), None if token is None else Secret(token), api)
        if reload is not None:
            admin.reloads(reload)
        self.client = TestClient(RawTestServer(admin.handle))

    async def __aenter__(self):
        await self.client.start_server()
        return self

    async def __aexit__(self, *_):
        await self.client.close()

    async def ask(self, method, path, body=None, *, headers=AUTH, **options):
        """Status and what was answered, from JSON."""
        response = await self.client.request(method, path, json=body, headers=headers, **options)
        text = await response.text()
        self.headers = response.headers
        assert "no-store" == response.headers["Cache-Control"]
        if not text:
            return response.status, None
        assert "application/json" == response.content_type
        return response.status, json.loads(text)

    async def refused(self, method, path, body=None, **options):
        """Status and code of a refusal, after a look at its shape."""
        status, answer = await self.ask(method, path, body, **options)
        assert {"message", "type", "param", "code"} == set(answer["error"])
        assert len(answer["error"]["message"]) < 400
        self.message = answer["error"]["message"]
        return status, answer["error"]["code"]


@pytest.fixture
def administration(store):
    return Administration(store, configured={"configured"}, grants={"characters": GRANT})


@pytest.fixture
async def api(administration):
    async with Api(administration) as api:
        yield api


# Keys


async def test_the_life_of_a_key(api, store):
    """Made, shown, changed, rotated, deleted; the secret is in two answers and nowhere else."""
    status, made = await api.ask("POST", "/admin/keys", {"name": "ann", "models": ["gpt-4"], "labels": {"a": "b"}})
    assert (201, "/admin/keys/ann") == (status, api.headers["Location"])
    assert is_issued(made["secret"])
    assert ("ann", "active", ["gpt-4"], {"a": "b"}) == tuple(
        made["key"][field] for field in ("name", "state", "models", "labels")
    )
    assert (200, made["key"]) == await api.ask("GET", "/admin/keys/ann")
    status, changed = await api.ask("PATCH", "/admin/keys/ann", {"disabled": True, "labels": {"a": None, "c": "d"}})
    assert (200, "disabled", {"c": "d"}) == (status, changed["state"], changed["labels"])
    status, rotated = await api.ask("POST", "/admin/keys/ann/rotate", {"overlap_s": 60})
    assert (200, 2) == (status, len(rotated["key"]["secrets"]))
    assert is_issued(rotated["secret"])
    _, listed = await api.ask("GET", "/admin/keys")
    assert {"keys": [rotated["key"]], "next": None} == listed
    assert (204, None) == await api.ask("DELETE", "/admin/keys/ann")
    assert (404, "key_not_found") == await api.refused("GET", "/admin/keys/ann")
    _, audit = await api.ask("GET", "/admin/audit")
    assert ["key.delete", "key.rotate", "key.change", "key.create"] == [entry["what"] for entry in audit["entries"]]
    assert {"admin:127.0.0.1"} == {entry["who"] for entry in audit["entries"]}
    for secret in (made["secret"], rotated["secret"]):
        assert secret[8:-4] not in json.dumps([audit, listed, changed])


async def test_rotation_without_a_body(api):
    """The old secret works for a day."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    status, rotated = await api.ask("POST", "/admin/keys/ann/rotate")
    assert (200, [None, True]) == (status, [secret["ends_at"] and True for secret in rotated["key"]["secrets"]])


@pytest.mark.parametrize("name", ["a/b", "a b", "钥匙", "50%", "a?b", "a#b", "a:b", "..a", "'\"<>&", "{name}", "+"])
async def test_names_in_paths(api, name):
    """Any name that a key may have, escaped as in every URL."""
    await api.ask("POST", "/admin/keys", {"name": name})
    path = f"/admin/keys/{quote(name, safe='')}"
    assert path == api.headers["Location"]
    status, shown = await api.ask("GET", path)
    assert (200, name) == (status, shown["name"])
    assert 200 == (await api.ask("POST", path + "/rotate", {"overlap_s": 0}))[0]
    assert 204 == (await api.ask("DELETE", path))[0]


async def test_pages(api):
    """Each key once, by name; a page says where the next one begins."""
    names = [f"k{number:02}" for number in range(7)]
    for name in names:
        await api.ask("POST", "/admin/keys", {"name": name})
    seen, after = [], ""
    while after is not None:
        _, page = await api.ask("GET", f"/admin/keys?limit=3&after={after}")
        seen.append([key["name"] for key in page["keys"]])
        after = page["next"]
    assert [names[:3], names[3:6], names[6:]] == seen
    assert {"keys": [], "next": None} == (await api.ask("GET", "/admin/keys?after=zzz"))[1]


NEW = {"name": "ann"}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/admin/keys", {}, 400, "invalid_request"),
        ("POST", "/admin/keys", [], 400, "invalid_request"),
        ("POST", "/admin/keys", {"name": 5}, 400, "invalid_request"),
        ("POST", "/admin/keys", {"name": "a\u0007"}, 400, "invalid_request"),
        ("POST", "/admin/keys", {"name": "x" * 65}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "lables": {}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "models": []}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "limits": {"burst": 0}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "limits": {"burst": 2**53}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "limits": {"brust": 1}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "labels": {"a": ""}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "labels": {str(number): "x" for number in range(33)}}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "expires_at": "2031-01-01T00:00:00"}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "expires_at": "tomorrow"}, 400, "invalid_request"),
        ("POST", "/admin/keys", {**NEW, "expires_at": "2020-01-01T00:00:00Z"}, 400, "invalid_expires_at"),
        ("POST", "/admin/keys", {**NEW, "expires_at": "9999-12-31T23:59:59-12:00"}, 400, "invalid_expires_at"),
        ("POST", "/admin/keys", {**NEW, "expires_at": "0001-01-01T00:00:00+14:00"}, 400, "invalid_expires_at"),
        ("POST", "/admin/keys", {"name": "configured"}, 409, "key_exists"),
        ("POST", "/admin/keys", {"name": "taken"}, 409, "key_exists"),
        ("PATCH", "/admin/keys/taken", {"name": "other"}, 400, "invalid_request"),
        ("PATCH", "/admin/keys/taken", {"disabled": None}, 400, "invalid_request"),
        ("PATCH", "/admin/keys/configured", {"disabled": True}, 409, "key_is_configured"),
        ("PATCH", "/admin/keys/takne", {"disabled": True}, 404, "key_not_found"),
        ("DELETE", "/admin/keys/takne", None, 404, "key_not_found"),
        ("POST", "/admin/keys/taken/rotate", {"overlap_s": -1}, 400, "invalid_request"),
        ("POST", "/admin/keys/taken/rotate", {"overlap_s": 1.5}, 400, "invalid_request"),
        ("GET", "/admin/keys?limit=0", None, 400, "invalid_limit"),
        ("GET", "/admin/keys?limit=501", None, 400, "invalid_limit"),
        ("GET", "/admin/keys?limit=x", None, 400, "invalid_limit"),
        ("GET", "/admin/keys?limit=1&limit=2", None, 400, "invalid_query"),
        ("GET", "/admin/keys?before=1-1", None, 400, "invalid_query"),
        ("GET", "/admin/audit?before=x", None, 400, "invalid_before"),
        ("GET", "/admin/audit?before=0-0", None, 400, "invalid_before"),
        ("GET", "/admin/quota/nobody", None, 404, "key_not_found"),
        ("GET", "/admin/quota/taken?unit=points", None, 400, "invalid_unit"),
        ("GET", "/admin/quota/taken/entries?before=x", None, 400, "invalid_before"),
        ("GET", "/admin/quota/taken/entries?before=0-0", None, 400, "invalid_before"),
        ("GET", "/admin/quota/taken/entries?before=18446744073709551616-0", None, 400, "invalid_before"),
        ("GET", "/admin/quota/taken/entries?before=%D9%A3-1", None, 400, "invalid_before"),
        ("GET", "/admin/quota/%00", None, 404, "key_not_found"),
        ("GET", "/admin/quota/%20/entries", None, 404, "key_not_found"),
        ("POST", "/admin/quota/%0A/top-up", {"amount": 1, "idempotency_key": "k"}, 404, "key_not_found"),
        ("POST", "/admin/quota/taken/top-up", {"amount": 0, "idempotency_key": "k"}, 400, "invalid_request"),
        ("POST", "/admin/quota/taken/top-up", {"amount": 1}, 400, "invalid_request"),
        ("POST", "/admin/quota/taken/top-up", {"amount": "1", "idempotency_key": "k"}, 400, "invalid_request"),
        ("POST", "/admin/quota/taken/top-up", {"amount": 2**53, "idempotency_key": "k"}, 400, "invalid_request"),
        ("POST", "/admin/quota/nobody/top-up", {"amount": 1, "idempotency_key": "k"}, 404, "key_not_found"),
        ("GET", "/admin", None, 404, "not_found"),
        ("GET", "/admin/", None, 404, "not_found"),
        ("GET", "/admin/keys/", None, 404, "not_found"),
        ("GET", "/admin/keys/a/b", None, 404, "not_found"),
        ("GET", "/admin/keys/%00", None, 404, "key_not_found"),
        ("GET", "/admin/keys/%ff", None, 404, "key_not_found"),
        ("GET", "/admin/keys/" + "x" * 4000, None, 404, "key_not_found"),
        ("POST", "/admin/openapi.json", {}, 405, "method_not_allowed"),
    ],
)
async def test_what_is_refused(api, method, path, body, status, code):
    """Each with its status and code; the key that there is stands as it stood."""
    await api.ask("POST", "/admin/keys", {"name": "taken"})
    before = await api.ask("GET", "/admin/keys")
    assert (status, code) == await api.refused(method, path, body)
    assert before == await api.ask("GET", "/admin/keys")
    assert 1 == len((await api.ask("GET", "/admin/audit"))[1]["entries"])


async def test_what_is_wrong_is_said_with_its_place(api):
    """Where in the body, and which name was probably meant."""
    await api.refused("POST", "/admin/keys", {"name": "ann", "limits": {"burst": "5"}})
    assert "Expected `int | null`, got `str` (at limits.burst)." == api.message
    await api.ask("POST", "/admin/keys", {"name": "shop"})
    await api.refused("GET", "/admin/keys/shpo")
    assert "There is no key named 'shpo' in the store; did you mean 'shop'?" == api.message
    await api.refused("POST", "/admin/quota/shop/top-up?untit=points", {"amount": 1, "idempotency_key": "k"})
    assert "Unknown query parameter 'untit'; did you mean 'unit'?" == api.message


@pytest.mark.parametrize("body", [b"", b"{", b'{"name": "\xff"}', b'{"name": "ann"} and more'])
async def test_bodies_that_are_no_json(api, body):
    """400."""
    headers = {**AUTH, "Content-Type": "application/json"}
    assert (400, "invalid_json") == await api.refused("POST", "/admin/keys", data=body, headers=headers)


@pytest.mark.parametrize(
    "given", ["application/json", "application/merge-patch+json", "Application/JSON; charset=utf-8"]
)
async def test_types_of_bodies(api, given):
    """JSON by each of its names."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    headers = {**AUTH, "Content-Type": given}
    status, _ = await api.ask("PATCH", "/admin/keys/ann", data=b'{"disabled":true}', headers=headers)
    assert 200 == status


# Balances


async def test_a_top_up_takes_effect_once(api):
    """However often it is said with one key; another amount with that key is refused."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    _, before = await api.ask("GET", "/admin/quota/ann")
    assert (GRANT, True) == (before["balance"], before["fresh"])
    order = {"amount": 500, "idempotency_key": "invoice 7", "note": "paid"}
    answers = [await api.ask("POST", "/admin/quota/ann/top-up?unit=characters", order) for _ in range(3)]
    assert [(200, False), (200, True), (200, True)] == [(status, answer["repeated"]) for status, answer in answers]
    assert {GRANT + 500} == {answer["balance"] for _, answer in answers}
    assert (409, "idempotency_key_reused") == await api.refused(
        "POST", "/admin/quota/ann/top-up", {**order, "amount": 501}
    )
    status, stands = await api.ask("GET", "/admin/quota/ann")
    assert (200, GRANT + 500, GRANT + 500, 0, 0, GRANT, False) == (
        status,
        *(stands[field] for field in ("balance", "available", "reserved", "used", "granted", "fresh")),
    )
    _, entries = await api.ask("GET", "/admin/quota/ann/entries")
    assert [(500, "invoice 7"), (GRANT, "")] == [
        (entry["amount"], entry["reference"] if entry["kind"] == "topup" else "") for entry in entries["entries"]
    ]
    _, audit = await api.ask("GET", "/admin/audit?limit=1")
    assert {"unit": "characters", **order, "amount": 501} == audit["entries"][0]["details"]


async def test_a_balance_is_reduced(api):
    """As far as it goes."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    path = "/admin/quota/ann/top-up"
    assert 200 == (await api.ask("POST", path, {"amount": -GRANT, "idempotency_key": "1"}))[0]
    assert (409, "balance_out_of_range") == await api.refused("POST", path, {"amount": -1, "idempotency_key": "2"})
    assert 200 == (await api.ask("POST", path, {"amount": AMOUNT_MAX, "idempotency_key": "3"}))[0]
    assert (409, "balance_out_of_range") == await api.refused("POST", path, {"amount": 1, "idempotency_key": "4"})


async def test_configured_keys_have_accounts(api):
    """They may be topped up; only what is said in the configuration is changed there."""
    order = {"amount": 5, "idempotency_key": "k"}
    assert 200 == (await api.ask("POST", "/admin/quota/configured/top-up", order))[0]
    assert GRANT + 5 == (await api.ask("GET", "/admin/quota/configured"))[1]["balance"]


async def test_the_account_of_a_deleted_key(api):
    """It can still be looked at, and is not topped up."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    order = {"amount": 5, "idempotency_key": "k"}
    await api.ask("POST", "/admin/quota/ann/top-up", order)
    await api.ask("DELETE", "/admin/keys/ann")
    assert GRANT + 5 == (await api.ask("GET", "/admin/quota/ann"))[1]["balance"]
    assert 2 == len((await api.ask("GET", "/admin/quota/ann/entries"))[1]["entries"])
    assert (404, "key_not_found") == await api.refused("POST", "/admin/quota/ann/top-up", order)


async def test_entries_go_page_by_page(api):
    """The latest first, each once."""
    await api.ask("POST", "/admin/keys", {"name": "ann"})
    for number in range(5):
        await api.ask("POST", "/admin/quota/ann/top-up", {"amount": 1, "idempotency_key": str(number)})
    seen, more = [], ""
    while more is not None:
        _, page = await api.ask("GET", f"/admin/quota/ann/entries?limit=2{more}")
        seen += [entry["balance"] for entry in page["entries"]]
        more = page["next"] and f"&before={page['next']}"
    assert [GRANT + 5 - number for number in range(6)] == seen


async def test_several_units(store):
    """Which one has to be said then; without the plugin there is none."""
    async with Api(Administration(store, {"ann"}, {"characters": 1, "points": 2})) as api:
        assert (400, "invalid_unit") == await api.refused("GET", "/admin/quota/ann")
        assert 2 == (await api.ask("GET", "/admin/quota/ann?unit=points"))[1]["balance"]
    async with Api(Administration(store, {"ann"})) as api:
        assert (404, "no_quota") == await api.refused("GET", "/admin/quota/ann")


def test_what_plugins_say(store):
    """Units and names come from the plugins that have such, whoever's they are."""

    class Meter:
        unit, grant = "points", 7

    class Names:
        key_names = ("a", "b")

    administration = Administration.of(store, [object(), Meter(), Names()])
    assert (("points",), {"a", "b"}) == (administration.units, administration._configured)
    assert isinstance(administration._ledgers["points"], Ledger)


# The store


class Broken:
    """A store that cannot do what it is asked."""

    def __init__(self, error):
        self._error = error

    def key(self, tag, *parts):
        return ":".join((tag, *parts))

    async def run(self, script, keys, args=()):
        raise self._error


@pytest.mark.parametrize("trouble", ["away", "slow", "breaker", "full", "readonly", "error"])
@pytest.mark.parametrize("acted", [True, False])
async def test_store_in_trouble(trouble, acted):
    """503, with what is wrong and whether it may have been done; the server's words go to the log alone."""
    error = StoreError(trouble, acted=acted, detail="ERR canary")
    async with Api(Administration(Broken(error), (), {"points": 0})) as api:
        assert (503, "store_unavailable") == await api.refused("POST", "/admin/keys", {"name": "ann"})
        assert ("1", acted) == (api.headers["Retry-After"], "may have been done" in api.message)
        assert "canary" not in api.message
        [line] = api.lent.lines
        assert ("warning", trouble, "ERR canary") == (line["level"], line["trouble"], line["detail"])


async def test_our_own_fault():
    """500 without a word about it; the log has all."""
    async with Api(Administration(Broken(RuntimeError("canary")))) as api:
        assert (500, "internal_error") == await api.refused("GET", "/admin/keys")
        assert "canary" not in api.message
        [line] = api.lent.lines
        assert "error" == line["level"]


# The document


def test_the_document_is_the_one_in_docs():
    """`python -c "from relay.admin_openapi import rendered; print(rendered().decode(), end='')"` makes it anew."""
    assert rendered() == (Path(__file__).parents[2] / "docs" / "admin-openapi.json").read_bytes()


def test_the_document_is_valid():
    """By the schema of OpenAPI 3.1; every reference leads somewhere, and every component is referred to."""
    schemathesis.openapi.from_dict(document()).validate()
    text = rendered().decode()
    referred = set(re.findall(r'"#/components/(\w+/\w+)"', text))
    assert referred == {
        f"{kind}/{name}" for kind in ("parameters", "responses", "schemas") for name in DOCUMENT["components"][kind]
    }


async def test_the_document_is_served(api):
    """To whoever has the token, also where there is no store."""
    assert (200, DOCUMENT) == await api.ask("GET", PATH)
    async with Api(None) as bare:
        assert (200, DOCUMENT) == await bare.ask("GET", PATH)


def test_the_document_names_what_is_served():
    """No route more, no route less."""
    assert {*ROUTES, EVENTS, RELOAD, PATH} == set(DOCUMENT["paths"])


BODIES = {
    "createKey": {"name": "new"},
    "changeKey": {"disabled": True},
    "rotateKey": {"overlap_s": 5},
    "topUp": {"amount": 5, "idempotency_key": "k"},
}
OPERATIONS = [
    pytest.param(template, method, int(status), id=f"{method} {template} {status}")
    for template, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
    and template != EVENTS  # which has no end: core/test_admin_events asks for each of its own
    for status in operation["responses"]
]


def schema_of(operation, status):
    """What the document says of an answer; None: it has no body."""
    answer = operation["responses"][str(status)]
    if "$ref" in answer:
        answer = DOCUMENT["components"]["responses"][answer["$ref"].rpartition("/")[2]]
    if "content" not in answer:
        return None
    return {**answer["content"]["application/json"]["schema"], "components": DOCUMENT["components"]}


@pytest.mark.parametrize(("template", "method", "status"), OPERATIONS)
async def test_every_status_is_real(administration, monkeypatch, template, method, status):
    """Each that the document names can be had, and looks as it says."""
    operation = DOCUMENT["paths"][template][method]
    if status == 408:
        monkeypatch.setattr(admin_api, "BODY_TIMEOUT_S", 0.01)
    served = {
        409: None,
        500: Administration(Broken(RuntimeError()), (), {"characters": 0}),
        503: Administration(Broken(StoreError("away", acted=False)), (), {"characters": 0}),
    }.get(status, administration)
    body = BODIES.get(operation["operationId"])
    options = {"headers": {} if status == 401 else AUTH}
    path = template.replace("{name}", "nobody" if status == 404 else "ann")
    if status == 400:
        path += "?nonsense=1"
    if status == 413:
        body = {"name": "x" * MAX_BODY_BYTES}
    if status == 415:
        body, options["data"] = None, b"{}"
    if status == 408:
        body, options["data"] = None, unending()
    async with Api(administration) as api:
        await api.ask("POST", "/admin/keys", {"name": "ann"})

    async def reload():
        if status == 422:
            raise ConfigError("relay.toml:3: plugins[0]: no")

    reloads = reload if status in (200, 422) else None
    async with Api(served, None if status == 403 else "t0ken", reloads) as api:
        answered, answer = await api.ask(method.upper(), path, body, **options)
    assert status == answered
    schema = schema_of(operation, status)
    if schema is None:
        assert answer is None
    else:
        jsonschema_rs.validator_for(schema, validate_formats=True).validate(answer)


async def unending():
    yield b"{"
    await asyncio.sleep(1)


@pytest.mark.parametrize("template", ROUTES)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_methods(api, template, method):
    """Those that the document has not are refused, with those that it has."""
    if method in ROUTES[template]:
        return
    assert (405, "method_not_allowed") == await api.refused(method, template.replace("{name}", "ann"))
    assert {*ROUTES[template]} == {*api.headers["Allow"].split(", ")} - {"HEAD"}
    assert ("HEAD" in api.headers["Allow"]) is ("GET" in ROUTES[template])


async def test_head_is_get_without_the_body(api):
    """Status and length."""
    response = await api.client.head("/admin/keys", headers=AUTH)
    assert (200, b"") == (response.status, await response.read())
    assert int(response.headers["Content-Length"]) > 0


async def test_no_answer_shows_a_digest(api, store):
    """What is kept of a secret is nobody's business either."""
    _, made = await api.ask("POST", "/admin/keys", {"name": "ann"})
    told = json.dumps([await api.ask("GET", path) for path in ("/admin/keys", "/admin/keys/ann", "/admin/audit")])
    assert digest(made["secret"]).hex() not in told
