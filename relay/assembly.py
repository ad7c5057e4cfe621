"""From a configuration to a chain: every plugin and moderator built, nothing opened."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from relay.chain import Chain, OnError
from relay.config import Config
from relay.moderator import Moderator
from relay.options import ConfigError, Context, build
from relay.plugin import Plugin
from relay.registry import Registry


@dataclass(frozen=True, slots=True)
class Registries:
    """Where names in the configuration lead."""

    plugins: Registry[Plugin]
    moderators: Registry[Moderator]


def registries() -> Registries:
    """What is installed now."""
    return Registries(
        Registry("relay.plugins", Plugin),
        Registry("relay.moderators", Moderator),  # type: ignore[type-abstract] # only subclasses are built
    )


def assemble(config: Config, on_error: OnError | None = None) -> Chain:
    """The chain that a configuration describes. Raises ConfigError with every problem found."""
    if config.server.workers > 1:
        raise ConfigError(f"{config.path}: server.workers: more than one worker is not built yet; use workers = 1")
    if str(config.folder) not in sys.path:
        # `use = "my_plugin:Shout"` finds my_plugin.py beside the configuration; last, so that it hides no other module.
        sys.path.append(str(config.folder))
    known = registries()

    def find_moderator(use: str) -> type[Moderator]:
        return _whole(use, known.moderators.find(use))

    context = Context(folder=config.folder, environ=os.environ, kinds={Moderator: find_moderator})
    built: list[tuple[str, Plugin]] = []
    problems: list[str] = []
    for position, table in enumerate(config.plugins):
        where = f"plugins[{position}]"
        use = str(table["use"])
        try:
            found = known.plugins.find(use)
        except ConfigError as error:
            problems += error.at(where).problems
            continue
        try:
            plugin = build(found, table, where, context=context)
        except ConfigError as error:
            problems += error.problems
            continue
        built.append((_unique(use, [name for name, _ in built]), plugin))
    if not problems:
        try:
            return Chain(built, on_error)
        except ConfigError as error:
            problems += error.problems
    raise ConfigError(*(f"{config.path}: {problem}" for problem in problems))


def _whole(use: str, cls: type[Moderator]) -> type[Moderator]:
    """The class, if it can be built. Raises ConfigError."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{use!r}: {cls.__name__} does not define {', '.join(missing)}")
    return cls


def _unique(use: str, taken: list[str]) -> str:
    name = use.rpartition(":")[2]
    same = sum(1 for other in taken if other == name or other.startswith(name + "#"))
    return f"{name}#{same + 1}" if same else name
