"""`relay plugins`: what is installed, with its options."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from relay.assembly import registries
from relay.cli import main
from relay.registry import Registered, Registry


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch):
    """`status, out, err = listed(…)`."""
    monkeypatch.setattr("sys.path", [*__import__("sys").path])

    def run(*words: str) -> tuple[int, str, str]:
        result = CliRunner().invoke(main, ["plugins", *words])
        return result.exit_code, result.stdout, result.stderr

    return run


def test_all_that_is_installed(listed):
    """Each with who brings it, what it is, and its options."""
    status, out, _ = listed()
    assert 0 == status
    known = registries()
    for entry in (*known.plugins.names(), *known.moderators.names()):
        assert f"\n  {entry.name}  ({entry.distribution})\n" in out
    assert "    Refuses requests that are too many, and says in every reply how many are left.\n" in out
    assert "requests_per_minute    600  (int ≥ 1 ≤ 100000000)\n" in out
    assert "moderators      required  ([{ use = Moderator, … }, …])\n" in out


def test_one(listed):
    """All that it says of itself."""
    status, out, _ = listed("tencent")
    assert 0 == status
    assert "session: tell the service which windows belong to one reply" in out
    assert '  region            "ap-guangzhou"  (str)\n' in out
    assert "  secret_id         required  (secret)\n" in out


def test_one_in_this_folder(listed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "listed_here.py").write_text('from relay import Plugin\nclass Bare(Plugin):\n    "Does nothing."\n')
    status, out, _ = listed("listed_here:Bare")
    assert (0, "listed_here:Bare\n\n  Does nothing.\n\n  no options\n") == (status, out)


def test_one_that_there_is_not(listed):
    status, out, err = listed("auht")
    assert (1, "") == (status, out)
    assert "did you mean 'auth'?" in err


def test_one_that_cannot_be_imported(listed, monkeypatch: pytest.MonkeyPatch):
    """Is told as that, beside the others."""
    broken = Registered("broken", "stranger 1.0", "no_such_module:Broken")
    monkeypatch.setattr(Registry, "names", lambda _: (broken,))
    monkeypatch.setattr(Registry, "find", lambda self, use: self._load(broken.target, use))
    status, out, _ = listed()
    assert 0 == status
    assert "  broken  (stranger 1.0)\n    cannot be used: broken: module no_such_module cannot be imported" in out
