"""Prometheus's own tool reads what the relay gives it, what the dashboards ask, and the rules, whose tests it runs."""

import json
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

pytestmark = pytest.mark.system

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))
RULES = sorted((GRAFANA / "alerts").glob("*.yaml"))
TESTS = sorted((GRAFANA / "alerts" / "tests").glob("*.yaml"))

# What Grafana puts in the place of its variables.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$job": "relay", "$instance": ".+"}


def test_metrics_have_nothing_to_lint(demo, curl, promtool):
    """`promtool check metrics` is silent about the page of a relay that has served."""
    assert 0 == demo.curl().returncode
    with urlopen(demo.admin + "/metrics") as reply:
        page = reply.read()
    assert b"relay_requests_total{" in page
    checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False)
    assert (0, b"", b"") == (checked.returncode, checked.stdout, checked.stderr)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_expressions_are_promql(promtool, path, tmp_path):
    """`promtool check rules` accepts every query of a dashboard as a rule."""
    targets = [target for panel in json.loads(path.read_bytes())["panels"] for target in panel["targets"]]
    expressions = [target["expr"] for target in targets]
    for name, value in VARIABLES.items():
        expressions = [expression.replace(name, value) for expression in expressions]
    rules = [{"record": f"query:{number}", "expr": expression} for number, expression in enumerate(expressions)]
    file = tmp_path / "rules.yaml"
    file.write_text(json.dumps({"groups": [{"name": path.stem, "rules": rules}]}))  # JSON is YAML
    checked = subprocess.run([promtool, "check", "rules", file], capture_output=True, text=True, check=False)
    assert (0, "") == (checked.returncode, checked.stderr)
    assert f"{len(rules)} rules found" in checked.stdout


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.stem)
def test_rules_are_sound(promtool, path):
    """`promtool check rules` has nothing to say about a file of rules."""
    checked = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True, check=False)
    assert (0, "") == (checked.returncode, checked.stderr)
    assert "SUCCESS" in checked.stdout


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_and_end(promtool, path):
    """`promtool test rules`: what is recorded is right, and each alert fires under its fault and only then."""
    tested = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, check=False)
    assert 0 == tested.returncode, tested.stdout + tested.stderr
