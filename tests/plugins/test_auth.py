"""Who is let in, and what those are told who are not: the bodies of the public page this project serves, to the letter."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from relay.errors import Reject
from relay.exchange import CALLER, Exchange
from relay.secret import Secret
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
    """Without keys nobody could ask."""
    with pytest.raises(ValueError, match="there are no keys"):
        Auth()


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
