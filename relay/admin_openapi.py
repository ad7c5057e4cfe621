"""The admin API described for machines: an OpenAPI 3.1 document made of its routes and their types.

https://spec.openapis.org/oas/v3.1.0
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

import msgspec

from relay.admin_api import DEFAULT_PAGE, ROUTES, Action
from relay.admin_events import LAST_EVENT_ID, QUERY
from relay.admin_events import PATH as EVENTS
from relay.admin_reload import PATH as RELOAD
from relay.events import FIELDS, FILTERS, KEPT, KINDS, MAX_LISTENERS
from relay.keyring import MAX_PAGE

PATH: Final = "/admin/openapi.json"

_QUERY: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "limit": (
        "How many to show at most.",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    ),
    "after": ("`next` of the page before.", {"type": "string", "maxLength": 64}),
    "before": ("`next` of the page before.", {"type": "string", "pattern": "^[0-9]{1,15}-[0-9]{1,15}$"}),
    "unit": ("Of the balance; needed where balances are kept in several.", {"type": "string"}),
}

_REFUSALS: Final[Mapping[int, str]] = {
    400: "The body or the query is not as described here; the message says where.",
    401: "The token is missing or wrong.",
    403: "No token is configured, so nobody is let in.",
    404: "There is no such key, no account of that name, or no quota is kept.",
    408: "The body did not come in time.",
    409: "It does not fit what there is: the name is taken, the balance does not allow it, or there is no store.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    422: "There is an error in relay.toml, of which the message names the line. Nothing has changed.",
    500: "The relay's own fault; its log says more.",
    503: "The store does not answer, or takes nothing. The message says whether it may have been done nonetheless. "
    f"Of events: {MAX_LISTENERS} listen already.",
}

_ERROR: Final = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string", "description": "What is wrong and what to do, for people."},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "Where it is wrong."},
                "code": {"type": "string", "description": "What is wrong, for programs."},
            },
        }
    },
}


def document() -> dict[str, Any]:
    """The whole document."""
    types = {
        kind
        for actions in ROUTES.values()
        for action in actions.values()
        for kind in (action.body, action.reply)
        if kind is not None
    }
    ordered = sorted(types, key=lambda kind: kind.__name__)
    references, schemas = msgspec.json.schema_components(ordered, ref_template="#/components/schemas/{name}")
    refer = dict(zip(ordered, references, strict=True))
    for schema in schemas.values():
        schema["description"] = inspect.cleandoc(schema.get("description", ""))
    paths: dict[str, Any] = {}
    for template, actions in ROUTES.items():
        item: dict[str, Any] = {}
        if "{name}" in template:
            item["parameters"] = [{"$ref": "#/components/parameters/name"}]
        for method, action in actions.items():
            item[method.lower()] = _operation(action, refer)
        paths[template] = item
    paths[EVENTS] = {"get": _EVENTS}
    paths[RELOAD] = {"post": _RELOAD}
    paths[PATH] = {
        "get": {
            "operationId": "openapi",
            "summary": "This document",
            "responses": {
                "200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}},
                **_refusals((401, 403)),
            },
        }
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "moderelay, for operators",
            "version": "1",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            "description": "Keys, balances and the audit log, on the admin listener. A path takes HEAD where it takes GET.",
        },
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The token of `[admin]` in relay.toml."}
            },
            "parameters": {
                "name": {
                    "name": "name",
                    "in": "path",
                    "required": True,
                    "description": "Of a key, escaped as in every URL: `a%2Fb` is a/b.",
                    "schema": {"type": "string", "minLength": 1, "maxLength": 64},
                },
                **{
                    name: {"name": name, "in": "query", "description": text, "schema": schema}
                    for name, (text, schema) in _QUERY.items()
                },
            },
            "responses": {
                f"Refused{status}": {
                    "description": text,
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
                for status, text in _REFUSALS.items()
            },
            "schemas": {**schemas, "Error": _ERROR},
        },
    }


def rendered() -> bytes:
    """As it is served, and as it stands in docs/."""
    return (json.dumps(document(), indent=2, ensure_ascii=False) + "\n").encode()


def statuses(action: Action) -> tuple[int, ...]:
    """The refusals that an action can answer with."""
    asked = (400,) if action.body is not None or action.query else ()
    body = (408, 413, 415) if action.body is not None else ()
    return tuple(sorted({401, 403, 409, 500, 503, *asked, *body, *action.refusals}))


def _operation(action: Action, refer: Mapping[type[msgspec.Struct], dict[str, Any]]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": action.id, "summary": action.summary}
    if action.query:
        operation["parameters"] = [{"$ref": f"#/components/parameters/{name}"} for name in action.query]
    if action.body is not None:
        operation["requestBody"] = {
            "required": not action.optional,
            "content": {"application/json": {"schema": refer[action.body]}},
        }
    answered: dict[str, Any] = {"description": HTTPStatus(action.status).phrase}
    if action.reply is not None:
        answered["content"] = {"application/json": {"schema": refer[action.reply]}}
    operation["responses"] = {str(action.status): answered, **_refusals(statuses(action))}
    return operation


def _refusals(statuses: tuple[int, ...]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in statuses}


def _asked_of_events(name: str) -> dict[str, Any]:
    """One parameter of the query of events."""
    told = {
        "kind": ("Only these kinds.", {"type": "array", "items": {"enum": list(KINDS)}}),
        "last": (f"First so many of the last ones. Of each kind {KEPT} are kept.", {"type": "integer", "minimum": 0}),
        **{each: (f"Only events with this {each}. {FIELDS[each]}", {"type": "string"}) for each in FILTERS},
    }
    text, schema = told[name]
    joined = {"style": "form", "explode": False} if name == "kind" else {}
    return {"name": name, "in": "query", "description": text, **joined, "schema": schema}


_RELOAD: Final = {
    "operationId": "reload",
    "summary": "Read relay.toml again",
    "description": "Answered when what stands in it is served: requests begin by it, those under way end by what was served.",
    "responses": {
        "200": {
            "description": "It is served.",
            "content": {
                "application/json": {
                    "schema": {"type": "object", "required": ["state"], "properties": {"state": {"const": "done"}}}
                }
            },
        },
        **_refusals((400, 401, 403, 422, 503)),
    },
}

_RESUME: Final = {
    "name": LAST_EVENT_ID,
    "in": "header",
    "description": "The id of the last event that was heard: what has happened since comes first, as far as it is kept.",
    "schema": {"type": "string"},
}

_EVENTS: Final = {
    "operationId": "events",
    "summary": "What happens, as it happens",
    "description": "An event stream that ends when the relay does. Kinds: "
    + "; ".join(f"`{kind}`: {meaning.text} ({', '.join(meaning.fields)})" for kind, meaning in KINDS.items())
    + ".",
    "parameters": [*(_asked_of_events(name) for name in QUERY), _RESUME],
    "responses": {
        "200": {
            "description": "Events: `id`, `event` (the kind) and `data`, an object with `at` and the fields of the kind. "
            "A comment every twelve seconds.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        **_refusals((400, 401, 403, 503)),
    },
}
