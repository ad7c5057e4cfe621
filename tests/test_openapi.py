"""The relay's own OpenAPI document is one, and describes what the relay serves. What it says is tried by e2e/test_fuzz."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import schemathesis

from relay.assembly import registries
from relay.cors import EXPOSED
from relay.errors import Reject
from relay.pure.request import InvalidRequest
from relay.routes import CHAT, ROUTES
from relay.testing.reply import exchange
from relay_plugins.parameters import Parameters

PATH = Path(__file__).parents[1] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8"))

METHODS = frozenset("get put post delete options head patch trace".split())


def test_it_is_valid() -> None:
    """By the schema of OpenAPI 3.1, and every reference in it leads somewhere."""
    assert "3.1.0" == DOCUMENT["openapi"]
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', PATH.read_text(encoding="utf-8")):
        found = DOCUMENT
        for part in reference.split("/"):
            found = found[part]


def test_nothing_in_it_is_unused() -> None:
    """Every component is referred to."""
    text = PATH.read_text(encoding="utf-8")
    for kind in ("headers", "responses", "schemas"):
        for name in DOCUMENT["components"][kind]:
            assert f'"#/components/{kind}/{name}"' in text


def test_it_names_what_is_served() -> None:
    """The core's paths and those of every registered plugin, each with the methods that it takes, and no others."""
    plugins = registries().plugins
    dialects = (path for entry in plugins.names() for path in plugins.find(entry.name).routes)
    served = {**ROUTES, **dict.fromkeys(dialects, CHAT)}
    beside = {"GET": {"get", "head", "options"}, "POST": {"post", "options"}}
    assert {path: beside[route.method] for path, route in served.items()} == {
        path: METHODS.intersection(operations) for path, operations in DOCUMENT["paths"].items()
    }


def test_it_names_the_headers() -> None:
    """Every header that a page of another origin may read is described."""
    described = {name for reply in DOCUMENT["components"]["responses"].values() for name in reply["headers"]}
    assert set(EXPOSED.split(", ")) <= described


PARAMETERS = DOCUMENT["components"]["schemas"]["Parameters"]["properties"]
RANGED = [name for name, schema in PARAMETERS.items() if "minimum" in schema]


@pytest.mark.parametrize("name", RANGED)
async def test_it_names_the_ranges(name: str) -> None:
    """The lowest and the highest value of each parameter is taken, what lies beyond is refused."""
    low, high = PARAMETERS[name]["minimum"], PARAMETERS[name]["maximum"]
    for value in (low, high):
        assert await Parameters().on_request(exchange(**{name: value})) is None
    for value in (low - 1, high + 1):
        with pytest.raises((Reject, InvalidRequest)) as caught:
            await Parameters().on_request(exchange(**{name: value}))
        assert f"invalid_{name}" == caught.value.code


async def test_it_names_the_longest_user() -> None:
    """As the ranges of numbers."""
    longest = "你" * PARAMETERS["user"]["maxLength"]
    assert await Parameters().on_request(exchange(user=longest)) is None
    with pytest.raises(Reject, match="user"):
        await Parameters().on_request(exchange(user=longest + "你"))
