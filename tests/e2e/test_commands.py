"""The command `relay`, as it is typed: what it prints can be run, what is wrong is named, and signals are heard."""

import asyncio
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import aiohttp
import pytest
from click.testing import CliRunner

from relay.cli import main
from relay.testing import Gate, Head, Script, ScriptedUpstream, Send, frames, streamed

PATIENCE_S = 20.0

SOUND = """\
[server]
port = 0
[admin]
port = 0
[store]
url = "memory:"
[[upstreams]]
name = "main"
base_url = "http://127.0.0.1:9/v1"
models = ["*"]
[[plugins]]
use = "auth"
keys = [{ name = "k", key = "sk-0123456789" }]
"""

# An edit of the sound configuration → what the complaint names.
BROKEN = {
    "no TOML": (SOUND + "=", ("relay.toml", "line 14")),
    "a misspelt table": (SOUND.replace("[server]", "[sever]"), ("sever", "server")),
    "a misspelt field": (SOUND.replace("port = 0\n[admin]", "prot = 0\n[admin]"), ("server", "prot", "port")),
    "a wrong type": (SOUND.replace("port = 0\n[admin]", 'port = "x"\n[admin]'), ("server.port",)),
    "a port that is none": (SOUND.replace("port = 0\n[admin]", "port = 70000\n[admin]"), ("server.port", "65535")),
    "an unknown plugin": (SOUND.replace('"auth"', '"aut"'), ("plugins[0]", "aut", "auth")),
    "a misspelt option": (SOUND.replace("keys =", "key ="), ("plugins[0]", "key", "keys")),
    "a module that is none": (SOUND.replace('"auth"', '"nowhere:Class"'), ("plugins[0]", "nowhere")),
    "a variable that is not set": (
        SOUND.replace('"sk-0123456789"', '{ env = "RELAY_TEST_UNSET" }'),
        ("plugins[0]", "RELAY_TEST_UNSET"),
    ),
    "no upstream": (SOUND.split("[[upstreams]]", maxsplit=1)[0], ("upstreams",)),
    "an upstream that is no URL": (SOUND.replace("http://127.0.0.1:9/v1", "127.0.0.1:9"), ("upstreams[0]", "base_url")),
    "an unknown store": (SOUND.replace("memory:", "memroy:"), ("store", "memory")),
    "moderation without moderators": (SOUND + '[[plugins]]\nuse = "moderation"\n', ("plugins[1]", "moderators")),
    "an unknown moderator": (
        SOUND + '[[plugins]]\nuse = "moderation"\nmoderators = [{ use = "lexcion", words = ["x"] }]\n',
        ("plugins[1]", "lexcion", "lexicon"),
    ),
}

# What `relay init --profile` writes: the plugins in the order of the file, and the models that the page names.
CHAINS = {
    "talkbot": ["auth", "parameters", "rate_limit", "quota", "moderation", "history"],
    "bingcheng": ["auth", "bingcheng", "rate_limit", "quota", "moderation", "history"],
}
MODELS = {
    "talkbot": (
        "gpt-3.5-turbo gpt-3.5-turbo-0301 gpt-3.5-turbo-0613 gpt-3.5-turbo-16k gpt-3.5-turbo-16k-0613 "
        "gpt-3.5-turbo-1106 gpt-3.5-turbo-0125 gpt-4 gpt-4-0613 gpt-4-1106-preview gpt-4-turbo-preview "
        "gpt-4-0125-preview gpt-4-turbo-2024-04-09"
    ).split(),
    "bingcheng": ["gpt-3.5-turbo", "gpt-3.5-turbo-0301"],
}


class Process:
    """`relay …` in a process of its own; what it prints goes to a file."""

    def __init__(self, folder, *words):
        self._printed_to = folder / "printed"
        self._errors_to = folder / "errors"
        with self._printed_to.open("wb") as printed, self._errors_to.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "relay", *words], cwd=folder, stdout=printed, stderr=errors
            )

    @property
    def printed(self):
        return self._printed_to.read_text()

    @property
    def errors(self):
        return self._errors_to.read_text()

    @property
    def log(self):
        return [json.loads(line) for line in (self.printed + self.errors).splitlines() if line.startswith("{")]

    def waits(self, condition):
        """Wait until the condition holds; fails if it does not in time, or the process ends."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert self._process.poll() is None, self.errors
            assert time.monotonic() < deadline, self.printed + self.errors
            time.sleep(0.01)

    def signal(self, number):
        self._process.send_signal(number)

    def ends(self):
        """Wait for the end; its status."""
        return self._process.wait(PATIENCE_S)

    def kill(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture
def run(tmp_path):
    """Start a process; one that is left at the end of the test is killed."""
    started = []

    def start(*words):
        process = Process(tmp_path, *words)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A demo that runs for all tests which only ask it."""
    process = Process(tmp_path_factory.mktemp("demo"), "demo", "--port", "0", "--admin-port", "0")
    process.waits(lambda: "Ctrl-C" in process.printed)
    yield process
    process.kill()


class TestDemo:
    def test_the_curl_line(self, demo):
        """As printed; where there is no curl, the same request by other means."""
        [line] = [line for line in demo.printed.splitlines() if line.startswith("curl ")]
        if shutil.which("curl"):
            answer = subprocess.run(line, shell=True, capture_output=True, timeout=PATIENCE_S, check=True).stdout
        else:
            _, _, url, *options = shlex.split(line)
            given = list(zip(options[::2], options[1::2], strict=True))
            headers = dict(value.split(": ") for name, value in given if name == "-H")
            [data] = [value.encode() for name, value in given if name == "-d"]
            with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=PATIENCE_S) as response:
                answer = response.read()
        assert answer.endswith(b"data: [DONE]\n\n")
        assert b'"finish_reason":"content_filter"' in answer
        assert b"fruit" not in answer

    def test_the_lines_for_the_sdk(self, demo, tmp_path):
        """As printed, in a file."""
        lines = demo.printed.split("(pip install openai):\n\n")[1].split("\n\nCtrl-C")[0]
        script = tmp_path / "try.py"
        script.write_text(lines)
        ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=PATIENCE_S, check=True)
        assert "It begins harmlessly, then somebody mentions a[content_filter]\n" == ran.stdout.replace(" [", "[")
        assert 6 == len(lines.splitlines())

    @pytest.mark.parametrize(
        ("model", "stream", "status", "fails"),
        [
            ("demo-hello", True, 200, False),
            ("demo-hello", False, 200, False),
            ("demo-broken", True, 200, True),
            ("demo-broken", False, 502, True),
        ],
    )
    async def test_its_models_answer(self, demo, model, stream, status, fails):
        """Streamed and not; the broken one with an error."""
        [url] = [line.split()[-1] for line in demo.printed.splitlines() if "  API " in line]
        [key] = [line.split()[-1] for line in demo.printed.splitlines() if "  key " in line]
        headers = {"Authorization": f"Bearer {key}"}
        asked = {"model": model, "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
        async with aiohttp.ClientSession() as client:
            async with client.post(url + "/chat/completions", json=asked, headers=headers) as response:
                answer = await response.read()
        assert (status, fails) == (response.status, b'"error"' in answer)
        assert stream is answer.endswith(b"data: [DONE]\n\n")

    def test_its_admin_addresses(self, demo):
        """All three answer."""
        line = next(line for line in demo.printed.splitlines() if "  admin " in line)
        base, *others = line.split()[1:]
        host = base.removesuffix("/metrics")
        for path in ("/metrics", *others):
            with urllib.request.urlopen(host + path, timeout=PATIENCE_S) as response:
                assert 200 == response.status

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_stops_it(self, run, number):
        """In good order, without a traceback."""
        process = run("demo", "--port", "0", "--admin-port", "0")
        process.waits(lambda: "Ctrl-C" in process.printed)
        process.signal(number)
        assert 0 == process.ends()
        assert "Traceback" not in process.errors
        assert ["serving", "draining", "stopped"] == [line["event"] for line in process.log]


class TestInit:
    def test_what_it_writes_can_be_checked(self, tmp_path, monkeypatch):
        """All that it needs is OPENAI_API_KEY, and every one has a key of its own."""
        runner = CliRunner()
        written = [runner.invoke(main, ["init"]).stdout for _ in range(2)]
        assert written[0] != written[1]
        config = tmp_path / "relay.toml"
        config.write_text(written[0])
        monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
        checked = runner.invoke(main, ["check", "--config", str(config)])
        assert 0 == checked.exit_code
        for said in ("is sound", "auth", "moderation", "on_request", "api.openai.com", "embedded:"):
            assert said in checked.stdout
        assert "sk-" not in checked.stdout
        monkeypatch.delenv("OPENAI_API_KEY")
        checked = runner.invoke(main, ["check", "--config", str(config)])
        assert 2 == checked.exit_code
        assert "OPENAI_API_KEY" in checked.stderr

    @pytest.mark.parametrize(("profile", "chain"), CHAINS.items(), ids=CHAINS)
    def test_a_profile_can_be_checked(self, tmp_path, monkeypatch, profile, chain):
        """All that it needs are the variables that its head names; its chain and its models are those of its page."""
        runner = CliRunner()
        written = [runner.invoke(main, ["init", "--profile", profile]).stdout for _ in range(2)]
        assert written[0] != written[1]
        head, _, rest = written[0].partition("[server]")
        for name in re.findall(r'env = "(\w+)"', rest):
            assert f"variable {name}" in head
            monkeypatch.setenv(name, "sk-openai")
        config = tmp_path / "relay.toml"
        config.write_text(written[0])
        checked = runner.invoke(main, ["check", "--config", str(config)])
        assert 0 == checked.exit_code, checked.stderr
        said = checked.stdout.splitlines()
        links = said[said.index("chain, in the order in which requests meet it:") :]
        assert chain == [line.strip() for line in links if re.fullmatch(r"  \w+", line)]
        assert f"    models   {', '.join(MODELS[profile])}" in said
        assert "tencent" in rest
        assert "sk-" not in checked.stdout

    def test_an_unknown_profile(self):
        """Those that there are are named."""
        asked = CliRunner().invoke(main, ["init", "--profile", "talkbox"])
        assert 2 == asked.exit_code
        assert "'talkbot', 'bingcheng'" in asked.stderr


class TestCheck:
    @pytest.mark.parametrize("name", BROKEN)
    def test_what_is_wrong_is_named(self, tmp_path, name):
        """Status 2, and a line with the file, the key and what was probably meant."""
        text, named = BROKEN[name]
        config = tmp_path / "relay.toml"
        config.write_text(text)
        checked = CliRunner().invoke(main, ["check", "--config", str(config)])
        assert (2, "") == (checked.exit_code, checked.stdout)
        for word in (str(config), *named):
            assert word in checked.stderr
        assert "Traceback" not in checked.stderr
        assert "sk-0123456789" not in checked.stderr

    def test_all_that_is_wrong_is_named_at_once(self, tmp_path):
        """One run is enough to see every fault of the plugins."""
        config = tmp_path / "relay.toml"
        config.write_text(SOUND.replace("keys =", "key =") + '[[plugins]]\nuse = "moderatoin"\n')
        told = CliRunner().invoke(main, ["check", "--config", str(config)]).stderr
        assert "plugins[0]" in told
        assert "plugins[1]" in told

    def test_no_file(self, tmp_path):
        """The way to a first one is told."""
        checked = CliRunner().invoke(main, ["check", "--config", str(tmp_path / "none.toml")])
        assert 2 == checked.exit_code
        assert "relay init" in checked.stderr


NEVER_OPEN = """
import asyncio
from contextlib import asynccontextmanager
from relay import Plugin

class NeverOpen(Plugin):
    @asynccontextmanager
    async def lifespan(self, services):
        services.log.info("opening")
        await asyncio.Event().wait()
        yield
"""


class TestServe:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_a_start_that_does_not_come_to_an_end(self, run, tmp_path, number):
        """A signal ends it, whatever a plugin waits for."""
        (tmp_path / "never.py").write_text(NEVER_OPEN)
        (tmp_path / "relay.toml").write_text(SOUND + '[[plugins]]\nuse = "never:NeverOpen"\n')
        process = run("serve")
        process.waits(lambda: any(line["event"] == "opening" for line in process.log))
        process.signal(number)
        assert 0 == process.ends()
        assert "stopped before it was started" == process.log[-1]["event"]
        assert "Traceback" not in process.errors

    @pytest.mark.parametrize(("table", "what"), [("server", "public"), ("admin", "admin")])
    def test_a_port_that_is_taken(self, run, tmp_path, table, what):
        """Status 2, and which listener of which address."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            (tmp_path / "relay.toml").write_text(SOUND.replace(f"[{table}]\nport = 0", f"[{table}]\nport = {port}"))
            process = run("serve")
            assert 2 == process.ends()
        assert f"{what} listener" in process.errors
        assert f"127.0.0.1:{port}" in process.errors
        assert "Traceback" not in process.errors

    async def test_a_signal_lets_streams_end(self, run, tmp_path):
        """Ready turns red, new requests are refused, the open stream ends in good order, then the process."""
        go = asyncio.Event()
        said = frames.stream(["Hel", "lo"])
        async with ScriptedUpstream(Script(Head(), Send(said[0]), Gate(go), Send(b"".join(said[1:])))) as upstream:
            process, url, admin, client = await _serving(run, tmp_path, upstream)
            async with client, client.post(url, json=_ask(stream=True)) as response:
                await response.content.readuntil(b"\n\n")
                process.signal(signal.SIGTERM)
                await asyncio.to_thread(process.waits, lambda: process.log[-1]["event"] == "draining")
                async with client.get(admin + "/readyz") as ready:
                    assert 503 == ready.status
                async with client.post(url, json=_ask(stream=True)) as refused:
                    assert (503, "draining") == (refused.status, (await refused.json())["error"]["code"])
                go.set()
                assert b"".join(said[1:]) == await response.read()
        assert 0 == await asyncio.to_thread(process.ends)
        assert "stopped" == process.log[-1]["event"]

    async def test_a_second_signal_ends_them(self, run, tmp_path):
        """An error in the stream and [DONE]; the process does not wait for `drain_s`."""
        said = frames.stream(["Hel", "lo"])
        async with ScriptedUpstream(Script(Head(), Send(said[0]), Gate(asyncio.Event()))) as upstream:
            process, url, _, client = await _serving(run, tmp_path, upstream)
            async with client, client.post(url, json=_ask(stream=True)) as response:
                await response.content.readuntil(b"\n\n")
                process.signal(signal.SIGTERM)
                await asyncio.to_thread(process.waits, lambda: process.log[-1]["event"] == "draining")
                process.signal(signal.SIGINT)
                rest = await response.read()
        assert b'"code":"draining"' in rest
        assert rest.endswith(b"data: [DONE]\n\n")
        assert 0 == await asyncio.to_thread(process.ends)

    async def test_the_awaited_reader(self, run, tmp_path):
        """`--reader await` serves the same."""
        said = frames.stream(["Hel", "lo"])
        async with ScriptedUpstream(streamed(said)) as upstream:
            _, url, _, client = await _serving(run, tmp_path, upstream, "--reader", "await")
            async with client, client.post(url, json=_ask(stream=True)) as response:
                assert b"".join(said) == await response.read()


async def _serving(run, folder, upstream, *options):
    """A relay in a process of its own: the process, two addresses and a client with its key."""
    (folder / "relay.toml").write_text(SOUND.replace("http://127.0.0.1:9/v1", upstream.base_url))
    process = run("serve", *options)
    await asyncio.to_thread(process.waits, lambda: bool(process.log))
    serving = process.log[0]
    client = aiohttp.ClientSession(headers={"Authorization": "Bearer sk-0123456789"})
    url = f"http://127.0.0.1:{serving['port']}/v1/chat/completions"
    return process, url, f"http://127.0.0.1:{serving['admin_port']}", client


def _ask(*, stream):
    return {"model": "m", "stream": stream, "messages": [{"role": "user", "content": "hello"}]}
