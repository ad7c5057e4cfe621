"""The wheel holds its packages whole and nothing else, and runs on what requirements.lock names.

There are three locks: what runs the relay, what builds its wheel, and both of them with what tests it.
"""

import json
import subprocess
import sys
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]

ENTRY_POINTS = """
import json
from importlib.metadata import distribution
points = distribution("moderelay").entry_points
assert all(callable(point.load()) for point in points if point.group != "pytest11")  # which wants pytest
print(json.dumps(sorted([point.group, point.name] for point in points)))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed; gives what it prints."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The `bin` of an environment that has the wheel and the packages of the lock."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=True)
    pip = (folder / "bin" / "python", "-m", "pip", "--disable-pip-version-check", "install")
    run(*pip, "--only-binary", ":all:", "--require-hashes", "-r", ROOT / "requirements.lock", cwd=folder)
    run(*pip, "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


def files(package: Path) -> set[str]:
    """The files of a package as a wheel names them."""
    return {
        str(path.relative_to(package.parent)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


def pins(lock: str) -> set[str]:
    """The lines of a lock that pin a package."""
    return {line for line in (ROOT / lock).read_text().splitlines() if line[:1].isalnum()}


def test_the_locks_agree():
    """The tests run with the versions that run the relay and build it, and no lock says where packages come from."""
    assert pins("requirements.lock") | pins("requirements-build.lock") < pins("requirements-dev.lock")
    for lock in ROOT.glob("requirements*.lock"):
        assert "://" not in lock.read_text()


def test_it_holds_the_packages_and_nothing_else(wheel):
    """Every file of its packages is in it, data and type markers too; no test, no tool."""
    plugins = ROOT / "plugins"
    expected = files(ROOT / "relay") | files(plugins / "relay_plugins") | files(plugins / "relay_pytest")
    assert {"relay/py.typed", "relay_plugins/py.typed", "relay/pure/fold_table.json"} <= expected
    with ZipFile(wheel) as archive:
        assert expected == {name for name in archive.namelist() if ".dist-info/" not in name}
        assert [name for name in archive.namelist() if name.endswith("/licenses/LICENSE")]


def test_what_it_needs_is_locked(installed):
    """pip finds no requirement of the wheel missing, nor of a version that does not fit."""
    run(installed / "python", "-m", "pip", "check", cwd=installed)


def test_it_registers_what_is_built_in(installed):
    """The built-ins are found as a stranger's plugin would be, by entry points that load."""
    registered = json.loads(run(installed / "python", "-c", ENTRY_POINTS, cwd=installed))
    assert ["console_scripts", "relay"] in registered
    assert ["pytest11", "moderelay"] in registered
    moderators = [name for group, name in registered if group == "relay.moderators"]
    assert ["lexicon", "tencent", "webhook"] == moderators
    plugins = [name for group, name in registered if group == "relay.plugins"]
    assert "audit auth bingcheng cache history moderation otel parameters pii quota rate_limit".split() == plugins


def test_it_keeps_keys(installed, tmp_path):
    """The scripts are in it, and the server that comes with it runs them."""
    (tmp_path / "relay.toml").write_text(run(installed / "relay", "init", cwd=tmp_path))
    secret = run(installed / "relay", "keys", "create", "shop", cwd=tmp_path).strip()
    assert secret.startswith("sk-")
    assert "shop" in run(installed / "relay", "keys", "list", cwd=tmp_path)


def test_it_serves(installed, run_demo, curl):
    """`relay demo` runs from it, and a phrase does not come through."""
    with run_demo(installed / "relay") as demo:
        reply = demo.curl()
    assert "content_filter" in reply.stdout
    assert "fruit" not in reply.stdout
