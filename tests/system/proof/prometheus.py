"""A real Prometheus for as long as a block runs, and its API."""

import json
import math
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml
from servers import free_ports

PATIENCE_S = 30.0
INTERVAL_S = 1.0
"""Between two scrapes of a relay, and between two evaluations of a rule."""


class Prometheus:
    """Queries of it. Times are seconds since 1970. Labels are given as frozensets of (name, value)."""

    def __init__(self, port):
        self.url = f"http://127.0.0.1:{port}"

    def ask(self, path, **parameters):
        """What the API answers to a question. ValueError says what is wrong with that."""
        try:
            with urlopen(f"{self.url}/api/v1/{path}", urlencode(parameters).encode() or None) as reply:
                return json.load(reply)["data"]
        except HTTPError as error:
            with error:
                raise ValueError(json.load(error)["error"], parameters) from None

    def now(self, query):
        """Labels → value, of a query as it stands."""
        return {_labels(each): float(each["value"][1]) for each in self.ask("query", query=query)["result"]}

    def between(self, query, start, end):
        """Labels → [(time, value)], once a second and finite values only."""
        asked = {"query": query, "start": math.floor(start), "end": math.ceil(end), "step": INTERVAL_S}
        found = {}
        for each in self.ask("query_range", **asked)["result"]:
            values = [(float(at), float(value)) for at, value in each["values"]]
            found[_labels(each)] = [(at, value) for at, value in values if math.isfinite(value)]
        return {labels: values for labels, values in found.items() if values}

    def names(self):
        """Of all metrics there are."""
        with urlopen(f"{self.url}/api/v1/label/__name__/values") as reply:
            return set(json.load(reply)["data"])

    def get(self, path):
        with urlopen(f"{self.url}/api/v1/{path}") as reply:
            return json.load(reply)["data"]

    def until(self, query):
        """Wait until a query gives something."""
        end = time.monotonic() + PATIENCE_S
        while not self.now(query):
            assert time.monotonic() < end, f"for {PATIENCE_S:g} s nothing came of {query}"
            time.sleep(0.2)


def _labels(series):
    return frozenset(series["metric"].items())


@contextmanager
def prometheus(folder, jobs, rules, port=None):
    """Prometheus with its data in `folder`.

    jobs: name → port of an admin listener; rules: name → what stands in a file of rules.
    """
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("prometheus is needed: apt-get install prometheus")
    for name, content in rules.items():
        (folder / f"{name}.rules.yaml").write_text(yaml.safe_dump(content))
    scrapes = [
        {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{admin}"]}]} for job, admin in jobs.items()
    ]
    times = {f"{what}_interval": f"{INTERVAL_S:g}s" for what in ("scrape", "evaluation")}
    (folder / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {**times, "scrape_timeout": f"{INTERVAL_S:g}s"},
                "storage": {"exemplars": {"max_exemplars": 10_000}},
                "rule_files": ["*.rules.yaml"],
                "scrape_configs": scrapes,
            }
        )
    )
    port = port or free_ports(1)[0]
    command = [
        *(program, f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--enable-feature=exemplar-storage", "--log.level=warn"),
    ]
    log = folder / "prometheus.log"
    with (
        log.open("wb") as out,
        subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process,
    ):
        try:
            _answers(process, port, log)
            yield Prometheus(port)
        finally:
            process.kill()  # nobody needs its data


def _answers(process, port, log: Path):
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/-/ready"):
                assert process.poll() is None, f"another answers on port {port}"
                return
        except OSError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.05)
