"""`relay plugins`: what can stand in a configuration as `use`, with its options; and the page docs/options.md, which says the same."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

import click

from relay.assembly import Registries, registries
from relay.commands.attached import fail
from relay.moderator import Moderator
from relay.options import ConfigError, OptionInfo, Options, describe
from relay.plugin import Plugin

_OWN: Final = "relay_plugins."
# What every plugin has, and is not told again of each.
COMMON: Final = describe(Plugin)
_KINDS: Final = {"plugins": Plugin, "moderators": Moderator}


class Described(NamedTuple):
    """One that is installed. of: the distribution that brings it. doc: what its class says of itself."""

    name: str
    of: str
    doc: str
    options: list[OptionInfo]

    @property
    def first(self) -> str:
        """The first line of its doc."""
        return self.doc.partition("\n")[0]


@click.command("plugins")
@click.argument("name", required=False)
def plugins(name: str | None) -> None:
    """List the plugins and moderators that are installed, with their options.

    With a NAME, or module:Class for one in this folder: all that it says of itself.
    """
    known = registries()
    if name is None:
        click.echo("\n".join(_listed(known)))
        return
    sys.path.append(os.getcwd())
    try:
        click.echo("\n".join(_whole(_find(known, name))))
    except ConfigError as error:
        fail(str(error))


def _find(known: Registries, name: str) -> Described:
    """Raises ConfigError if there is none."""
    try:
        return _described(name, "", known.plugins.find(name))
    except ConfigError as error:
        try:
            return _described(name, "", known.moderators.find(name))
        except ConfigError:
            raise error from None


def _described(name: str, of: str, cls: type[Options]) -> Described:
    options = [option for option in describe(cls) if not issubclass(cls, Plugin) or option not in COMMON]
    return Described(name, of, inspect.cleandoc(cls.__doc__ or ""), options)


def _installed(known: Registries, kind: str) -> Iterator[Described]:
    """Those of a kind, by name. What cannot be imported is told as that."""
    registry = known.plugins if kind == "plugins" else known.moderators
    for entry in registry.names():
        try:
            yield _described(entry.name, entry.distribution, registry.find(entry.name))
        except ConfigError as error:
            yield Described(entry.name, entry.distribution, f"cannot be used: {error}", [])


def _listed(known: Registries) -> Iterator[str]:
    for kind in _KINDS:
        yield f"{kind}, by their use in {'[[plugins]]' if kind == 'plugins' else 'moderators = [{ use = … }]'}"
        for each in _installed(known, kind):
            yield f"\n  {each.name}  ({each.of})"
            yield f"    {each.first}"
            yield from (f"      {line}" for line in _options(each))
        yield ""


def _whole(each: Described) -> Iterator[str]:
    yield each.name
    yield ""
    yield from (f"  {line}".rstrip() for line in each.doc.splitlines())
    yield ""
    yield from (f"  {line}" for line in _options(each)) if each.options else ("  no options",)


def _options(each: Described) -> Iterator[str]:
    width = max((len(option.name) for option in each.options), default=0)
    for option in each.options:
        default = "required" if option.required else option.default or "not set"
        yield f"{option.name.ljust(width)}  {default}  ({option.type})"


# The page

_COMMON_TEXT: Final = (
    "Every plugin has besides: `budget_ms`, how long it may keep a request on its way in, and `over_budget`, whether a request",
    "for which that was not enough is refused, or passed on as if the plugin were not there (not for those that guard:",
    '{guards}). The log and `relay_plugin_requests_total{{outcome="overdue"}}` name it.',
)


def _common(known: Registries) -> Iterator[str]:
    plugins = (entry for entry in known.plugins.names() if entry.target.startswith(_OWN))
    guards = ", ".join(f"`{entry.name}`" for entry in plugins if known.plugins.find(entry.name).guards)
    yield from (line.format(guards=guards) for line in _COMMON_TEXT)


def reference() -> str:
    """docs/options.md: all that the project brings."""
    known = registries()
    lines = [
        "# Options",
        "",
        "Every plugin and moderator that the relay brings, with its options as they are written in relay.toml. `relay plugins`",
        "lists the same, and those that others have installed. (Written by `python -m relay.commands.plugins`.)",
        "",
        *_common(known),
        "",
        *_table(COMMON),
    ]
    for kind in _KINDS:
        registry = known.plugins if kind == "plugins" else known.moderators
        lines += ["", f"## {kind.capitalize()}"]
        for entry in registry.names():
            if entry.target.startswith(_OWN):
                lines += _section(_described(entry.name, entry.distribution, registry.find(entry.name)))
    return "\n".join(lines) + "\n"


def _section(each: Described) -> Iterator[str]:
    yield from ("", f"### `{each.name}`", "", each.doc)
    if each.options:
        yield from ("", *_table(each.options))


def _table(options: Iterable[OptionInfo]) -> Iterator[str]:
    yield from ("| option | default | |", "| --- | --- | --- |")
    for option in options:
        default = "required" if option.required else f"`{option.default}`" if option.default else ""
        yield f"| `{option.name}` | {_cell(default)} | {_cell(f'`{option.type}`')} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
