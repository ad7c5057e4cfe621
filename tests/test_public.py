"""What plugins are written against, and the rule of its change: docs/plugins.md, *What stays*.

tests/public.txt has every public name with its signature. A test that fails here says that a plugin of somebody may break:
what is added is written down, what is changed or gone stands in CHANGELOG.md under *Changed* or *Removed* too.
"""

import ast
import dataclasses
import enum
import importlib
import inspect
from pathlib import Path
from typing import get_origin

import pytest

import relay_plugins

PINNED = Path(__file__).with_name("public.txt")
# Modules, and what of each is public; None: all that `__all__` has.
PUBLIC = {
    "relay": None,
    "relay.text": ("Rewrite", "TextSink", "begun"),
    "relay.reading": None,
    "relay.thread": ("Thread", "aside"),
    "relay.testing.run": ("Ran", "Replied", "run"),
    "relay.testing.contract": ("contract", "keeps_contract"),
    "relay.testing.finding": ("Finding", "Report"),
    "relay.testing.reply": ("Lent",),
    "relay.testing.store": ("ScriptedStore", "embedded_store"),
    "relay.testing.moderator": ("After", "NEVER", "ScriptedModerator"),
    "relay.testing.clock": ("jump",),
    "relay.testing.served": ("Served", "served"),
    "relay.testing": None,
    "relay.moderator": None,
    "relay.keys": ("API_KEY", "ApiKey"),
    "relay.exchange": ("CALLER", "Operation", "STOPPED_BY", "VIOLATIONS"),
    "relay.plugin": ("OPERATIONS",),
    "relay.errors": ("Unavailable", "UpstreamError"),
    "relay.options": ("ConfigError",),
    "relay.told": ("Call", "Server", "Told"),
    "relay.store.port": ("Script", "Store", "StoreError"),
    # What hooks are given, without a name of its own to import.
    "relay.pure.request": ("ChatRequest",),
    "relay.pure.tally": ("Violation",),
    "relay.log": ("Logger",),
    "relay.events": ("Publisher",),
    "relay_plugins.pii": ("MASKED",),
    "relay_pytest": (
        *(
            "relay_contract",
            "relay_jump",
            "relay_run",
            "relay_store",
            "relay_tidy",
            "relay_unblocked",
            "relay_upstream",
        ),
    ),
}


def described(name, value):
    """Lines that say how it is called, and what it has."""
    if inspect.ismodule(value):
        return
    if isinstance(value, enum.EnumMeta):
        yield f"enum {name}"
        yield from (f"  {member.name}" for member in value)
        return
    if get_origin(value) is not None:
        yield name
        return
    if inspect.isclass(value):
        yield f"class {name}{signature(value)}"
        fields = {field.name for field in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else set()
        for member in sorted({*vars(value), *inherited(value)}):
            held = inspect.getattr_static(value, member)
            if not member.startswith("_") and member not in fields and not isinstance(value, enum.EnumMeta):
                yield f"  {member}{signature(held) if callable(held) else signature(getattr(held, '__func__', None))}"
        return
    yield f"{name}{signature(value) if callable(value) else ''}"


def inherited(cls):
    """What it has from classes of ours."""
    return {name for base in cls.__mro__[1:] if base.__module__.startswith("relay.") for name in vars(base)}


def signature(value):
    """Names and kinds, which have a default, and whether it is awaited; the rest is written differently by one Python and the next."""
    try:
        parameters = inspect.signature(value).parameters.values() if callable(value) else None
    except (TypeError, ValueError):
        return ""
    if parameters is None:
        return ""
    said = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY and not any("*" in other for other in said):
            said.append("*")
        stars = {each.VAR_POSITIONAL: "*", each.VAR_KEYWORD: "**"}.get(each.kind, "")
        said.append(f"{stars}{each.name}{'=…' if each.default is not each.empty else ''}")
    return f"({', '.join(said)})" + (" awaited" if inspect.iscoroutinefunction(value) else "")


def written():
    lines = []
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        lines += ["", module_name]
        for name in sorted(names or module.__all__):
            lines += (f"  {line}" for line in described(name, getattr(module, name)))
    return "\n".join(lines[1:]) + "\n"


def imported(path):
    """The objects that a module imports from the relay, by name, wherever in it that is written."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.partition(".")[0] == "relay":
            module = importlib.import_module(node.module)
            yield from ((f"{node.module}.{each.name}", getattr(module, each.name)) for each in node.names)
        if isinstance(node, ast.Import):
            assert [] == [each.name for each in node.names if each.name.partition(".")[0] == "relay"]


@pytest.mark.parametrize("name", ["audit", "cache", "otel", "pii", "webhook"])
def test_what_is_public_is_enough(name):
    """These plugins are written as anybody's are: with what is public, and nothing else of the relay."""
    modules = [(importlib.import_module(module), names) for module, names in PUBLIC.items()]
    public = [getattr(module, each) for module, names in modules for each in names or module.__all__]
    paths = [*Path(relay_plugins.__file__).parent.glob(f"{name}/**/*.py")]
    used = [(what, value) for path in paths for what, value in imported(path)]
    assert len(used) > 5
    assert [] == [what for what, value in used if not any(value is each for each in public)]


def test_what_is_public_stays():
    """`python tests/test_public.py > tests/public.txt` writes it down anew."""
    assert PINNED.read_text(encoding="utf-8") == written()


if __name__ == "__main__":
    print(written(), end="")
