"""What the tests against other people's programs share: the programs, and a `relay demo` run as a user runs it.

Nothing here is imported from the relay: it is a process, and what is known about it is what it prints.
"""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LAST_LINE = "Ctrl-C stops it."
PACKAGES = {"curl": "curl", "promtool": "prometheus"}


def program(name: str) -> str:
    """The path of a program; a failure that says what to install where there is none."""
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is needed: apt-get install {PACKAGES[name]}")
    return path


@pytest.fixture(scope="session")
def curl() -> str:
    return program("curl")


@pytest.fixture(scope="session")
def promtool() -> str:
    return program("promtool")


@dataclass(frozen=True)
class Demo:
    """A `relay demo` that runs, known by what it printed."""

    printed: str

    @property
    def admin(self) -> str:
        """The address of the admin listener, without a path."""
        return re.search(r"admin +(http://[^/]+)/", self.printed)[1]

    @property
    def curl_line(self) -> str:
        """The command to try, on one line or on several that end with a backslash."""
        return re.search(r"^curl (.+\\\n)*.+$", self.printed, re.MULTILINE)[0]

    @property
    def python_lines(self) -> str:
        return re.search(r"^from openai .+?\n\n", self.printed, re.MULTILINE | re.DOTALL)[0]

    def curl(self) -> subprocess.CompletedProcess[str]:
        """Run the curl line as it is printed."""
        return subprocess.run(["sh", "-c", self.curl_line], capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def run_demo(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], AbstractContextManager[Demo]]:
    """Run the `demo` of a `relay` command while a block runs. It must end well, and have nothing to complain about."""

    @contextmanager
    def run(relay: Path) -> Iterator[Demo]:
        folder = tmp_path_factory.mktemp("demo")  # not a source tree: nothing of the relay can be imported from there
        log = folder / "log"
        command = [relay, "demo", "--port", "0", "--admin-port", "0"]
        with (
            log.open("wb") as stderr,
            subprocess.Popen(
                command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
            ) as process,
        ):
            try:
                printed = ""
                for line in process.stdout:
                    printed += line
                    if line.startswith(LAST_LINE):
                        break
                assert LAST_LINE in printed, log.read_text()
                yield Demo(printed)
            finally:
                process.terminate()
        assert process.returncode == 0, log.read_text()
        assert {"info"} == {json.loads(line)["level"] for line in log.read_text().splitlines()}

    return run


@pytest.fixture(scope="session")
def demo(run_demo) -> Iterator[Demo]:
    """The demo of the environment that runs the tests."""
    with run_demo(Path(sys.executable).with_name("relay")) as demo:
        yield demo
