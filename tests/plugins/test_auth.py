"""Who is let in, and what those are told who are not: the bodies of the public page this project serves, to the letter."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from relay.errors import Reject, RelayError, Unavailable
from relay.exchange import CALLER, Exchange
from relay.keyring import digest
from relay.keys import API_KEY, ApiKey, Limits
from relay.known import TRUSTED_S
from relay.plugin import Services
from relay.secret import Secret
from relay.store.port import Arg, Script, StoreError
from relay.testing.clock import JumpingLoop
from relay.testing.reply import Lent
from relay.testing.reply import exchange as chat
from relay_plugins.auth import Auth, ConfiguredKey, masked

HELP = "https://vip.gptchatclub.com/api"
KEY = "sk-1afspQWERTYUIOPasdfghjklk5R1"

# As printed there.
MISSING = """
{ "error": { "message": "You didn't provide an API key. You need to provide your API key in an Authorization header \
using Bearer auth (i.e. Authorization: Bearer YOUR_KEY), or as the password field (with blank username) if you're \
accessing the API from your browser and are prompted for a username and password. You can obtain an API key from \
https://vip.gptchatclub.com/api.", "type": "talk_api_error", "param": null, "code": "invalid_api_key" } }
"""
WRONG = """
{ "error": { "message": "Incorrect API key provided: sk-1afsp*****************************************k5R2. You can find \
your API key at https://vip.gptchatclub.com/api.", "type": "invalid_request_error", "param": null, \
"code": "invalid_api_key" } }
"""


def auth(*keys: tuple[str, str]) -> Auth:
    named = keys or (("ann", KEY), ("bob", "ключ-你好"))
    return Auth(keys=tuple(ConfiguredKey(name=name, key=Secret(key)) for name, key in named), help_url=HELP)


def exchange(*headers: str) -> Exchange:
    given = CIMultiDict(("Authorization", header) for header in headers)
    return Exchange("req-1", "chat", headers=CIMultiDictProxy(given))


async def refusal(*headers: str) -> Reject:
    ex = exchange(*headers)
    with pytest.raises(Reject) as caught:
        await auth().on_request(ex)
    assert CALLER not in ex
    return caught.value


@pytest.mark.parametrize(
    ("header", "caller"),
    [
        pytest.param(f"Bearer {KEY}", "ann", id="Bearer"),
        pytest.param(f"bearer {KEY}", "ann", id="bearer"),
        pytest.param(f"BEARER   {KEY} ", "ann", id="more spaces"),
        pytest.param("Bearer ключ-你好", "bob", id="a key in UTF-8"),
    ],
)
async def test_a_known_key(header: str, caller: str) -> None:
    """The request goes on under the name of its key."""
    ex = exchange(header)
    assert await auth().on_request(ex) is None
    assert caller == ex[CALLER]


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([], id="none"),
        pytest.param([""], id="empty"),
        pytest.param(["Bearer"], id="no key"),
        pytest.param(["Bearer  "], id="an empty key"),
        pytest.param([KEY], id="no scheme"),
        pytest.param([f"Basic {KEY}"], id="another scheme"),
        pytest.param([f"Bearer\t{KEY}"], id="a tab"),
        pytest.param([f"Bearer\u3000{KEY}"], id="a wide space"),
        pytest.param([f"ＢＥＡＲＥＲ {KEY}"], id="wide letters"),
    ],
)
async def test_no_key(headers: list[str]) -> None:
    """Without a key the answer is the page's first body, and 401."""
    error = await refusal(*headers)
    assert json.loads(MISSING) == json.loads(error.body)
    assert 401 == error.status


async def test_a_wrong_key() -> None:
    """A wrong key is the page's second body, and 401: eight characters of it, 41 stars, four characters."""
    error = await refusal(f"Bearer {KEY[:-1]}2")
    assert json.loads(WRONG) == json.loads(error.body)
    assert 401 == error.status


@pytest.mark.parametrize("key", [KEY[:-1], KEY + "1", KEY.lower(), f"{KEY} {KEY}", f'"{KEY}"', f"ann:{KEY}"])
async def test_almost_the_key(key: str) -> None:
    """Only the whole key, letter for letter, is the key."""
    assert 401 == (await refusal(f"Bearer {key}")).status


@pytest.mark.parametrize(
    ("key", "shown"),
    [
        pytest.param("", "", id="empty"),
        pytest.param("k", "*", id="one"),
        pytest.param("k" * 19, "*" * 19, id="short"),
        pytest.param("sk-45678abcdefgh7890", "sk-45678" + "*" * 41 + "7890", id="just long enough"),
        pytest.param("sk-45678" + "x" * 100_000 + "7890", "sk-45678" + "*" * 41 + "7890", id="very long"),
        pytest.param("你" * 20, "你" * 8 + "*" * 41 + "你" * 4, id="Han"),
        pytest.param("\udce9" * 20, "?" * 8 + "*" * 41 + "?" * 4, id="bytes that are no UTF-8"),
        pytest.param("\udce9" * 19, "*" * 19, id="a few of them"),
    ],
)
def test_what_is_shown_of_a_key(key: str, shown: str) -> None:
    """Never more than eight characters and four; of a key under twenty none. The length of a long one is not told."""
    assert shown == masked(key)


@given(st.lists(st.text(st.characters(codec=None)) | st.text().map("Bearer {}".format), max_size=2))
async def test_no_header_does_harm(headers: list[str]) -> None:
    """Whatever a header holds, the answer is a refusal with a readable body of a bounded length."""
    error = await refusal(*headers)
    assert error.status in (400, 401)
    body = json.loads(error.body.decode())
    assert {"message", "type", "param", "code"} == set(body["error"])
    assert len(error.body) < 1024


# The configuration


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        pytest.param([("ann", "k1"), ("ann", "k2")], "two keys are named 'ann'", id="names"),
        pytest.param([("ann", "k1"), ("bob", "k1")], "the keys 'ann' and 'bob' are the same", id="keys"),
        pytest.param([("ann\n", "k1")], r"the key 'ann\\n' cannot be named so: a name has no control", id="a name"),
        pytest.param([("ann", "k1 ")], "the key 'ann' begins or ends with a space", id="a space after"),
        pytest.param([("ann", "\tk1")], "the key 'ann' begins or ends with a space", id="a tab before"),
    ],
)
def test_keys_that_cannot_be_meant(keys: list[tuple[str, str]], problem: str) -> None:
    """A name for two keys, a key for two names and a key nobody can send stop the start; the key is not shown."""
    with pytest.raises(ValueError, match=problem) as caught:
        auth(*keys)
    assert "k1" not in str(caught.value)


def test_no_keys() -> None:
    """Without a store nobody could ask then, which is told at the start; with one they are made there."""
    assert str(Auth().storeless_problem()).startswith("there are no keys, so nobody could ask; add keys = ")
    assert auth().storeless_problem() is None


def test_keys_are_not_shown() -> None:
    """Neither the plugin nor what it keeps has the key in it."""
    plugin = auth()
    assert "name='ann', key=Secret(…)" in repr(plugin)
    for shown in (repr(plugin), str(plugin), repr(plugin.keys), repr(vars(plugin))):
        assert KEY not in shown
        assert KEY[8:-4] not in shown


async def test_the_error_does_not_hold_the_key() -> None:
    """A traceback's message has no more of a wrong key than the client is shown."""
    error = await refusal("Bearer " + "x" * 8 + "secret-middle" + "y" * 4)
    assert "secret-middle" not in str(error)
    assert "secret-middle" not in repr(error)


async def test_the_help_address_is_the_operators() -> None:
    """Without `help_url` the addresses are OpenAI's."""
    plugin = Auth(keys=(ConfiguredKey(name="ann", key=Secret(KEY)),))
    for header in ("", "Bearer x"):
        with pytest.raises(Reject, match=r"https://platform\.openai\.com/account/api-keys\."):
            await plugin.on_request(exchange(header))


# Keys of the store

ISSUED = "sk-" + "0123456789abcdefghijABCDEFGHIJ-_0123456789xyz"[:43]


class KeptKeys:
    """A store that knows the one script by which keys are found, and a pulse that says all is well.

    records: by secret, as they stand in the store. away: it cannot be asked.
    """

    def __init__(self) -> None:
        self.records: dict[str, dict[str, str]] = {}
        self.away = False
        self.asked = 0
        self.version = 1
        self.up = True
        self.seen_at = asyncio.get_running_loop().time()

    def put(self, name: str, secret: str = ISSUED, ends: int = 0, **fields: str) -> None:
        self.records[secret] = {"name": name, f"secret:{digest(secret).hex()}": f"sk-01234… 1 {ends}", **fields}

    def key(self, tag: str, *parts: str) -> str:
        return ":".join((tag, *parts))

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[Arg] = ()) -> Any:
        assert script.name == "keys_find"
        self.asked += 1
        if self.away:
            raise StoreError("away", acted=False)
        now = b"1000000"
        for secret, record in self.records.items():
            if digest(secret).hex() == args[0]:
                return [b"1", now, record["name"].encode(), json.dumps(record).encode()]
        return [b"1", now, None, None]


class Kept:
    """`auth` as it runs with a store."""

    def __init__(self, *keys: tuple[str, str]) -> None:
        self.store = KeptKeys()
        self.lent = Lent()
        self.plugin = Auth(keys=tuple(ConfiguredKey(name=name, key=Secret(key)) for name, key in keys), help_url=HELP)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        lent = self.lent.services
        services = SimpleNamespace(store=self.store, pulse=self.store, metrics=lent.metrics, log=lent.log)
        async with self.plugin.lifespan(cast(Services, services)):
            yield

    async def ask(self, secret: str = ISSUED, **chat_fields: Any) -> Exchange:
        ex = chat(headers={"Authorization": f"Bearer {secret}"}, **chat_fields)
        await self.plugin.on_request(ex)
        return ex

    async def refused(self, secret: str = ISSUED, **chat_fields: Any) -> RelayError:
        with pytest.raises(RelayError) as caught:
            await self.ask(secret, **chat_fields)
        return caught.value


@pytest.fixture
async def kept() -> AsyncIterator[Kept]:
    kept = Kept()
    async with kept.running():
        yield kept


async def test_a_key_of_the_store(kept: Kept) -> None:
    """The request goes on under its name, with what is its own; the second one asks nobody."""
    kept.store.put("ann", **{"limit:burst": "3", "label:team": "shop", "limit:of a later version": "1"})
    for _ in range(2):
        ex = await kept.ask()
        assert "ann" == ex[CALLER]
        assert ApiKey(name="ann", limits=Limits(burst=3), labels={"team": "shop"}) == ex[API_KEY]
        assert "x-relay-degraded" not in ex.reply_headers
    assert 1 == kept.store.asked


async def test_configured_keys_come_first() -> None:
    """They are known without the store, also while it is away."""
    kept = Kept(("ann", KEY))
    async with kept.running():
        kept.store.away = True
        ex = await kept.ask(KEY)
    assert ("ann", ApiKey(name="ann"), 0) == (ex[CALLER], ex[API_KEY], kept.store.asked)


async def test_a_configured_key_has_nothing_of_its_own() -> None:
    """But its name, which plugins find where that of any key is."""
    ex = exchange(f"Bearer {KEY}")
    await auth().on_request(ex)
    assert ApiKey(name="ann") == ex[API_KEY]


@pytest.mark.parametrize("key", [KEY, ISSUED[:-1], ISSUED + "x", "x" * 60_000, ISSUED[:-1] + "é", "sk-" + "." * 43])
async def test_what_no_store_has_is_not_asked_for(kept: Kept, key: str) -> None:
    """A key that was never issued is refused by its shape, whatever the state of the store."""
    kept.store.away = True
    error = await kept.refused(key)
    assert (401, "invalid_api_key", 0) == (error.status, error.code, kept.store.asked)


@pytest.mark.parametrize("how", ["unknown", "disabled", "of another secret"])
async def test_a_key_that_is_not_let_in(kept: Kept, how: str) -> None:
    """Unknown and disabled are one and the same from outside: the page's second body."""
    if how == "disabled":
        kept.store.put("ann", disabled="1")
    if how == "of another secret":
        kept.store.put("ann", ISSUED[:-1] + "0")
    error = await kept.refused()
    assert json.loads(WRONG.replace("sk-1afsp", ISSUED[:8]).replace("k5R2", ISSUED[-4:])) == json.loads(error.body)
    assert 401 == error.status


@pytest.mark.parametrize("field", ["expires", "secret"])
async def test_an_expired_key_says_so(kept: Kept, field: str) -> None:
    """Whoever has it may know; it ends with its key, or when another secret has taken its place."""
    kept.store.put("ann", ends=999_000) if field == "secret" else kept.store.put("ann", expires="999000")
    error = await kept.refused()
    assert (401, "invalid_api_key") == (error.status, error.code)
    assert f"This API key has expired: {masked(ISSUED)}. You can find your API key at {HELP}." == error.message


async def test_models_of_a_key(kept: Kept) -> None:
    """Another model is one that is not served, to this key."""
    kept.store.put("ann", models='["gpt-4"]')
    assert "ann" == (await kept.ask(model="gpt-4"))[CALLER]
    error = await kept.refused(model="gpt-3")
    assert (404, "Unsupported model.") == (error.status, error.message)
    # OpenRouter tries these in its place.
    error = await kept.refused(model="gpt-4", models=["gpt-4", "gpt-3"])
    assert 404 == error.status
    for operation in ("models", "quota"):
        ex = await kept.ask(operation=operation)
        assert ("gpt-4",) == ex[API_KEY].models


async def test_a_request_that_is_not_let_in_is_not_read(kept: Kept) -> None:
    """And one of a key for all models is read by others."""
    kept.store.put("ann")
    ex = await kept.ask()
    assert ex.loaded is None


@pytest.mark.jumping_clock
async def test_store_away(kept: Kept) -> None:
    """A key that was good within the last minute still is, and the reply says so; then the answer is 503."""
    kept.store.put("ann")
    await kept.ask()
    kept.store.away = True
    loop = cast(JumpingLoop, asyncio.get_running_loop())
    loop.jump(TRUSTED_S - 1)
    ex = await kept.ask()
    assert ("ann", "auth") == (ex[CALLER], ex.reply_headers["x-relay-degraded"])
    assert 1 == await kept.lent.count('relay_degraded_requests_total{concern="auth"}')
    loop.jump(2)
    error = await kept.refused()
    assert isinstance(error, Unavailable)
    assert (503, "auth_unavailable", "2") == (error.status, error.code, error.headers["Retry-After"])
    assert ISSUED not in error.body.decode()


async def test_a_name_that_the_configuration_has_too() -> None:
    """Both are let in as one; the log says so once."""
    kept = Kept(("ann", KEY))
    async with kept.running():
        kept.store.put("ann")
        for _ in range(3):
            assert "ann" == (await kept.ask())[CALLER]
    [line] = kept.lent.lines
    assert ("warning", "ann") == (line["level"], line["key"])


async def test_names_of_the_configuration() -> None:
    """For whoever makes keys: these are taken."""
    assert ("ann", "bob") == auth().key_names


@given(st.text(st.characters(codec=None)).map("Bearer sk-{}".format))
async def test_no_key_does_harm(header: str) -> None:
    """Whatever comes as a key, the answer is a refusal, with a store too."""
    kept = Kept()
    async with kept.running():
        ex = exchange(header)
        with pytest.raises(Reject):
            await kept.plugin.on_request(ex)
