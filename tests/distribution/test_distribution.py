"""A plugin that is none of ours: in a distribution of its own, installed by pip, found by its name, checked and served."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from relay.testing import ScriptedUpstream, answers

SOURCE = Path(__file__).parent / "relay-word-count"
PATIENCE_S = 60.0

CONFIG = """\
[server]
port = 0
[admin]
port = 0
[store]
url = "memory:"
[[upstreams]]
name = "main"
base_url = "{base_url}"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{{ name = "shop", key = "sk-shop" }}]
[[plugins]]
use = "word_count"
max_prompt_words = 3
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Its source, where nothing of the relay's tests is."""
    return Path(shutil.copytree(SOURCE, tmp_path_factory.mktemp("project") / SOURCE.name))


@pytest.fixture(scope="module")
def environ(project, tmp_path_factory):
    """The environment of a process in which pip has installed it."""
    site = tmp_path_factory.mktemp("site")
    installed = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-build-isolation"),
            *("--no-index", "--no-deps", "--target", str(site), str(project)),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert installed.returncode == 0, installed.stderr
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH", ""))))
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def said(environ, tmp_path):
    """What `python -m …` prints, in a folder with a relay.toml."""
    (tmp_path / "relay.toml").write_text(CONFIG.format(base_url="http://127.0.0.1:1/v1"))

    def run(*words, cwd=tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", *words],
            check=False,
            cwd=cwd,
            env=environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_it_is_listed(said):
    listed = said("relay", "plugins")
    assert "word_count  (relay-word-count 1.2.0)\n    Logs how many words each reply has" in listed
    assert "max_prompt_words  1000  (int)" in listed


def test_it_stands_in_a_chain(said):
    checked = said("relay", "check")
    assert "word_count\n    runs in  lifespan, on_request, on_stream, on_end; serves chat" in checked
    assert "gives    word_count.words" in checked


def test_it_is_sound(said):
    checked = said("relay", "plugin", "check", "word_count", "--config", "relay.toml")
    assert "relay_word_count/__init__.py (relay-word-count 1.2.0)" in checked
    assert "WordCount(max_prompt_words=3)" in checked
    assert "contract  kept" in checked
    assert "WRONG" not in checked


def test_its_own_tests_pass(said, project):
    """With warnings as errors; their fixtures are those that the relay gives to pytest."""
    tested = said("pytest", "-q", "-W", "error", "-p", "no:schemathesis", "-p", "no:cacheprovider", cwd=project)
    assert "8 passed" in tested


async def test_it_is_served(environ, tmp_path):
    """By a relay over sockets: it refuses, sets a header and counts."""
    async with ScriptedUpstream(answers(["One t", "wo three."])) as upstream:
        (tmp_path / "relay.toml").write_text(CONFIG.format(base_url=upstream.base_url))
        relay = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "relay", "serve"), cwd=tmp_path, env=environ, stdout=subprocess.PIPE
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                port = (await line(relay, "serving"))["port"]
                assert await asked(port, "Count to three") == (200, "3")
                assert (await line(relay, "words"))["words"] == 3
                assert (await line(relay, "request"))["outcome"] == "completed"
                assert await asked(port, "Count to three hundred") == (400, None)
                assert (await line(relay, "request"))["code"] == "too_many_words"
                relay.send_signal(signal.SIGTERM)
                await relay.communicate()
                assert relay.returncode == 0
        finally:
            if relay.returncode is None:
                relay.kill()
                await relay.communicate()


async def line(relay, event):
    """The next line of its log that tells of such an event."""
    while True:
        told = json.loads(await relay.stdout.readline())
        if told["event"] == event:
            return told


async def asked(port, content):
    """The status, and what the plugin says in its header."""
    chat = {"model": "m", "messages": [{"role": "user", "content": content}], "stream": True}
    url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": "Bearer sk-shop"}
    async with aiohttp.ClientSession() as session, session.post(url, json=chat, headers=headers) as response:
        await response.read()
        return response.status, response.headers.get("x-prompt-words")
