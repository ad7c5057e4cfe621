"""Imports obey the arrows: what a file of the source may name, read from the source itself."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Who may name a library, besides nobody. A library that is not listed here may be named anywhere outside relay.pure.
ONLY_IN: Mapping[str, frozenset[str]] = {
    "aiohttp": frozenset(
        f"relay.{name}"
        for name in (
            "acceptor admin admin_api admin_events admin_reload app body connections consultant cors endpoint head http listener protocol refusal "
            "reply request serve upstream workers writer"
        ).split()
    )
    | {
        "relay.commands.following",
        "relay.commands.reload",
        "relay.testing.load",
        "relay_plugins.tencent.service",
        "relay_plugins.tencent.fake.server",
        "relay_plugins.webhook.endpoint",
    },
    "aiohttp_sse_client": frozenset({"relay.commands.following"}),
    "prometheus_client": frozenset({"relay.metrics"})
    | frozenset(
        f"relay.metrics.{name}"
        for name in "cells collectors exposition journal moderation requests store workers".split()
    ),
    "structlog": frozenset({"relay.log"}),
    "redis": frozenset({"relay.store.redis", "relay.store.link", "relay.store.places", "relay.store.opening"}),
    "tomllib": frozenset({"relay.commands.plugin_check", "relay.config", "relay.pure.toml_line"}),
    "click": frozenset({"relay.cli", "relay.demo"})
    | frozenset(
        f"relay.commands.{name}"
        for name in "attached audit check keys options plugin plugin_check plugins quota reload running tail".split()
    ),
    "uvloop": frozenset({"relay.cli"}),
    "cachetools": frozenset({"relay.verdicts", "relay_plugins.cache.entries"}),
    "ahocorasick_rs": frozenset({"relay_plugins.lexicon.automaton"}),
    "opentelemetry": frozenset(f"relay_plugins.otel.{name}" for name in ("context", "spans", "tracing")),
    "quicktok": frozenset({"relay_plugins.history.tokenizer"}),
    "tencentcloud": frozenset(
        f"relay_plugins.tencent.{name}" for name in ("answer", "faults", "moderator", "service", "signature")
    ),
}

# Pure code reads no clock, opens no socket and waits for nothing. (A table may be read from a file when it is imported.)
NEVER_IN_PURE = frozenset(
    "aiohttp asyncio concurrent datetime multiprocessing random secrets selectors signal socket ssl "
    "subprocess threading time uvloop".split()
)

# Outermost first. A file imports from its own layer and from those below it.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"relay.__main__"}),
    frozenset({"relay.cli"}),
    frozenset(
        f"relay.commands{name}"
        for name in (
            "",
            ".audit",
            ".check",
            ".keys",
            ".plugin",
            ".plugin_check",
            ".plugins",
            ".quota",
            ".reload",
            ".tail",
        )
    ),
    frozenset(f"relay.commands.{name}" for name in "attached following options running table".split()),
    frozenset({"relay.demo", "relay.scaffold", "relay.starter"}),
    frozenset({"relay.workers", "relay.worker"}),
    frozenset({"relay.supervisor"}),
    frozenset({"relay.forwarding"}),
    frozenset({"relay.control"}),
    frozenset({"relay.serve"}),
    frozenset({"relay.generations", "relay.reloading", "relay.signals"}),
    frozenset({"relay.app", "relay.admin", "relay.acceptor"}),
    frozenset({"relay.admin_openapi"}),
    frozenset({"relay.admin_events", "relay.admin_reload"}),
    frozenset({"relay.admin_api"}),
    frozenset({"relay.administration", "relay.reports"}),
    frozenset({"relay.open_reply"}),
    frozenset({"relay.generation", "relay.silence"}),
    frozenset(
        {
            "relay.balancer",
            "relay.endpoint",
            "relay.refusal",
            "relay.upstream",
            "relay.http",
            "relay.listener",
            "relay.writer",
            "relay.delivery",
            "relay.usage",
            "relay.cors",
            "relay.uncaught",
        }
    ),
    frozenset({"relay.assembly"}),
    frozenset({"relay.effect"}),
    frozenset({"relay.chain", "relay.gate", "relay.degraded"}),
    frozenset({"relay.fitting"}),
    frozenset({"relay.section"}),
    frozenset({"relay.judge"}),
    frozenset({"relay.consultant"}),
    frozenset({"relay.labels", "relay.verdicts"}),
    frozenset({"relay.text", "relay.reading"}),
    frozenset({"relay.journal", "relay.moderator", "relay.plugin", "relay.audit", "relay.known"}),
    frozenset({"relay.keyring"}),
    frozenset({"relay.keys"}),
    frozenset({"relay.store.opening"}),
    frozenset({"relay.store.pulse", "relay.store.redis", "relay.store.embedded"}),
    frozenset({"relay.store.places", "relay.store.home"}),
    frozenset({"relay.store.link"}),
    frozenset({"relay.config", "relay.registry", "relay.watch", "relay.watchdog"}),
    frozenset({"relay.match"}),
    frozenset({"relay.options", "relay.secret", "relay.thread"}),
    frozenset(
        {
            "relay.head",
            "relay.exchange",
            "relay.metrics",
            "relay.lag",
            "relay.log",
            "relay.body",
            "relay.connections",
            "relay.protocol",
            "relay.reply",
            "relay.routes",
            "relay.budget",
        }
    ),
    frozenset({"relay.journal_file", "relay.ledger", "relay.limits", "relay.account"}),
    frozenset(
        {
            "relay.metrics.journal",
            "relay.metrics.moderation",
            "relay.metrics.requests",
            "relay.metrics.store",
            "relay.metrics.workers",
        }
    ),
    frozenset({"relay.metrics.collectors", "relay.metrics.exposition", "relay.metrics.reference"}),
    frozenset({"relay.metrics.cells"}),
    frozenset({"relay.metrics.families"}),
    frozenset(
        {
            "relay.errors",
            "relay.request",
            "relay.told",
            "relay.upstream_headers",
            "relay.turnstile",
            "relay.events",
            "relay.failpoint",
            "relay.store",
            "relay.store.port",
            "relay.store.address",
            "relay.store.leash",
        }
    ),
)
# Below all of them: relay.pure. Beside them: relay.testing, which may use anything and is used by the demo and `relay plugin check` only.


def module_name(path: Path) -> str:
    """`relay/pure/sse.py` as `relay.pure.sse`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts[1:] if parts[0] == "plugins" else parts
    return ".".join(parts).removesuffix(".__init__")


def imported(tree: ast.Module) -> Iterator[str]:
    """The modules that a source imports when it runs, wherever in it; what is there for type checkers alone is not."""
    todo: list[ast.AST] = [tree]
    while todo:
        node = todo.pop()
        match node:
            case ast.Import(names):
                yield from (name.name for name in names)
            case ast.ImportFrom(module=str(module), level=0, names=names):
                # `from relay.testing import frames` names a module too; a class is cut off below.
                yield from (f"{module}.{name.name}" for name in names)
            case ast.ImportFrom():
                raise AssertionError("relative imports say less than absolute ones")
            case ast.If(test=ast.Name("TYPE_CHECKING"), orelse=rest):
                todo += rest
                continue
        todo += ast.iter_child_nodes(node)


SOURCES = {
    module_name(path): path
    for folder in ("relay", "plugins/relay_plugins")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
IMPORTS = {name: sorted(set(imported(ast.parse(path.read_text())))) for name, path in SOURCES.items()}

every_module = pytest.mark.parametrize("module", SOURCES)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer(name: str) -> int | None:
    """The place of a module, or of what stands in it, in `LAYERS`."""
    return next(
        (place for place, modules in enumerate(LAYERS) if name in modules or name.rpartition(".")[0] in modules), None
    )


def test_sources_are_found() -> None:
    """The tables below are about files that there are."""
    assert {"relay.pure.sse", "relay.app", "relay_plugins.auth", "relay_plugins.lexicon"} <= set(SOURCES)
    assert set().union(*LAYERS, *ONLY_IN.values()) <= set(SOURCES)


def test_every_file_of_the_core_has_a_layer() -> None:
    """A new file of the core is put in its place here."""
    free = {name for name in SOURCES if not within(name, "relay.pure") and not within(name, "relay.testing")}
    assert {name for name in free if within(name, "relay")} - {"relay"} == set().union(*LAYERS)


@every_module
def test_arrows(module: str) -> None:
    """A file imports nothing from a layer above its own."""
    own = layer(module)
    if own is not None:
        above = [name for name in IMPORTS[module] if (place := layer(name)) is not None and place < own]
        assert above == []


@every_module
def test_pure(module: str) -> None:
    """relay.pure names nothing of the relay but itself, and nothing that waits or reads a clock."""
    if within(module, "relay.pure"):
        outside = [name for name in IMPORTS[module] if within(name, "relay") and not within(name, "relay.pure")]
        assert outside == []
        assert not NEVER_IN_PURE.intersection(name.partition(".")[0] for name in IMPORTS[module])
        assert not any(
            isinstance(node, ast.Await | ast.AsyncFunctionDef)
            for node in ast.walk(ast.parse(SOURCES[module].read_text()))
        )


@every_module
def test_core_knows_no_plugin(module: str) -> None:
    """The relay never names a plugin of its own: they are found as a stranger's are."""
    if within(module, "relay"):
        assert [name for name in IMPORTS[module] if within(name, "relay_plugins")] == []


@every_module
def test_plugins_use_the_interface(module: str) -> None:
    """Plugins name nothing of what serves them: no app, no chain, no writer."""
    if within(module, "relay_plugins"):
        inside = [
            name for name in IMPORTS[module] if (place := layer(name)) is not None and place < layer("relay.gate")
        ]
        assert inside == []
        assert not any(within(name, "relay.chain") for name in IMPORTS[module])


@every_module
def test_libraries(module: str) -> None:
    """Each of these libraries is named in as few files as stand in the table, and in each of those."""
    named = {name.partition(".")[0] for name in IMPORTS[module]}
    for library, files in ONLY_IN.items():
        assert (library in named) is (module in files), library


@every_module
def test_testing_is_beside(module: str) -> None:
    """The fakes are used by the demo and by the check of plugins, and by nothing else."""
    if not within(module, "relay.testing") and module not in ("relay.demo", "relay.commands.plugin_check"):
        assert [name for name in IMPORTS[module] if within(name, "relay.testing")] == []


def test_testing_is_not_loaded() -> None:
    """Where the relay serves, the fakes are not even imported; and pytest's entry point brings nothing of the relay."""
    for module, others in (("relay.cli", "relay.testing"), ("relay_pytest", "relay")):
        looks = f"import sys, {module}; sys.exit(sum((name + '.').startswith('{others}.') for name in sys.modules))"
        assert subprocess.run([sys.executable, "-c", looks], check=False).returncode == 0


@every_module
def test_no_except_star(module: str) -> None:
    """Up to Python 3.11.3, Debian 12's, what is raised in one comes out as a group: errors lose their answers."""
    assert not any(isinstance(node, ast.TryStar) for node in ast.walk(ast.parse(SOURCES[module].read_text("utf-8"))))
