"""compose.yaml without an engine: its services as processes of this machine, by the commands and files that it gives them.

Grafana is not there: no package index that is reached has it. Each service's host name becomes loopback, its port a free
one, and what it mounts the file of the repository. Prometheus scrapes and evaluates once a second, and everybody hurries
(`HURRY`); all else is as it stands.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from servers import free_ports

pytestmark = pytest.mark.system

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "grafana"
PATIENCE_S = 60.0
BIN = Path(sys.executable).parent
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
ADDRESSES = [
    "redis:6379",
    "tms:9520",
    "upstream-1:9500",
    "upstream-2:9500",
    "relay:8080",
    "relay:8081",
    "localhost:9090",
]
# What the demo takes its time for. The last of an option counts.
HURRY = {
    "load": "--rate 25 --seed 7",
    "upstream-1": "--first-ms 20 --pace-ms 4 --phrase-share 0.3",
    "upstream-2": "--first-ms 20 --pace-ms 4 --phrase-share 0.3",
    "tms": "--p50-ms 5 --p99-ms 20",
}
# What an operator is to see move, and so each of it above nothing.
MOVES = [
    'sum(relay_requests_total{outcome="completed"})',
    'sum(relay_requests_total{outcome="filtered"})',
    'sum(relay_refusals_total{code="invalid_temperature"})',
    'sum(relay_upstream_requests_total{upstream="first",outcome="answered"})',
    'sum(relay_upstream_requests_total{upstream="second",outcome="answered"})',
    'sum(relay_moderation_checks_total{moderator="tencent",outcome="pass"})',
    "sum(relay_moderation_violations_total)",
    "sum(relay_store_commands_total)",
    'sum(relay_workers{state="serving"})',
]


def program(name, package):
    path = shutil.which(name)
    if path is None:
        pytest.fail(f"{name} is needed: apt-get install {package}")
    return path


def test_promtool_accepts_the_scrape_configuration(promtool):
    """With the rules beside it, each of which it reads."""
    checked = subprocess.run(
        [promtool, "check", "config", GRAFANA / "prometheus.yaml"], capture_output=True, text=True, check=False
    )
    assert (0, "") == (checked.returncode, checked.stderr)
    assert len(list((GRAFANA / "alerts").glob("*.yaml"))) == checked.stdout.count("rules found")


class Stack:
    """The services as processes. `here` turns what a container is told into what is so here."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = dict(zip(ADDRESSES, free_ports(len(ADDRESSES)), strict=True))
        self.processes = {}
        shutil.copytree(ROOT / "docs" / "compose", folder / "etc")
        shutil.copytree(GRAFANA / "alerts", folder / "alerts", ignore=shutil.ignore_patterns("tests"))
        for file in (folder / "alerts").iterdir():
            file.write_text(re.sub(r"(?m)^( *)interval: .*$", r"\1interval: 1s", file.read_text()))
        shutil.copy(GRAFANA / "prometheus.yaml", folder)
        for file in folder / "etc/relay.toml", folder / "prometheus.yaml":
            file.write_text(self.here(file.read_text()))
        for name in ("relay", "redis", "prometheus"):
            (folder / f"{name}-data").mkdir()

    def here(self, text):
        """`text` as it is so here, each place replaced once."""
        table = {
            **{address: f"127.0.0.1:{port}" for address, port in self.ports.items()},
            'host = "0.0.0.0"': 'host = "127.0.0.1"',
            "port = 8080": f"port = {self.ports['relay:8080']}",
            "port = 8081": f"port = {self.ports['relay:8081']}",
            "scrape_interval: 15s": "scrape_interval: 1s",
            "scrape_timeout: 10s": "scrape_timeout: 1s",
            "evaluation_interval: 15s": "evaluation_interval: 1s",
            "/var/lib/relay": f"{self.folder}/relay-data",
            "/etc/relay": f"{self.folder}/etc",
            "/etc/prometheus": str(self.folder),
            "path=/prometheus": f"path={self.folder}/prometheus-data",
        }
        return re.sub("|".join(map(re.escape, table)), lambda found: table[found[0]], text)

    def url(self, address):
        return f"http://127.0.0.1:{self.ports[address]}"

    @contextmanager
    def service(self, name, *words):
        """Run a service as long as the block runs; it ends with SIGTERM, and well."""
        service = SERVICES[name]
        environment = {key: value for key, value in os.environ.items() if key != "RELAY_ADMIN_TOKEN"}
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [*words, *shlex.split(HURRY.get(name, ""))],
                cwd=self.folder / f"{name}-data" if name == "redis" else self.folder,
                env=environment | service.get("environment", {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            self.processes[name] = process
            try:
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(PATIENCE_S)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def words(self, name):
        """The command of a service of the relay's own image, its port a free one."""
        service = SERVICES[name]
        entry = service.get("entrypoint", ["relay"])
        command = [self.here(word) for word in service.get("command", ["serve", "--config", "/etc/relay/relay.toml"])]
        own = next((port for address, port in self.ports.items() if address.startswith(name + ":")), None)
        if "--port" in command:
            command[command.index("--port") + 1] = str(own)
        return [BIN / entry[0], *entry[1:], *["127.0.0.1" if word == "0.0.0.0" else word for word in command]]

    def until(self, holds, what):
        end = time.monotonic() + PATIENCE_S
        while True:
            try:
                if holds():
                    return
            except (URLError, ConnectionError, TimeoutError):
                pass
            ended = {name: process.returncode for name, process in self.processes.items() if process.poll() is not None}
            late = time.monotonic() > end
            if ended or late:
                logs = "\n".join(f"{name}: {self.log(name)[-2000:]}" for name in self.processes)
                pytest.fail(f"{ended or 'nobody'} ended before {what}\n{logs}")
            time.sleep(0.1)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()

    def answers(self, address, path):
        self.until(lambda: urlopen(self.url(address) + path, timeout=2).close() is None, f"{address}{path} answered")

    def ask(self, path, **parameters):
        with urlopen(f"{self.url('localhost:9090')}/api/v1/{path}?{urlencode(parameters)}") as reply:
            return json.load(reply)["data"]

    def value(self, query):
        return sum(float(found["value"][1]) for found in self.ask("query", query=query)["result"])


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    """All of it but Grafana, in the order in which the services wait for one another."""
    stack = Stack(tmp_path_factory.mktemp("stack"))
    redis = [program("redis-server", "redis-server"), "--port", str(stack.ports["redis:6379"]), "--bind", "127.0.0.1"]
    watch = [program("prometheus", "prometheus"), f"--web.listen-address=127.0.0.1:{stack.ports['localhost:9090']}"]
    with ExitStack() as running:

        def start(name, *words):
            running.enter_context(stack.service(name, *words))

        server, *options = SERVICES["redis"]["command"]
        assert server == "valkey-server"  # which takes what Redis takes
        start("redis", *redis, *options)
        for name, path in ("tms", "/control"), ("upstream-1", "/v1/models"), ("upstream-2", "/v1/models"):
            start(name, *stack.words(name))
            stack.answers(next(address for address in ADDRESSES if address.startswith(name)), path)
        start("relay", *stack.words("relay"))
        stack.answers("relay:8081", "/readyz")
        start("prometheus", *watch, *map(stack.here, SERVICES["prometheus"]["command"]))
        start("load", *stack.words("load"))
        stack.answers("localhost:9090", "/-/ready")
        yield stack
    # The load first, the relay before what it leans on; each as well as it was told.
    assert {"relay": 0, "load": 0, "tms": 0, "upstream-1": 0, "upstream-2": 0, "prometheus": 0, "redis": 0} == {
        name: process.returncode for name, process in stack.processes.items()
    }


def test_prometheus_reaches_its_targets(stack):
    """Each is up."""

    def up():
        targets = stack.ask("targets")["activeTargets"]
        return {"relay": "up", "prometheus": "up"} == {target["labels"]["job"]: target["health"] for target in targets}

    stack.until(up, "the targets were up")


def test_prometheus_has_loaded_the_rules(stack):
    """All of them, and none fails."""

    def rules():
        return [rule for group in stack.ask("rules")["groups"] for rule in group["rules"]]

    stack.until(lambda: {"ok"} == {rule["health"] for rule in rules()}, "each rule had been evaluated")
    written = [yaml.safe_load(file.read_text())["groups"] for file in (GRAFANA / "alerts").glob("*.yaml")]
    assert len(rules()) == sum(len(group["rules"]) for groups in written for group in groups)


@pytest.mark.parametrize("query", MOVES)
def test_everything_moves(stack, query):
    """What the dashboards are about has happened."""
    stack.until(lambda: stack.value(query) > 0, f"{query} was above nothing")


def test_nothing_is_wrong(stack):
    """No character leaves unchecked, and no line of the relay is an error."""
    assert stack.value("sum(relay_released_unverified_characters_total)") == 0
    levels = [json.loads(line)["level"] for line in stack.log("relay").splitlines()]
    assert "error" not in levels
