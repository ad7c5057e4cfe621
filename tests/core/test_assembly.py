import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.assembly import assemble, registries
from relay.config import parse
from relay.options import ConfigError
from relay.plugin import Plugin
from relay_plugins.moderation import Moderation

HEAD = """
[server]
workers = {workers}
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:1/v1"
models = ["gpt-4"]
"""
AUTH = '[[plugins]]\nuse = "auth"\nkeys = [{ name = "n", key = "sk-test" }]\n'
MODULE = """
from relay.moderator import PASS, Moderator
from relay.plugin import Plugin

class Shout(Plugin):
    on_failure: str = "closed"
    mark: str = "!"

class Misspelt(Plugin):
    async def on_reqest(self, ex): ...
    async def lifepsan(self): ...

class Asks(Moderator):
    async def check(self, text, context):
        return PASS

class Forgot(Moderator):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """The folder of a relay.toml with a module beside it; the module and the path are forgotten afterwards."""
    (tmp_path / "beside.py").write_text(MODULE)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for module in set(sys.modules) - modules:
        del sys.modules[module]


def built(folder: Path, plugins: str, *, workers: int = 1) -> list[tuple[str, Plugin]]:
    """The plugins of the chain that a configuration with these tables describes, with their names."""
    chain = assemble(parse(HEAD.format(workers=workers) + plugins, folder / "relay.toml", {}))
    return [(link.name, link.plugin) for link in chain.links]


def plugin(use: str, options: str = "") -> str:
    return f'[[plugins]]\nuse = "{use}"\n{options}\n'


def problems(folder: Path, plugins: str, *, workers: int = 1) -> list[str]:
    """What is wrong with it, without the file's name, which each has to begin with."""
    with pytest.raises(ConfigError) as caught:
        built(folder, plugins, workers=workers)
    file = re.compile(rf"{folder / 'relay.toml'}:[0-9]+: ")
    assert all(file.match(problem) for problem in caught.value.problems)
    return [file.sub("", problem, count=1) for problem in caught.value.problems]


def test_no_plugins(folder: Path) -> None:
    """A configuration without plugins is an empty chain."""
    assert built(folder, "") == []


def test_order_and_names(folder: Path) -> None:
    """Plugins stand in the order of the file, under their `use`; a further one of the same name has a number."""
    names = [name for name, _ in built(folder, AUTH + plugin("beside:Shout") + AUTH + plugin("beside:Shout") + AUTH)]
    assert names == ["auth", "Shout", "auth#2", "Shout#2", "auth#3"]


def test_beside_the_file(folder: Path) -> None:
    """A class in a module beside the file is found, with its options; an option may look like a hook."""
    [(name, shout)] = built(folder, plugin("beside:Shout", 'mark = "?"\non_failure = "open"'))
    assert name == "Shout"
    assert (shout.mark, shout.on_failure) == ("?", "open")  # type: ignore[attr-defined]


def test_beside_the_file_hides_nothing(folder: Path) -> None:
    """A module beside the file takes the place of no other one."""
    (folder / "colorsys.py").write_text("raise RuntimeError")
    built(folder, plugin("beside:Shout"))
    import colorsys

    assert Path(colorsys.__file__).parent != folder


def test_one_quota_a_unit(folder: Path) -> None:
    """Two would charge everything twice. Of another unit there may be another one."""
    tables = AUTH + plugin("quota") + plugin("quota", 'unit = "tokens"')
    assert [name for name, _ in built(folder, tables)] == ["auth", "quota", "quota#2"]
    assert problems(folder, tables + plugin("quota")) == [
        "plugins[3]: 'quota' would charge for the same characters once more; remove one of them, and put the other into "
        "[[plugins]] if it is for several chains"
    ]


def test_nested(folder: Path) -> None:
    """Moderators are built inside their plugin, registered or not."""
    moderators = 'moderators = [{ use = "lexicon", words = ["x"] }, { use = "beside:Asks" }]'
    [(_, moderation)] = built(folder, plugin("moderation", moderators))
    assert isinstance(moderation, Moderation)
    assert [type(each).__name__ for each in moderation.moderators] == ["Lexicon", "Asks"]
    assert [each.known_as for each in moderation.moderators] == ["lexicon", "asks"]


NESTED = 'moderators = [{{ use = "{use}"{more} }}]'


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (plugin("moderatoin"),
         ["plugins[0]: 'moderatoin' is not registered in relay.plugins; did you mean 'moderation'? registered: "]),
        (plugin("beside:Shuot"), ["plugins[0]: beside:Shuot: module beside has no Shuot; did you mean 'Shout'?"]),
        (plugin("beside:Asks"), ["plugins[0]: beside:Asks: beside:Asks is not a subclass of relay.plugin.Plugin"]),
        (plugin("beside:Shout", "makr = 1"),
         ["plugins[0] (beside:Shout): unknown option 'makr'; did you mean 'mark'?"]),
        (plugin("beside:Shout", "mark = 1"), ["plugins[0].mark: Expected `str`, got `int`"]),
        (plugin("beside:Misspelt"),
         ["plugins[0]: plugin 'Misspelt': Misspelt.lifepsan is no hook; did you mean 'lifespan'?",
          "plugins[0]: plugin 'Misspelt': Misspelt.on_reqest is no hook; did you mean 'on_request'?"]),
        ('[store]\nurl = "memory:"\n' + plugin("auth"),
         ["plugins[0] (auth): there are no keys, so nobody could ask; add keys = "]),
        (plugin("moderation", NESTED.format(use="lexicno", more="")),
         ["plugins[0].moderators[0]: 'lexicno' is not registered in relay.moderators; did you mean 'lexicon'? "]),
        (plugin("moderation", NESTED.format(use="lexicon", more=', wrods = ["x"]')),
         ["plugins[0].moderators[0] (lexicon): unknown option 'wrods'; did you mean 'words'?"]),
        (plugin("moderation", NESTED.format(use="beside:Forgot", more="")),
         ["plugins[0].moderators[0]: 'beside:Forgot': Forgot does not define check"]),
        (plugin("moderation", NESTED.format(use="beside:Shout", more="")),
         ["plugins[0].moderators[0]: beside:Shout: beside:Shout is not a subclass of relay.moderator.Moderator"]),
        (plugin("moderation", "moderators = []"), ["plugins[0] (moderation): moderators is empty; add one"]),
        (plugin("moderation"), ["plugins[0] (moderation): option 'moderators' is missing; expected "]),
        (plugin("beside:Shout", "makr = 1") + plugin("auht") + AUTH + plugin("auth", "kyes = []"),
         ["plugins[0] (beside:Shout): unknown option 'makr'", "plugins[1]: 'auht' is not registered",
          "plugins[3] (auth): unknown option 'kyes'; did you mean 'keys'?"]),
    ],
)  # fmt: skip
def test_refused(folder: Path, tables: str, expected: list[str]) -> None:
    """What is wrong is told before anything is opened: every problem, with its place and what was probably meant."""
    found = problems(folder, tables)
    assert len(found) == len(expected), found
    for problem, beginning in zip(found, expected, strict=True):
        assert problem.startswith(beginning)


def test_workers(folder: Path) -> None:
    """Several are refused where each would count for itself."""
    assert [link for link, _ in built(folder, AUTH, workers=2)] == ["auth"]
    [problem] = problems(folder, '[store]\nurl = "memory:"\n' + AUTH, workers=2)
    assert problem.startswith("server.workers: several workers share what they count, and store.url is memory:")


def test_built_ins_are_registered() -> None:
    """What the project brings is found as a stranger's would be."""
    found = registries()
    assert {entry.name for entry in found.plugins.names()} >= {"auth", "moderation"}
    assert {entry.name for entry in found.moderators.names()} >= {"lexicon"}
