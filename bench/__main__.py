"""`make bench`: what an event costs on its way through the relay, beside nginx, as ratios of one run.

A model server streams 200 events, 5 ms apart, to 20 and to 100 clients at once; the relay authenticates, moderates with
a lexicon of 5,000 phrases and logs. CPU is what the operating system charges to the relay's process (nginx's), divided
by the events delivered; medians of several rounds. Ratios hold on a noisy machine, absolute figures do not.

    python -m bench [--streams 20,100] [--rounds 5] [--seconds 4] [--quick]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.phrases import phrases
from bench.processes import cpu_s, free_port, started

KEY = "sk-bench"

RELAY_TOML = """\
[server]
port = {port}
[admin]
port = {admin_port}
[store]
url = "memory:"
[[upstreams]]
name = "bench"
base_url = "http://127.0.0.1:{model_port}/v1"
models = ["bench"]
[[plugins]]
use = "auth"
keys = [{{ name = "bench", key = "{key}" }}]
[[plugins]]
use = "moderation"
moderators = [{{ use = "lexicon", files = ["phrases.txt"] }}]
"""

NGINX_CONF = """\
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 20000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  upstream model {{ server 127.0.0.1:{model_port}; keepalive 2000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096; keepalive_requests 1000000;
    location / {{ proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""


@dataclass(frozen=True)
class Target:
    """Something that stands between the clients and the model server."""

    name: str
    port: int
    pid: int


def measure(target: Target, streams: int, seconds: float) -> dict[str, float]:
    before = cpu_s(target.pid)
    load = [sys.executable, "-m", "bench.load", str(target.port), str(streams), str(seconds), KEY]
    result: dict[str, float] = json.loads(subprocess.run(load, check=True, capture_output=True).stdout)
    result["cpu_us"] = (cpu_s(target.pid) - before) * 1e6 / max(1, result["events"])
    return result


def report(rows: dict[tuple[str, int], list[dict[str, float]]]) -> str:
    lines = [f"{'':8}{'streams':>8}{'CPU µs/event':>14}{'× nginx':>9}{'p50 ms':>9}{'p99 ms':>9}"]
    for (name, streams), rounds in rows.items():
        cpu, p50, p99 = (statistics.median(row[field] for row in rounds) for field in ("cpu_us", "p50_us", "p99_us"))
        beside = rows.get(("nginx", streams))
        ratio = f"{cpu / statistics.median(row['cpu_us'] for row in beside):9.2f}" if beside else f"{'–':>9}"
        lines.append(f"{name:8}{streams:8}{cpu:14.1f}{ratio}{p50 / 1000:9.2f}{p99 / 1000:9.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", default="20,100")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--quick", action="store_true", help="two short rounds")
    args = parser.parse_args()
    if args.quick:
        args.rounds, args.seconds = 2, 2
    model_port, relay_port, admin_port, nginx_port = (free_port() for _ in range(4))
    nginx = shutil.which("nginx", path=os.defpath + ":/usr/sbin:/usr/local/sbin")
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        (folder / "phrases.txt").write_text("\n".join(phrases()), encoding="utf-8")
        toml = RELAY_TOML.format(port=relay_port, admin_port=admin_port, model_port=model_port, key=KEY)
        (folder / "relay.toml").write_text(toml)
        relay = [sys.executable, "-m", "relay", "serve", "--config", str(folder / "relay.toml")]
        with (
            started(sys.executable, "-m", "bench.model", str(model_port), port=model_port),
            started(*relay, port=relay_port) as relay_process,
        ):
            targets = [Target("relay", relay_port, relay_process.pid)]
            if nginx is None:
                print("nginx is not installed; the relay is measured alone (apt-get install nginx-light)")
                run(rows, targets, args)
            else:
                conf = folder / "nginx.conf"
                conf.write_text(NGINX_CONF.format(folder=folder, port=nginx_port, model_port=model_port))
                with started(nginx, "-c", str(conf), port=nginx_port) as nginx_process:
                    run(rows, [*targets, Target("nginx", nginx_port, nginx_process.pid)], args)
    print(report(rows))


def run(rows: dict[tuple[str, int], list[dict[str, float]]], targets: list[Target], args: argparse.Namespace) -> None:
    """Round by round, so that whatever else the machine does falls on all alike."""
    for streams in map(int, args.streams.split(",")):
        for _ in range(args.rounds):
            for target in targets:
                rows.setdefault((target.name, streams), []).append(measure(target, streams, args.seconds))


if __name__ == "__main__":
    main()
