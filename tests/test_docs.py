"""What the documentation shows is run: configurations are built, plugins are loaded, commands and paths exist."""

import dataclasses
import inspect
import re
import shlex
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import relay
import relay.keys
import relay.moderator
import relay.reading
import relay_pytest
from relay.assembly import assemble, registries
from relay.cli import main
from relay.commands.plugins import reference
from relay.config import parse
from relay.exchange import Exchange
from relay.metrics.families import OUTCOMES
from relay.options import describe
from relay.plugin import HOOKS, Plugin, Services
from relay_plugins.moderation import Moderation

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLUGINS_PAGE = ROOT / "docs" / "plugins.md"
READMES = [ROOT / "README.md", ROOT / "docs" / "README.zh.md"]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_options_are_written_down() -> None:
    """`python -m relay.commands.plugins > docs/options.md` has been run since the last change."""
    assert reference() == (ROOT / "docs" / "options.md").read_text(encoding="utf-8")


def test_the_examples_are_those_that_are_tested() -> None:
    """Each of docs/plugins.md stands in tests/examples as it is printed."""
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "examples").glob("*.py")]
    shown = blocks(PLUGINS_PAGE, "python")
    assert [] == [code for code in shown if not any(code in source for source in sources)]
    assert [] == [source for source in sources if not any(code in source for code in shown)]


def test_the_outcomes_are_written_down() -> None:
    """The table of docs/plugins.md has each kind, in the order of `relay.metrics.families`."""
    table = PLUGINS_PAGE.read_text(encoding="utf-8").partition("| kind |")[2].partition("\n\n")[0]
    assert OUTCOMES == tuple(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))


def test_the_whole_configuration_of_the_page_is_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`relay check` says so, with the page's first plugin beside it."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-upstream")
    monkeypatch.setenv("SHOP_KEY", "sk-shop")
    monkeypatch.syspath_prepend(ROOT / "tests" / "examples")
    [text] = [text for text in blocks(PLUGINS_PAGE, "toml") if "[[upstreams]]" in text]
    (tmp_path / "relay.toml").write_text(text, encoding="utf-8")
    checked = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "relay.toml")])
    assert 0 == checked.exit_code, checked.output
    links = [line.strip() for line in checked.output.splitlines() if re.fullmatch(r"  \w+", line)]
    assert ["auth", "rate_limit", "Swap", "moderation"] == links


def test_the_fixtures_are_written_down() -> None:
    """The page names each of those that pytest is given."""
    fixtures = re.findall(r"^(?:async )?def (relay_\w+)", Path(relay_pytest.__file__).read_text("utf-8"), re.MULTILINE)
    assert len(fixtures) > 5
    page = PLUGINS_PAGE.read_text(encoding="utf-8")
    assert [] == [name for name in fixtures if f"`{name}" not in page]


# What of an exchange is for whoever serves it.
SERVERS_OWN = {
    *("attach", "close", "forget", "loads", "moderated", "paused", "steps", "tells", "upstream", "upstream_lines"),
}
# What of moderators says nothing to who writes one: a type, and a table.
MODERATORS_OWN = {"Action", "STRICTNESS"}


def prose() -> str:
    """All that the page for authors puts in backquotes, but for its examples."""
    text = re.sub(r"^```.*?^```$", "", PLUGINS_PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return " ".join(re.findall(r"`([^`]+)`", text))


def shared_keys() -> set[str]:
    """The names of all keys that a plugin of the project gives or tells, as they are imported."""
    registry = registries().plugins
    plugins = [registry.find(entry.name) for entry in registry.names() if entry.target.startswith("relay_plugins.")]
    keys = {id(key) for plugin in plugins for key in (*plugin.gives, *plugin.tells)}
    modules = [relay.exchange, relay.keys, *(sys.modules[plugin.__module__] for plugin in plugins)]
    names = {name for module in modules for name, value in vars(module).items() if id(value) in keys}
    assert len(names) == len(keys)
    return names


def test_the_page_for_authors_names_all_that_is_public() -> None:
    """Every hook, every declaration of a class, every exported name, every service and every key."""
    said = set(re.findall(r"[A-Za-z_]+", prose()))
    declared = {name for name in inspect.get_annotations(Plugin) if not name.startswith("_")}
    lent = {field.name for field in dataclasses.fields(Services)}
    moderators = set(relay.moderator.__all__) - MODERATORS_OWN
    assert {
        *HOOKS,
        *declared,
        *relay.__all__,
        *lent,
        *shared_keys(),
        *moderators,
        *relay.reading.__all__,
    } - said == set()


def test_each_hook_has_its_promise() -> None:
    """A row of the table, with what it is called with, in the order in which they are called."""
    rows = re.findall(r"^\| `(\w+)\(([\w, ]+)\)` \|", PLUGINS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [(hook, ", ".join(inspect.signature(getattr(Plugin, hook)).parameters)) for hook in HOOKS] == rows


def test_the_page_for_authors_names_all_of_an_exchange() -> None:
    """By `ex.` and its name, but for what only the relay itself calls."""
    public = {name for name in dir(Exchange) if not name.startswith("_")} - set(dir(dict))
    assert SERVERS_OWN < public
    assert public - SERVERS_OWN == set(re.findall(r"\bex\.([a-z_]+)", prose())) & public


def test_every_option_is_explained() -> None:
    """What a class says of itself names each of its options, but for moderation's, which have a page."""
    known = registries()
    for registry in (known.plugins, known.moderators):
        for entry in registry.names():
            if entry.target.startswith("relay_plugins.") and entry.name != "moderation":
                cls = registry.find(entry.name)
                said = set(re.findall(r"[a-z_]+", cls.__doc__ or ""))
                common = {option.name for option in describe(Plugin)} if issubclass(cls, Plugin) else set()
                assert {option.name for option in describe(cls)} - common - said == set(), entry.name


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_configuration_of_the_readme_is_sound(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It builds as printed, in the order in which it is printed."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-upstream")
    monkeypatch.setenv("SHOP_KEY", "sk-shop")
    monkeypatch.setenv("TENCENT_ID", "AKID")
    monkeypatch.setenv("TENCENT_KEY", "key")
    (tmp_path / "words.txt").write_text("违禁\n", encoding="utf-8")
    [text] = blocks(page, "toml")
    chain = assemble(parse(text, tmp_path / "relay.toml"))
    shipped = ["auth", "parameters", "rate_limit", "quota", "moderation", "history"]
    assert shipped == [link.name for link in chain.links]


def test_the_chains_of_the_page_are_sound(tmp_path: Path) -> None:
    """They build as printed, and `relay check` says what is printed of them."""
    page = ROOT / "docs/operating.md"
    for name in ("strict.txt", "words.txt"):
        (tmp_path / name).write_text("word\n", encoding="utf-8")
    upstream = (
        '[[upstreams]]\nname = "main"\nbase_url = "https://api.openai.com/v1"\nmodels = ["gpt-4", "gpt-4-turbo"]\n'
    )
    [text] = [block for block in blocks(page, "toml") if "[[chains]]" in block]
    (tmp_path / "relay.toml").write_text(upstream + text, encoding="utf-8")
    [shown] = [block for block in blocks(page, "console") if "relay check --key" in block]
    command, _, printed = shown.partition("\n")
    words = command.removeprefix("$ relay ").split()
    ran = CliRunner().invoke(main, [*words, "--config", str(tmp_path / "relay.toml")])
    assert ran.output == printed


@pytest.mark.parametrize("page", READMES, ids=lambda page: page.name)
def test_the_plugin_of_the_readme_runs_beside_a_configuration(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten lines saved as a file are a plugin, with its field as its option."""
    [code] = blocks(page, "python")
    module = f"office_{page.stem.replace('.', '_')}"
    (tmp_path / f"{module}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    text = f"""
        [[upstreams]]
        name = "any"
        base_url = "http://127.0.0.1:1/v1"
        models = ["*"]
        [[plugins]]
        use = "{module}:Office"
        max_messages = 20
    """
    [link] = assemble(parse(text, tmp_path / "relay.toml")).links
    assert isinstance(link.plugin, Plugin)
    assert getattr(link.plugin, "max_messages", None) == 20


def test_both_readmes_show_the_same_configuration() -> None:
    """The Chinese page differs from the English one in its comments only."""
    stripped = [re.sub(r" *#.*", "", blocks(page, "toml")[0]) for page in READMES]
    assert stripped[0] == stripped[1]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_exists(page: Path) -> None:
    """Links between pages, and paths of the repository in backquotes."""
    text = page.read_text(encoding="utf-8")
    links = [page.parent / target for target in re.findall(r"\]\(([^)#:]+)\)", text)]
    paths = [ROOT / path for path in re.findall(r"`((?:relay|plugins|tests|docs|grafana|bench)/[\w/.]*)`", text)]
    assert [] == [path for path in links + paths if not path.exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_make_targets_that_a_page_names_exist(page: Path) -> None:
    """`make WORD` in a page is a target of the Makefile."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set() == set(re.findall(r"[`$] ?make ([a-z-]+)", page.read_text(encoding="utf-8"))) - targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_that_a_page_shows_are_understood(page: Path) -> None:
    """`$ relay …` in a page: words that the command line takes, each option by its name and with a value of its kind."""
    for line in re.findall(r"^\$ relay (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE):
        command: click.Command = main
        words = shlex.split(line, comments=True)
        while isinstance(command, click.Group):
            _, found, words = command.resolve_command(click.Context(command), words)
            assert found is not None
            command = found
        command.make_context(command.name, words)


def test_the_options_of_moderation_are_documented() -> None:
    """docs/moderation.md names every option."""
    text = (ROOT / "docs" / "moderation.md").read_text(encoding="utf-8")
    common = {field.name for field in dataclasses.fields(Plugin)}
    options = [field.name for field in dataclasses.fields(Moderation) if field.init and field.name not in common]
    assert len(options) > 15
    assert [] == [name for name in options if f"`{name}" not in text and f"\n{name} = " not in text]
