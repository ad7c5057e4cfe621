"""Keys, balances and the audit log over HTTP: what stands under /admin/ on the second listener.

`ROUTES` is all of it: what a path takes, what it answers, which refusals it knows. The OpenAPI document is made of that
table (`relay.admin_openapi`), so it cannot say anything else. Who may ask has been decided before (`relay.admin`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, unquote

import msgspec
from aiohttp import hdrs, web
from msgspec import Meta

from relay.administration import Administration, EntryView, QuotaView, TopUpOrder, TopUpView, store_trouble
from relay.audit import AuditEntry
from relay.errors import InternalError, Reject, RelayError
from relay.keyring import MAX_OVERLAP_S, MAX_PAGE, Issued
from relay.keys import KeyChange, KeyView, NewKey
from relay.log import Logger
from relay.options import suggestion
from relay.request import read_body
from relay.store.port import StoreError

T = TypeVar("T", bound=msgspec.Struct)

# The longest body that says something: 128 models and 32 labels, with every character escaped.
MAX_BODY_BYTES: Final = 262_144
BODY_TIMEOUT_S: Final = 10.0
DEFAULT_OVERLAP_S: Final = 86_400
DEFAULT_PAGE: Final = 100


class Rotation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """overlap_s: for how long the secrets that there are still work; 0 ends them at once."""

    overlap_s: Annotated[int, Meta(ge=0, le=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S


class IssuedReply(msgspec.Struct, frozen=True, kw_only=True):
    """A key, and a secret of it that is shown this once and kept nowhere."""

    key: KeyView
    secret: str


class KeysReply(msgspec.Struct, frozen=True, kw_only=True):
    """Keys by name. next: what to give as `after` for the next page; null: there is none."""

    keys: tuple[KeyView, ...]
    next: str | None


class AuditReply(msgspec.Struct, frozen=True, kw_only=True):
    """Changes, the latest first. next: what to give as `before` for the next page; null: there is none."""

    entries: tuple[AuditEntry, ...]
    next: str | None


class EntriesReply(msgspec.Struct, frozen=True, kw_only=True):
    """Changes of a balance, the latest first. next: what to give as `before` for the next page; null: there is none."""

    unit: str
    entries: tuple[EntryView, ...]
    next: str | None


class Call(NamedTuple):
    """A request as its action sees it. query: only what the action takes."""

    name: str
    query: Mapping[str, str]
    body: Any
    who: str

    @property
    def limit(self) -> int:
        text = self.query.get("limit", str(DEFAULT_PAGE))
        if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII):
            raise Reject(f"limit is a number from 1 to {MAX_PAGE}.", code="invalid_limit", param="limit")
        return int(text)


class Action(NamedTuple):
    """What a method of a path does.

    body: what it takes, if anything; optional: or nothing. reply: what it answers with `status`; None: nothing.
    query: the names that its query may have. refusals: statuses of its own, beside those that every action has.
    """

    id: str
    summary: str
    run: Callable[[Administration, Call], Awaitable[msgspec.Struct | None]]
    reply: type[msgspec.Struct] | None
    status: int = 200
    body: type[msgspec.Struct] | None = None
    optional: bool = False
    query: tuple[str, ...] = ()
    refusals: tuple[int, ...] = ()


async def _create(relay: Administration, call: Call) -> IssuedReply:
    return _issued(await relay.create(call.body, call.who))


async def _list(relay: Administration, call: Call) -> KeysReply:
    page = await relay.keys(call.query.get("after", ""), call.limit)
    return KeysReply(keys=page.keys, next=page.next)


async def _show(relay: Administration, call: Call) -> KeyView:
    return await relay.key(call.name)


async def _change(relay: Administration, call: Call) -> KeyView:
    return await relay.change(call.name, call.body, call.who)


async def _delete(relay: Administration, call: Call) -> None:
    await relay.delete(call.name, call.who)


async def _rotate(relay: Administration, call: Call) -> IssuedReply:
    return _issued(await relay.rotate(call.name, call.body.overlap_s, call.who))


async def _audit(relay: Administration, call: Call) -> AuditReply:
    page = await relay.audit(call.query.get("before", ""), call.limit)
    return AuditReply(entries=page.entries, next=page.next)


async def _quota(relay: Administration, call: Call) -> QuotaView:
    return await relay.quota(call.name, call.query.get("unit"))


async def _entries(relay: Administration, call: Call) -> EntriesReply:
    page = await relay.entries(call.name, call.query.get("unit"), call.query.get("before", ""), call.limit)
    return EntriesReply(unit=page.unit, entries=page.entries, next=page.next)


async def _top_up(relay: Administration, call: Call) -> TopUpView:
    return await relay.top_up(call.name, call.body, call.who, call.query.get("unit"))


def _issued(issued: Issued) -> IssuedReply:
    return IssuedReply(key=issued.key, secret=issued.secret.reveal())


ROUTES: Final[Mapping[str, Mapping[str, Action]]] = {
    "/admin/keys": {
        "GET": Action("listKeys", "The keys of the store", _list, KeysReply, query=("after", "limit")),
        "POST": Action("createKey", "Make a key", _create, IssuedReply, status=201, body=NewKey),
    },
    "/admin/keys/{name}": {
        "GET": Action("showKey", "One key", _show, KeyView, refusals=(404,)),
        "PATCH": Action("changeKey", "Change a key", _change, KeyView, body=KeyChange, refusals=(404,)),
        "DELETE": Action("deleteKey", "Delete a key, with all of its secrets", _delete, None, 204, refusals=(404,)),
    },
    "/admin/keys/{name}/rotate": {
        "POST": Action(
            "rotateKey", "Give a key a new secret", _rotate, IssuedReply, body=Rotation, optional=True, refusals=(404,)
        ),
    },
    "/admin/audit": {
        "GET": Action("audit", "Who changed what, and when", _audit, AuditReply, query=("before", "limit")),
    },
    "/admin/quota/{name}": {
        "GET": Action("showQuota", "How an account stands", _quota, QuotaView, query=("unit",), refusals=(404,)),
    },
    "/admin/quota/{name}/entries": {
        "GET": Action(
            "listEntries",
            "What changed a balance",
            _entries,
            EntriesReply,
            query=("unit", "before", "limit"),
            refusals=(404,),
        ),
    },
    "/admin/quota/{name}/top-up": {
        "POST": Action(
            "topUp", "Add to a balance, once", _top_up, TopUpView, body=TopUpOrder, query=("unit",), refusals=(404,)
        ),
    },
}

_PATTERNS: Final = {template: re.compile(template.replace("{name}", "([^/]+)")) for template in ROUTES}
_TYPES: Final = ("application/json", "application/merge-patch+json")


class AdminApi:
    """Answers requests that may be asked. administration: None where there is no store."""

    def __init__(self, administration: Administration | None, log: Logger) -> None:
        self._administration = administration
        self._log = log

    async def handle(self, request: web.BaseRequest) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers of the answer. Raises RelayError for every refusal."""
        try:
            return await self._answer(request)
        except StoreError as error:
            self._log.warning("the store failed an operator", trouble=error.trouble, detail=error.detail)
            raise store_trouble(error) from None
        except RelayError:
            raise
        except Exception as error:
            self._log.exception("admin request failed")
            raise InternalError from error

    async def _answer(self, request: web.BaseRequest) -> tuple[int, bytes, dict[str, str]]:
        template, name = _found(request.rel_url.raw_path)
        actions = ROUTES[template]
        method = "GET" if request.method == hdrs.METH_HEAD else request.method
        action = actions.get(method)
        if action is None:
            allowed = ", ".join([*actions, *(["HEAD"] if "GET" in actions else [])])
            raise Reject(
                f"{template} answers {allowed} only.",
                code="method_not_allowed",
                status=405,
                headers={hdrs.ALLOW: allowed},
            )
        query = query_of(request, action.query)
        body = await _body(request, action)
        if self._administration is None:
            raise Reject(
                'There is no store, so there are no keys and no balances in it: store.url is "memory:". '
                'Write "embedded:" for a store on this machine, or the redis:// of one that several share.',
                code="no_store",
                status=409,
            )
        call = Call(name, query, body, f"admin:{request.remote or 'unknown'}")
        reply = await action.run(self._administration, call)
        headers: dict[str, str] = {}
        if isinstance(reply, IssuedReply) and action.status == 201:
            headers[hdrs.LOCATION] = f"{template}/{quote(reply.key.name, safe='')}"
        return action.status, b"" if reply is None else msgspec.json.encode(reply), headers


def _found(raw_path: str) -> tuple[str, str]:
    """The route of a path and the name in it, or "". Raises Reject."""
    for template, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(raw_path):
            return template, unquote(found[1]) if found.groups() else ""
    raise Reject("There is nothing here; /admin/openapi.json says what there is.", code="not_found", status=404)


def query_of(request: web.BaseRequest, known: tuple[str, ...]) -> dict[str, str]:
    """The query, of which each name is known and given once. Raises Reject."""
    query = request.rel_url.query
    for name in query:
        if name not in known:
            # What is overlooked here might have been the unit of a top-up.
            raise Reject(f"Unknown query parameter {name[:64]!r}; {suggestion(name[:64], known)}", code="invalid_query")
        if len(query.getall(name)) > 1:
            raise Reject(f"Give {name} once.", code="invalid_query", param=name)
    return dict(query)


async def _body(request: web.BaseRequest, action: Action) -> msgspec.Struct | None:
    """What was sent, as the type that the action takes. Raises Reject."""
    if action.body is None:
        return None
    raw = await read_body(request, max_bytes=MAX_BODY_BYTES, timeout_s=BODY_TIMEOUT_S)
    if not raw and action.optional:
        return action.body()
    given = request.headers.get(hdrs.CONTENT_TYPE, "").partition(";")[0].strip().lower()
    if given not in _TYPES:
        raise Reject(f"Send JSON, as {hdrs.CONTENT_TYPE}: {_TYPES[0]}.", code="unsupported_media_type", status=415)
    return read(raw, action.body)


def read(raw: bytes, what: type[T]) -> T:
    """JSON as a `what`. Raises Reject, with the place of what is wrong."""
    try:
        return msgspec.json.decode(raw, type=what)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `")
        param = place.removesuffix("`").removeprefix("$").removeprefix(".")
        where = f" (at {param})" if param else ""
        raise Reject(f"{message}{where}.", code="invalid_request", param=param or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Reject("The body is not JSON in UTF-8.", code="invalid_json") from None
