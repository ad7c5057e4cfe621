"""From a configuration to a chain: every plugin and moderator built, nothing opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from relay.chain import Chain
from relay.config import Config
from relay.effect import branch_problems
from relay.ledger import Metered
from relay.moderator import Moderator
from relay.options import ConfigError, Context, build
from relay.plugin import Plugin
from relay.registry import Registry
from relay.section import Section


class NotBuiltError(Exception):
    """A plugin has raised what is no word about its options while it was built. Its message is where it stands, and its name."""


@runtime_checkable
class Storeless(Protocol):
    """A plugin that can do without a store by some of its options only."""

    def storeless_problem(self) -> str | None:
        """Why not by those that it has, in one sentence that says what to do."""
        ...


@runtime_checkable
class Counting(Protocol):
    """A plugin that counts in the store, where two that a request meets must not count as one."""

    @property
    def counts_as(self) -> str:
        """What those that count together have in common."""
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
    building = _Building(config, environ)
    head = building.build(config.plugins, "plugins")
    behind = [
        building.build(branch.plugins, f"chains[{position}].plugins", f"{branch.name}/", behind=head)
        for position, branch in enumerate(config.chains)
    ]
    if not building.problems:
        sections = [
            Section(built.plugins, built.places, name=branch.name, match=branch.match)
            for branch, built in zip(config.chains, behind, strict=True)
        ]
        try:
            chain = Chain(head.plugins, places=head.places, branches=sections)
        except ConfigError as error:
            raise config.wrong(error.problems) from None
        building.problems += branch_problems(config, chain)
        if not building.problems:
            return chain
    raise config.wrong(building.problems)


class _Built(NamedTuple):
    """Plugins of one list with their names, and where each stands in the configuration."""

    plugins: list[tuple[str, Plugin]]
    places: list[str]


class _Building:
    """Builds what a configuration names. problems: what was wrong so far."""

    def __init__(self, config: Config, environ: Mapping[str, str]) -> None:
        self.problems: list[str] = []
        self._config = config
        self._known = registries()
        self._context = self._known.context(config.folder, environ)
        self._units: set[str] = set()

    def build(
        self, tables: Sequence[Mapping[str, object]], path: str, prefix: str = "", behind: _Built | None = None
    ) -> _Built:
        """The plugins of the tables at `path`; their names begin with `prefix`. behind: those that requests met before."""
        built = _Built([], [])
        met = [plugin for _, plugin in behind.plugins] if behind is not None else []
        for position, table in enumerate(tables):
            where = f"{path}[{position}]"
            use = str(table["use"])
            try:
                plugin = build(self._find(use, where), table, where, context=self._context)
            except ConfigError as error:
                self.problems += error.problems
                continue
            except Exception as error:
                raise NotBuiltError(f"{where}: plugin {use!r}") from error
            self._judge(plugin, use, where, met)
            met.append(plugin)
            name = _unique(prefix + use.rpartition(":")[2], [name for name, _ in built.plugins])
            built.plugins.append((name, plugin))
            built.places.append(where)
        return built

    def _find(self, use: str, where: str) -> type[Plugin]:
        try:
            return self._known.plugins.find(use)
        except ConfigError as error:
            raise error.at(where) from error

    def _judge(self, plugin: Plugin, use: str, where: str, met: Sequence[Plugin]) -> None:
        """What a plugin that is sound by itself cannot do here, behind others."""
        if self._config.store.scheme == "memory":
            if plugin.needs_store:
                self.problems.append(
                    f"{where}: {use!r} keeps what must outlive this process, and store.url is memory:; "
                    "write embedded: for a store on this machine, or the redis:// of one that several share"
                )
            if isinstance(plugin, Storeless) and (why := plugin.storeless_problem()):
                self.problems.append(f"{where} ({use}): {why}")
        elif isinstance(plugin, Counting) and any(
            isinstance(other, Counting) and other.counts_as == plugin.counts_as for other in met
        ):
            self.problems.append(
                f"{where}: {use!r} would count each request once more as {plugin.counts_as!r}; give one of them "
                'another name, as in name = "second"'
            )
        if isinstance(plugin, Metered):
            if plugin.unit in self._units:
                self.problems.append(
                    f"{where}: {use!r} would charge for the same {plugin.unit} once more; remove one of them, and put the other "
                    "into [[plugins]] if it is for several chains"
                )
            self._units.add(plugin.unit)


def _whole(use: str, cls: type[Moderator]) -> type[Moderator]:
    """The class, if it can be built. Raises ConfigError."""
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise ConfigError(f"{use!r}: {cls.__name__} does not define {', '.join(missing)}")
    return cls


def _unique(name: str, taken: list[str]) -> str:
    same = sum(1 for other in taken if other == name or other.startswith(name + "#"))
    return f"{name}#{same + 1}" if same else name
