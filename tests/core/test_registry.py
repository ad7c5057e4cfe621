import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from relay.options import ConfigError, Options
from relay.registry import Registered, Registry

GROUP = "relay_test.parts"
PARTS = """
from relay.options import Options

class Loud(Options):
    volume: int = 3

class Odd:
    pass

number = 3
"""


class Install(Protocol):
    def __call__(self, name: str, points: dict[str, str], modules: dict[str, str] | None = None) -> None: ...


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Leaves a distribution as pip would, with its entry points and modules; the modules are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def distribution(name: str, points: dict[str, str], modules: dict[str, str] | None = None) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = "".join(f"{point} = {target}\n" for point, target in points.items())
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
        for module, text in (modules or {}).items():
            (tmp_path / f"{module}.py").write_text(text)

    yield distribution
    for module in set(sys.modules) - before:
        del sys.modules[module]


def registry() -> Registry[Options]:
    return Registry(GROUP, Options)


def problem(use: str) -> str:
    with pytest.raises(ConfigError) as caught:
        registry().find(use)
    return str(caught.value)


@pytest.mark.parametrize("use", ["loud", "louder", "loud_parts:Loud"])
def test_find(install: Install, use: str) -> None:
    """A class is found by its entry point, with or without an extra, and as module:Class."""
    install("loud-parts", {"loud": "loud_parts:Loud", "louder": "loud_parts:Loud [fast]"}, {"loud_parts": PARTS})
    assert registry().find(use) is sys.modules["loud_parts"].Loud


def test_find_without_registration(install: Install) -> None:
    """A class that no distribution registers is found as module:Class."""
    install("empty", {}, {"loud_parts": PARTS})
    assert registry().find("loud_parts:Loud").__name__ == "Loud"


def test_names(install: Install) -> None:
    """What is registered is listed by name with its distribution and target, and nothing is imported for it."""
    install("z-parts", {"b": "z_parts:B"}, {"z_parts": "raise SystemError"})
    install("a-parts", {"c": "a_parts.deep:C [extra]", "a": "a_parts:A"})
    assert registry().names() == (
        Registered("a", "a-parts 1.0", "a_parts:A"),
        Registered("b", "z-parts 1.0", "z_parts:B"),
        Registered("c", "a-parts 1.0", "a_parts.deep:C"),
    )
    assert "z_parts" not in sys.modules


def test_group(install: Install) -> None:
    """An entry point of another group is not seen."""
    install("loud-parts", {"loud": "loud_parts:Loud"})
    assert Registry("relay_test.others", Options).names() == ()


def test_built_anew(install: Install) -> None:
    """A registry knows what was installed when it was built; the next one knows more."""
    early = registry()
    install("loud-parts", {"loud": "loud_parts:Loud"})
    assert early.names() == ()
    assert len(registry().names()) == 1


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        ("luod", "'luod' is not registered in relay_test.parts; did you mean 'loud'? registered: loud, soft; "
         "a class that is not registered is named as module:Class"),
        ("zebra", "'zebra' is not registered in relay_test.parts; registered: loud, soft; "
         "a class that is not registered is named as module:Class"),
        ("loud_parts:Lowd", "loud_parts:Lowd: module loud_parts has no Lowd; did you mean 'Loud'?"),
        ("loud_parts:Xyz", "loud_parts:Xyz: module loud_parts has no Xyz; there are 'Loud', 'Odd'"),
        ("loud_parts:Odd", "loud_parts:Odd: loud_parts:Odd is not a subclass of relay.options.Options"),
        ("loud_parts:number", "loud_parts:number: loud_parts:number is not a subclass of relay.options.Options"),
        ("loud_parts:", "loud_parts:: 'loud_parts:' is not of the form module:Class"),
        (":Loud", ":Loud: ':Loud' is not of the form module:Class"),
        ("absent_module:Loud", "absent_module:Loud: module absent_module cannot be imported: "
         "ModuleNotFoundError: No module named 'absent_module'"),
        ("soft", "'soft' of loud-parts 1.0: 'loud_parts' is not of the form module:Class"),
    ],
)  # fmt: skip
def test_not_found(install: Install, use: str, expected: str) -> None:
    """A `use` that names no class is refused with what was probably meant, or with what there is."""
    install("loud-parts", {"loud": "loud_parts:Loud", "soft": "loud_parts"}, {"loud_parts": PARTS})
    assert problem(use) == expected


def test_nothing_registered() -> None:
    """Where nothing is registered, the error says so."""
    assert "; registered: nothing; " in problem("loud")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import not_installed_here", "ModuleNotFoundError: No module named 'not_installed_here'"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("def x(:", "SyntaxError: invalid syntax (broken_parts.py, line 1)"),
        ("from relay.options import Nothing", "ImportError: cannot import name 'Nothing' from 'relay.options'"),
    ],
)
def test_import_fails(install: Install, text: str, error: str) -> None:
    """A module that fails to import is named with its distribution and the exception."""
    install("broken-parts", {"broken": "broken_parts:Broken"}, {"broken_parts": text})
    expected = f"'broken' of broken-parts 1.0: module broken_parts cannot be imported: {error}"
    said = problem("broken")
    assert said.startswith(expected)
    assert "SyntaxError" in said or said.endswith("broken_parts.py:1)")


def test_one_name_twice(install: Install) -> None:
    """A name that two distributions register is refused with both; the class can still be named."""
    install("loud-parts", {"loud": "loud_parts:Loud"}, {"loud_parts": PARTS})
    install("other-parts", {"loud": "other_parts:Loud"})
    assert problem("loud") == (
        "'loud' is registered in relay_test.parts by loud-parts 1.0 (loud_parts:Loud) and by "
        "other-parts 1.0 (other_parts:Loud); uninstall one, or name the class as module:Class"
    )
    assert registry().find("loud_parts:Loud").__name__ == "Loud"
