"""What operators ask: the expressions of the dashboards, and of the rules beside them."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from proof.promql import filled, lapsed

GRAFANA = Path(__file__).parents[3] / "grafana"
# Variables that choose what is shown; each dashboard has "all" of them.
CHOICES = ("instance", "upstream", "moderator", "model", "plugin", "worker", "label", "unit", "operation", "store")


@dataclass(frozen=True)
class Asked:
    """One expression. where: the dashboard or the group of rules; what: the panel, the alert or the recording rule."""

    where: str
    what: str
    query: str
    number: int = 0

    def __str__(self):
        return f"{self.where}: {self.what}" + (f" ({self.number + 1})" if self.number else "")

    def of(self, job):
        """As it is sent to Prometheus, in the time of the lapse, for one job."""
        return filled(lapsed(self.query), job=job, **dict.fromkeys(CHOICES, ".+"))


@dataclass(frozen=True)
class Dashboard:
    name: str
    document: dict

    @property
    def panels(self):
        """Those that ask something, of collapsed rows too."""
        within = [inner for panel in self.document["panels"] for inner in (panel, *panel.get("panels", ()))]
        return [panel for panel in within if panel.get("targets")]

    @property
    def asked(self):
        return [
            Asked(self.name, panel["title"], target["expr"], number)
            for panel in self.panels
            for number, target in enumerate(panel["targets"])
        ]


def dashboards():
    return [Dashboard(path.stem, json.loads(path.read_bytes())) for path in sorted(GRAFANA.glob("dashboards/*.json"))]


def rules():
    """Name → what stands in a file of rules."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((GRAFANA / "alerts").glob("*.yaml"))}


def lapsed_rules():
    """The same in the time of the lapse: windows are short, every rule is evaluated at every scrape, and no alert waits to be
    sure (`for`; promtool's tests are about that)."""
    return {
        name: {
            "groups": [{"name": group["name"], "rules": [_lapsed(rule) for rule in group["rules"]]} for group in groups]
        }
        for name, groups in ((name, content["groups"]) for name, content in rules().items())
    }


def _lapsed(rule):
    kept = {name: value for name, value in rule.items() if name not in ("for", "keep_firing_for")}
    return {**kept, "expr": lapsed(rule["expr"])}


@dataclass(frozen=True)
class Alert(Asked):
    """labels: which tell it from others of its name."""

    labels: tuple[tuple[str, str], ...] = ()

    def __str__(self):
        return " ".join((self.what, *(value for _, value in self.labels)))


def _each(kind):
    return [
        (group["name"], rule)
        for content in rules().values()
        for group in content["groups"]
        for rule in group["rules"]
        if kind in rule
    ]


def alerts():
    return [
        Alert(group, rule["alert"], rule["expr"], labels=tuple(sorted(rule.get("labels", {}).items())))
        for group, rule in _each("alert")
    ]


def records():
    return [Asked(group, rule["record"], rule["expr"]) for group, rule in _each("record")]
