"""What stands between the clients and the model server: the relay in several settings, and its peers.

Each is started with a folder of its own and ends with the block.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bench.phrases import phrases
from bench.processes import free_port, started
from bench.shapes import TOKENS
from relay_plugins.tencent.fake import SECRET_ID, SECRET_KEY

KEY: Final = "sk-bench"
RELAY: Final = "relay"
NGINX: Final = "nginx"
ROUTER: Final = "vllm-router"
ROUTER_VERSION: Final = "0.1.17"

RELAY_TOML: Final = """\
[server]
port = {port}
workers = {workers}
drain_s = 0
[admin]
port = {admin_port}
[store]
url = "{store}"
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{model_port}/v1"
models = ["bench", "slow"]
"""

# In the order in which they stand in a relay's chain.
PLUGINS: Final = {
    "auth": 'keys = [{{ name = "bench", key = "{key}" }}]',
    "parameters": "",
    "rate_limit": "requests_per_minute = 100000000\nconcurrent_streams = 100000",
    "quota": 'unit = "characters"\ngrant = 1000000000000',
    "moderation": "moderators = [{moderators}]",
    "history": "max_tokens = 3000",
}
LEXICON: Final = '{{ use = "lexicon", files = ["phrases.txt"] }}'
TENCENT: Final = (
    '{{ use = "tencent", endpoint = "http://127.0.0.1:{port}", secret_id = "{id}", secret_key = "{key}", '
    "calls_per_second = 100000 }}"
)
CHAINS: Final = {
    "whole": ("auth", "parameters", "rate_limit", "moderation", "history"),
    "short": ("auth", "moderation"),
}

SYSTEM_PATH: Final = os.defpath + ":/usr/sbin:/usr/local/sbin"  # not everybody's has where nginx is
# Connections go to its workers in equal parts (`reuseport`); with one worker that is nothing.
NGINX_CONF: Final = """\
daemon off; worker_processes {workers}; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream model {{ server 127.0.0.1:{model_port}; keepalive 2000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096 reuseport; keepalive_requests 1000000;
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@dataclass(frozen=True)
class Proxy:
    """One that runs. `name`: whose figures it makes."""

    name: str
    port: int
    pid: int


@dataclass(frozen=True)
class Plan:
    """How one is started. `ready`: where it says 200 once it serves."""

    name: str
    command: Sequence[str]
    port: int
    ready: str


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A relay's setting. heads: whether the stream's text has heads of phrases. tencent_port: of the fake; 0 for none."""

    chain: Literal["whole", "short"] = "whole"
    heads: bool = True
    tencent_port: int = 0
    quota: bool = False
    store: Literal["memory:", "embedded:"] = "memory:"
    workers: int = 1

    def toml(self, port: int, admin_port: int, model_port: int) -> str:
        """relay.toml; phrases.txt has to stand beside it."""
        moderators = [LEXICON.format()]
        if self.tencent_port:
            moderators.append(TENCENT.format(port=self.tencent_port, id=SECRET_ID, key=SECRET_KEY))
        names = [name for name in PLUGINS if name in CHAINS[self.chain] or (name == "quota" and self.quota)]
        tables = [
            f'[[plugins]]\nuse = "{name}"\n{PLUGINS[name].format(key=KEY, moderators=", ".join(moderators))}\n'
            for name in names
        ]
        head = RELAY_TOML.format(
            port=port, admin_port=admin_port, model_port=model_port, workers=self.workers, store=self.store
        )
        return head + "".join(tables)

    def plan(self, folder: Path, model_port: int) -> Plan:
        folder.mkdir()
        listed = phrases(unheard="" if self.heads else "".join(TOKENS))
        (folder / "phrases.txt").write_text("\n".join(listed), encoding="utf-8")
        port, admin_port = free_port(), free_port()
        text = self.toml(port, admin_port, model_port)
        tomllib.loads(text)
        config = folder / "relay.toml"
        config.write_text(text, encoding="utf-8")
        command = (sys.executable, "-m", "relay", "serve", "--config", str(config))
        return Plan(RELAY, command, port, f"http://127.0.0.1:{admin_port}/readyz")


def nginx(folder: Path, model_port: int, workers: int = 1) -> Plan | None:
    """None if it is not installed."""
    found = shutil.which(NGINX, path=SYSTEM_PATH)
    if found is None:
        return None
    folder.mkdir()
    port = free_port()
    conf = folder / "nginx.conf"
    conf.write_text(NGINX_CONF.format(folder=folder, port=port, model_port=model_port, workers=workers))
    return Plan(NGINX, (found, "-c", str(conf)), port, f"http://127.0.0.1:{port}/")


def router(venv: Path, model_port: int) -> Plan:
    """The router that is installed in a virtual environment."""
    port = free_port()
    command = (
        str(venv / "bin" / ROUTER),
        *("--worker-urls", f"http://127.0.0.1:{model_port}", "--policy", "round_robin"),
        *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())),
    )
    return Plan(ROUTER, command, port, f"http://127.0.0.1:{port}/health")


def install_router(venv: Path) -> None:
    """Have the router in a virtual environment of its own."""
    if not (venv / "bin" / ROUTER).exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = (str(venv / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        subprocess.run([*pip, "--only-binary", ":all:", f"{ROUTER}=={ROUTER_VERSION}"], check=True)


@contextmanager
def running(plan: Plan, log: Path | None = None) -> Iterator[Proxy]:
    """`log`: where what it prints is kept; a relay prints a line for each request."""
    with started(*plan.command, port=plan.port, log=log) as process:
        yield Proxy(plan.name, plan.port, process.pid)
