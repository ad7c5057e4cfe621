"""`relay plugin check`: each line that it prints, right and wrong, and its status."""

import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import main

SOUND = """
from relay import Exchange, Plugin, Reply, Sink
from relay.text import TextSink, begun

class Swap(Plugin):
    word: str
    by: str = ""
    many: int = 1

    async def on_request(self, ex: Exchange) -> Reply | None:
        print("not to be seen")
        return None

    def on_stream(self, ex: Exchange, sink: Sink) -> Sink:
        return TextSink(sink, self.swapped)

    def swapped(self, text, last):
        *whole, rest = text.split(self.word)
        held = "" if last else begun(rest, self.word)
        return self.by.join([*whole, rest.removesuffix(held)]), held
"""
UPSTREAM = '[[upstreams]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["*"]\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one, where commands are run; what is imported from there is forgotten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    return tmp_path


_numbers = iter(range(1000))


def module(folder: Path, source: str) -> str:
    """A module of a name of its own."""
    name = f"checked_{next(_numbers)}"
    (folder / f"{name}.py").write_text(textwrap.dedent(source))
    return name


def check(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plugin", "check", *words])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


def test_a_sound_one(folder: Path):
    """A line for each, in order, and nothing of what the plugin prints."""
    name = module(folder, SOUND)
    status, said = check(f"{name}:Swap", "-o", "word=cat", "-o", "many=2", "--answer", "A cat, two cats.")
    assert 0 == status, said
    head, *lines = said.splitlines()
    assert f"{name}:Swap" == head
    assert ["found", "options", "hooks", "needs", "contract", "cost", "cost", "memory"] == [
        line.split()[1] for line in lines
    ]
    assert {"ok"} == {line.split()[0] for line in lines}
    assert f"{name}.py (by its module)" in lines[0]
    assert "Swap(word='cat', by='', many=2)" in lines[1]
    assert "on_request, on_stream; serves chat" in lines[2]
    assert "for a request" in lines[5]
    assert "µs in a chain without it, ×" in lines[6]


def test_one_without_on_stream(folder: Path):
    name = module(folder, "from relay import Plugin\nclass Nothing(Plugin):\n    pass\n")
    status, said = check(f"{name}:Nothing")
    assert (0, True) == (status, "0 µs for a chunk: it has no on_stream" in said)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "option 'word' is missing; expected str\n  WRONG  options   write each as -o NAME=VALUE"),
        (("-o", "word=cat", "-o", "bye=dog"), "unknown option 'bye'; did you mean 'by'?"),
        (("-o", "word=5"), "Expected `str`, got `int`"),
        (("-o", "word=cat", "-o", "many=x"), "Expected `int`, got `str`"),
        (("-o", "word=cat", "-o", "a b=1"), "write NAME=VALUE"),
    ],
)
def test_options_that_are_wrong(folder: Path, words: tuple[str, ...], says: str):
    status, said = check(f"{module(folder, SOUND)}:Swap", *words)
    assert (1, True) == (status, says in said), said


def test_what_stands_in_a_configuration(folder: Path):
    """Its options are taken from there; what is wrong with them has its line."""
    name = module(folder, SOUND)
    table = f'[[plugins]]\nuse = "{name}:Swap"\nword = "cat"\n'
    Path("relay.toml").write_text(UPSTREAM + table)
    status, said = check(f"{name}:Swap", "--config", "relay.toml")
    assert (0, True) == (status, "Swap(word='cat', by='', many=1)" in said), said
    Path("relay.toml").write_text(UPSTREAM + table + "manny = 5\n")
    status, said = check(f"{name}:Swap", "--config", "relay.toml")
    assert (1, True) == (status, "relay.toml:8: plugins[0]" in said), said
    assert "did you mean 'many'" in said
    status, said = check("auth", "--config", "relay.toml")
    assert (1, True) == (status, f"has no plugin with use = 'auth'; it has {name}:Swap" in said)
    Path("relay.toml").write_text("[[plugin]]")
    status, said = check("auth", "--config", "relay.toml")
    assert (1, True) == (status, "did you mean 'plugins'" in said), said


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("aut", "did you mean 'auth'"),
        ("nowhere:Class", "cannot be imported"),
        ("relay.plugin:Nothing", "has no Nothing"),
        ("lexicon", "is a moderator; give it to the plugin moderation"),
    ],
)
def test_what_is_not_found(folder: Path, target: str, says: str):
    status, said = check(target)
    assert (1, True) == (status, f"WRONG  found     {said.split('found     ')[1]}" in said and says in said)


def test_a_moderator_of_this_folder(folder: Path):
    """Is told where it is tried, as one that is registered."""
    name = module(folder, "from relay import Moderator\nclass Mine(Moderator):\n    async def check(self, *_): ...\n")
    status, said = check(f"{name}:Mine")
    assert (1, True) == (status, "is a moderator; give it to the plugin moderation" in said), said


def test_a_misspelt_hook(folder: Path):
    name = module(
        folder, "from relay import Plugin\nclass Misspelt(Plugin):\n    async def on_reqest(self, ex):\n        pass\n"
    )
    status, said = check(f"{name}:Misspelt")
    assert (1, True) == (status, "WRONG  hooks     Misspelt.on_reqest is no hook; did you mean 'on_request'?" in said)


def test_a_broken_promise(folder: Path):
    """Says which, and what to do; the cost is told all the same."""
    name = module(folder, SOUND.replace('"" if last else begun(rest, self.word)', '""'))
    status, said = check(f"{name}:Swap", "-o", "word=cat", "--answer", "A cat.")
    assert 1 == status
    assert "WRONG  contract  cut: it let another reply through" in said
    assert "ok     cost" in said


def test_one_that_cannot_be_opened(folder: Path):
    """With the place in its code."""
    source = """
        from contextlib import asynccontextmanager
        from relay import Plugin

        class Unable(Plugin):
            @asynccontextmanager
            async def lifespan(self, services):
                raise OSError("no such service")
                yield
    """
    name = module(folder, source)
    status, said = check(f"{name}:Unable")
    assert (1, True) == (status, f"WRONG  contract  OSError: no such service ({folder}/{name}.py:8)" in said), said


GIVER = """
from relay import Key, Plugin, Exchange, Reply

REGION = Key("region", str)

class Gives(Plugin):
    gives = (REGION,)
    region: str = "here"

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex[REGION] = self.region
        return None

class Needs(Plugin):
    needs = (REGION,)

    async def on_request(self, ex: Exchange) -> Reply | None:
        ex.reply_headers["x-region"] = ex[REGION]
        return None
"""


def test_what_it_needs(folder: Path):
    """Is given by the plugins before it in the configuration; who alone cannot be tried is told so."""
    name = module(folder, GIVER)
    status, said = check(f"{name}:Needs")
    assert (1, True) == (status, "WRONG  needs     it needs 'region', and nothing that is installed gives that" in said)
    gives, needs = (f'[[plugins]]\nuse = "{name}:{each}"\n' for each in ("Gives", "Needs"))
    Path("relay.toml").write_text(UPSTREAM + gives + needs)
    status, said = check(f"{name}:Needs", "--config", "relay.toml")
    assert (0, True) == (status, "ok     contract" in said), said
    Path("relay.toml").write_text(UPSTREAM + needs + gives)
    status, said = check(f"{name}:Needs", "--config", "relay.toml")
    assert (1, True) == (status, "no plugin before it in" in said), said


def test_those_that_are_installed(folder: Path):
    """One with a store among them, and one that lets nobody in without a key."""
    status, said = check("quota", "-o", "grant=1000")
    assert 0 == status, said
    assert "caller (given by auth)" in said
    status, said = check("moderation", "-o", 'moderators=[{use="lexicon", words=["x"]}]')
    assert (0, True) == (status, "needs     nothing; gives stopped_by, violations" in said), said
    keys = ("-o", 'keys=[{name = "a", key = "sk-secret"}]')
    status, said = check("auth", *keys)
    assert (1, True) == (status, "refused the request by 401 invalid_api_key: give requests a header by -H" in said)
    assert "sk-secret" not in said
    status, said = check("auth", *keys, "-H", "Authorization: Bearer sk-secret")
    assert 0 == status, said


def test_a_moderator_that_is_not_whole(folder: Path):
    name = module(folder, "from relay import Moderator\nclass Half(Moderator):\n    pass\n")
    status, said = check("moderation", "-o", f'moderators=[{{use="{name}:Half"}}]')
    assert (1, True) == (status, "Half does not define check" in said), said


def test_words_that_do_not_fit(folder: Path):
    assert (2, True) == ((told := check("auth", "-o", "x=1", "--config", "relay.toml"))[0], "not both" in told[1])
    assert (2, True) == ((told := check("auth", "-H", "x"))[0], "write it as NAME:VALUE" in told[1])


def test_each_place_in_a_configuration(folder: Path):
    """Also those of chains, each with what stands before it there."""
    name = module(folder, SOUND)
    table = f'use = "{name}:Swap"\n'
    text = UPSTREAM + f"[[plugins]]\n{table}word = 'cat'\n" + f"[[chains]]\nname = 'all'\n[[chains.plugins]]\n{table}"
    Path("relay.toml").write_text(text)
    status, said = check(f"{name}:Swap", "--config", "relay.toml")
    assert 1 == status
    assert "  plugins[0]\n" in said
    assert "  chains[0].plugins[0]\n" in said
    assert "option 'word' is missing" in said
    Path("relay.toml").write_text(text + "word = 'dog'\n")
    status, said = check(f"{name}:Swap", "--config", "relay.toml")
    assert (0, 2) == (status, said.count("contract  kept"))


ENDS = {
    "when it is imported": "import sys\nsys.exit(0)\n",
    "when it is built": SOUND + "\n    def __post_init__(self):\n        raise RuntimeError('no')\n",
    "when it is shown": SOUND + "\n    def __repr__(self):\n        raise RuntimeError('no')\n",
    "when it is asked": SOUND + "\n    async def on_request(self, ex):\n        raise SystemExit(0)\n",
}


@pytest.mark.parametrize("source", ENDS.values(), ids=ENDS)
def test_whatever_it_does_is_told(folder: Path, source: str):
    """It neither ends the command well, nor shows a traceback."""
    name = module(folder, source)
    status, said = check(f"{name}:Swap", "-o", "word=cat")
    assert (1, True) == (status, "WRONG" in said), said
    assert "Traceback" not in said
