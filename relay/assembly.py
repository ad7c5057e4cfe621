"""From a configuration to a chain: every plugin and moderator built, nothing opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from relay.chain import Chain
from relay.config import Config
from relay.ledger import Metered
from relay.moderator import Moderator
from relay.options import ConfigError, Context, build
from relay.plugin import Plugin
from relay.registry import Registry


@runtime_checkable
class Storeless(Protocol):
    """A plugin that can do without a store by some of its options only."""

    def storeless_problem(self) -> str | None:
        """Why not by those that it has, in one sentence that says what to do."""
        ...


@dataclass(frozen=True, slots=True)
class Registries:
    """Where names in the configuration lead."""

    plugins: Registry[Plugin]
    moderators: Registry[Moderator]

    def context(self, folder: Path, environ: Mapping[str, str]) -> Context:
        """What the options of plugins refer to, other than themselves."""
        return Context(
            folder=folder,
            environ=environ,
            kinds={Moderator: lambda use: _whole(use, self.moderators.find(use))},
        )


def registries() -> Registries:
    """What is installed now."""
    return Registries(
        Registry("relay.plugins", Plugin),
        Registry("relay.moderators", Moderator),  # type: ignore[type-abstract] # only subclasses are built
    )


def assemble(config: Config, *, environ: Mapping[str, str] = os.environ) -> Chain:
    """The chain that a configuration describes. Raises ConfigError with every problem found."""
    if config.server.workers > 1 and config.store.scheme == "memory":
        raise config.wrong(
            [
                "server.workers: several workers share what they count, and store.url is memory:, which is one process's; "
                "write embedded: there, or the redis:// of a server, or use workers = 1"
            ]
        )
    if str(config.folder) not in sys.path:
        # `use = "my_plugin:Shout"` finds my_plugin.py beside the configuration; last, so that it hides no other module.
        sys.path.append(str(config.folder))
    known = registries()
    context = known.context(config.folder, environ)
    built: list[tuple[str, Plugin]] = []
    problems: list[str] = []
    units: set[str] = set()
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
        if plugin.needs_store and config.store.scheme == "memory":
            problems.append(
                f"{where}: {use!r} keeps what must outlive this process, and store.url is memory:; "
                "write embedded: for a store on this machine, or the redis:// of one that several share"
            )
        if config.store.scheme == "memory" and isinstance(plugin, Storeless) and (why := plugin.storeless_problem()):
            problems.append(f"{where} ({use}): {why}")
        if isinstance(plugin, Metered):
            if plugin.unit in units:
                problems.append(
                    f"{where}: {use!r} would charge for the same {plugin.unit} once more; remove one of them"
                )
            units.add(plugin.unit)
        built.append((_unique(use, [name for name, _ in built]), plugin))
    if not problems:
        try:
            return Chain(built, places=[f"plugins[{position}]" for position in range(len(built))])
        except ConfigError as error:
            problems += error.problems
    raise config.wrong(problems)


def _whole(use: str, cls: type[Moderator]) -> type[Moderator]:
    """The class, if it can be built. Raises ConfigError."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{use!r}: {cls.__name__} does not define {', '.join(missing)}")
    return cls


def _unique(use: str, taken: list[str]) -> str:
    name = use.rpartition(":")[2]
    same = sum(1 for other in taken if other == name or other.startswith(name + "#"))
    return f"{name}#{same + 1}" if same else name
