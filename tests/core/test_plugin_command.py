"""`relay plugin new`: a package that passes its own tests, and is found when it is installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(name: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["plugin", "new", name])
    return result.exit_code, result.output


def ran(*words: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words],
        check=False,
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(("name", "title"), [("swap", "Swap"), ("word-count_2", "WordCount2")])
def test_it_passes_its_tests(folder: Path, name: str, title: str):
    """At once, with warnings as errors; and its configuration is sound."""
    status, said = new(name)
    assert 0 == status, said
    package = folder / f"relay-{name.replace('_', '-')}"
    assert f"cd {package.name}" in said
    assert f"relay plugin check {name} -o word=cat" in said
    tested = ran("-m", "pytest", "-q", "-W", "error", "-p", "no:schemathesis", "-p", "no:cacheprovider", cwd=package)
    assert 0 == tested.returncode, tested.stdout
    assert "6 passed" in tested.stdout
    [(registered, target)] = tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"][
        "relay.plugins"
    ].items()
    assert (name, title) == (registered, target.rpartition(":")[2])


def test_it_is_found_when_it_is_installed(folder: Path):
    """By pip, under its name, with its options."""
    assert 0 == new("swap")[0]
    installed = ran(
        "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-build-isolation", "--no-deps", "--no-index",
        "--target", str(folder / "site"), str(folder / "relay-swap"),
        cwd=folder,
    )  # fmt: skip
    assert 0 == installed.returncode, installed.stderr
    (folder / "relay.toml").write_text(
        '[[upstreams]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1"\nmodels = ["*"]\n'
        '[[plugins]]\nuse = "swap"\nword = "cat"\nby = "dog"\n'
    )
    path = os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH", ""))))
    checked = ran("-m", "relay", "check", cwd=folder, PYTHONPATH=path)
    assert "runs in  on_request, on_stream; serves chat" in checked.stdout, checked.stderr
    listed = ran("-m", "relay", "plugins", cwd=folder, PYTHONPATH=path)
    assert "swap  (relay-swap 0.1.0)\n    Puts one word in the place of another in every reply" in listed.stdout


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Swap", "no name for a plugin"), ("../x", "no name for a plugin"), ("a" * 41, "no name for a plugin"),
        ("auth", "is installed already"), ("lexicon", "is installed already"),
        ("reject", "calls something of its own"), ("text-sink", "calls something of its own"),
        ("pytest", "calls something of its own"), ("plugins", "calls something of its own"),
    ],
)  # fmt: skip
def test_names_that_cannot_be(folder: Path, name: str, says: str):
    status, said = new(name)
    assert 2 == status
    assert says in said
    assert [] == list(folder.iterdir())


def test_what_is_there_stays(folder: Path):
    (folder / "relay-swap").mkdir()
    status, said = new("swap")
    assert (1, True) == (status, "is there already" in said)
    assert [] == list((folder / "relay-swap").iterdir())
