"""The locks hold all that the oldest Python asks for, whichever Python they were made with."""

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
# `requires-python`, and what Debian 12 ships: packages ask for backports below 3.11.3.
OLDEST = {"python_version": "3.11", "python_full_version": "3.11.0", "implementation_version": "3.11.0"}


def locked(name: str) -> set[str]:
    return {canonicalize_name(found[1]) for found in re.finditer(r"(?m)^([\w.-]+)==", (ROOT / name).read_text("utf-8"))}


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_what_locked_packages_need_is_locked(lock: str) -> None:
    """With `--require-hashes` pip installs nothing that is not."""
    names = locked(lock)
    environment = {**default_environment(), **OLDEST, "extra": ""}
    missing = {}
    for name in names:
        for line in distribution(name).requires or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment):
                missing[canonicalize_name(needed.name)] = name
    assert not {needed: by for needed, by in missing.items() if needed not in names}
