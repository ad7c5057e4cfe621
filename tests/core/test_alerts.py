"""The rules and alerts ask for what there is, and each alert has what whoever is woken by it needs."""

import re
from collections import defaultdict
from pathlib import Path

import orjson
import pytest
import yaml

from relay.metrics import families
from relay.metrics.families import FAMILIES, SUPERVISED, Configured

ROOT = Path(__file__).parents[2]
ALERTS = ROOT / "grafana" / "alerts"
RUNBOOKS = ROOT / "docs" / "runbooks"
TESTS = sorted((ALERTS / "tests").glob("*.yaml"))

BASE = "{{ $externalLabels.relay_docs }}"
# Prometheus's own, and prometheus-client's.
FOREIGN = {"up": set(), "process_start_time_seconds": set()}
TARGET_LABELS = {"job", "instance"}
# Tell rules of one alert apart.
APART = ("severity", "window", "sign")

METRIC = re.compile(r'\b((?:relay|gen_ai|process)_\w+|up)\b(?:\{([^}]*)\})?(?!\s*[="])')
RECORDED = re.compile(r"\brelay:\w+:\w+")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on)\s*\(([^)]*)\)")
# What an alert consists of, joined by `and`: so that its left side can be looked at.
COMPARISON = re.compile(r"(relay:\w+:\w+) ([<>]) ([\d.]+(?: \* [\d.]+)?)")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(name):
    return [rule for group in read(ALERTS / name)["groups"] for rule in group["rules"]]


RECORDS = {rule["record"]: rule["expr"] for rule in rules("rules.yaml")}
ALERT_RULES = [
    pytest.param(rule, id=" ".join((rule["alert"], *(rule["labels"].get(label, "") for label in APART))))
    for rule in rules("alerts.yaml")
]


def series():
    """Name of a series, as expressions write it → its labels, with their closed sets."""
    found = {name: dict.fromkeys(labels, ()) for name, labels in FOREIGN.items()}
    for family in (*FAMILIES, *SUPERVISED):
        if family.type == "histogram":
            bounds = tuple(f"{bound:.12g}" for bound in family.buckets)
            found[f"{family.name}_bucket"] = {**family.labels, "le": bounds}
            found[f"{family.name}_sum"] = found[f"{family.name}_count"] = dict(family.labels)
        else:
            found[family.name] = dict(family.labels)
    return found


@pytest.mark.parametrize("name", RECORDS)
def test_rule_asks_for_what_there_is(name):
    """Every metric is one of ours, with its labels, and every value that is asked for is one that it can have."""
    known, expression = series(), RECORDS[name]
    asked = METRIC.findall(expression)
    assert asked
    kept = set(TARGET_LABELS)
    for metric, matchers in asked:
        labels = known[metric]
        kept |= labels.keys()
        for label, _, values in MATCHER.findall(matchers):
            closed = labels[label]
            assert not isinstance(closed, Configured), f"{label} is the configuration's"
            assert set(values.split("|")) <= set(closed)
    for grouping in GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= kept
    assert "vector(" not in expression


@pytest.mark.parametrize("name", RECORDS)
def test_rule_keeps_jobs_apart(name):
    """Every sum keeps the label job."""
    assert all("job" in grouping.split(", ") for grouping in GROUPING.findall(RECORDS[name]))


def test_rules_of_several_windows_differ_in_nothing_else():
    """relay:unserved:ratio_rate1h is what relay:unserved:ratio_rate5m is, over an hour."""
    alike = defaultdict(set)
    for name, expression in RECORDS.items():
        if match := re.fullmatch(r"(relay:(?:unserved|slow_first_text):[a-z_]+)(\d+[mhd])", name):
            kind, window = match.groups()
            assert set(re.findall(r"\[(\w+)\]", expression)) == {window}
            alike[kind].add(expression.replace(f"[{window}]", "[]"))
    assert {kind: len(found) for kind, found in alike.items()} == dict.fromkeys(alike, 1)
    windows = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
    for what in ("unserved", "slow_first_text"):
        assert {f"relay:{what}:ratio_rate{window}" for window in windows} <= RECORDS.keys()


def values_of(name, label):
    """The sets of values that a rule asks for."""
    return {
        values
        for _, matchers in METRIC.findall(RECORDS[name])
        for key, _, values in MATCHER.findall(matchers)
        if key == label
    }


def test_closed_sets_are_those_of_the_metrics():
    """What is unserved, unjudged or unverified is what the metrics call so."""
    assert values_of("relay:unserved:ratio_rate5m", "outcome") == {"|".join(families.UNSERVED), "refused|client_gone"}
    assert "|".join(families.UNJUDGED) in values_of("relay:moderation_unjudged:ratio_rate2m", "outcome")
    told_to = {"shadow", "ahead", "unknown_field", "opaque"}
    [reasons] = values_of("relay:released_unverified:increase10m", "reason")
    assert set(reasons.split("|")) == set(families.UNVERIFIED) - told_to
    assert {2.5} < set(families.FIRST_TOKEN_BUCKETS)


@pytest.mark.parametrize("rule", ALERT_RULES)
def test_alert_compares_what_is_recorded(rule):
    """It is `value > threshold`, or several of these, of values that rules.yaml records."""
    parts = [part.strip() for part in rule["expr"].strip().split("\nand ")]
    for part in parts:
        match = COMPARISON.fullmatch(part)
        assert match, part
        assert match[1] in RECORDS


@pytest.mark.parametrize("rule", ALERT_RULES)
def test_alert_says_what_to_do(rule):
    """It has a severity, a summary of its own, a dashboard that there is, and a runbook under its name."""
    labels, notes = rule["labels"], rule["annotations"]
    assert labels["severity"] in ("page", "ticket")
    assert set(labels) <= set(APART)
    assert set(notes) == {"summary", "description", "dashboard", "runbook_url"}
    assert notes["summary"].startswith("{{ $labels.job }}: ")
    assert notes["description"].endswith(".")
    assert notes["runbook_url"] == f"{BASE}docs/runbooks/{rule['alert']}.md"
    assert (RUNBOOKS / f"{rule['alert']}.md").is_file()
    dashboards = {orjson.loads(path.read_bytes())["uid"] for path in (ROOT / "grafana" / "dashboards").glob("*.json")}
    assert notes["dashboard"] in dashboards


@pytest.mark.parametrize("rule", ALERT_RULES)
def test_alert_names_labels_that_its_value_has(rule):
    """`$labels.X` in an annotation is a label by which the first of its values is grouped."""
    first = RECORDS[RECORDED.search(rule["expr"])[0]]
    outermost = re.search(r"\bby \(([^)]*)\)", first)
    kept = {label.strip() for label in outermost[1].split(",")}
    named = {name for note in rule["annotations"].values() for name in re.findall(r"\$labels\.(\w+)", note)}
    assert named <= kept


def test_rules_are_for_something():
    """What is recorded is compared by an alert or shown by a panel."""
    used = set(RECORDED.findall((ALERTS / "alerts.yaml").read_text(encoding="utf-8")))
    for path in (ROOT / "grafana" / "dashboards").glob("*.json"):
        used |= set(RECORDED.findall(path.read_text(encoding="utf-8")))
    # The windows between, for who looks at how a burn goes on.
    between = {
        f"relay:{what}:ratio_rate{window}" for what in ("unserved", "slow_first_text") for window in ("2h", "1d")
    }
    assert RECORDS.keys() - used <= between


def minutes(text):
    return sum(int(number) * {"d": 1440, "h": 60, "m": 1}[unit] for number, unit in re.findall(r"(\d+)([dhm])", text))


def seen(rule):
    """Per group of tests: whether the alert fires, in the order of time."""
    for path in TESTS:
        for group in read(path)["tests"]:
            looks = [look for look in group.get("alert_rule_test", ()) if look["alertname"] == rule["alert"]]
            looks.sort(key=lambda look: minutes(look["eval_time"]))
            yield [
                any(rule["labels"].items() <= {**found["exp_labels"]}.items() for found in look["exp_alerts"])
                for look in looks
            ]


@pytest.mark.parametrize("rule", ALERT_RULES)
def test_alert_is_tested(rule):
    """In some test it is silent before its fault, fires under it, and is silent again: in this order, without others."""
    assert any(re.fullmatch("s+f+s+", "".join("f" if fires else "s" for fires in looks)) for looks in seen(rule))


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_tests_evaluate_all_groups_in_order(path):
    """promtool evaluates groups in any order unless it is told: then an alert may see what was recorded one step before."""
    groups = [group["name"] for name in ("rules.yaml", "alerts.yaml") for group in read(ALERTS / name)["groups"]]
    test = read(path)
    assert test["group_eval_order"] == groups
    assert test["rule_files"] == ["../rules.yaml", "../alerts.yaml"]


def test_runbooks_are_those_of_the_alerts():
    """One page for each alert, none besides, all in the index with how urgent they are."""
    names = {rule.values[0]["alert"] for rule in ALERT_RULES}
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {"README", *names}
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    for name in names:
        severities = {rule.values[0]["labels"]["severity"] for rule in ALERT_RULES if rule.values[0]["alert"] == name}
        [line] = [line for line in index.splitlines() if line.startswith(f"| [{name}]({name}.md) |")]
        assert severities == {word for word in ("page", "ticket") if word in line.split("|")[2]}


# Emphasis in the runbooks that is no panel's: pages of others, columns, and what is to be done.
NO_PANELS = {
    "Status → Targets",
    "Failed",
    "What it costs",
    "The log",
    "Apply a change of relay.toml",
    "Restart",
    "Stay closed",
    "Open",
}


@pytest.mark.parametrize("path", sorted(RUNBOOKS.glob("*.md")), ids=lambda path: path.stem)
def test_runbook_names_panels_that_there_are(path):
    """What stands in italics with a capital is the title of a dashboard or of one of its panels, or begins one."""
    boards = [orjson.loads(board.read_bytes()) for board in (ROOT / "grafana" / "dashboards").glob("*.json")]
    titles = {board["title"] for board in boards} | {panel["title"] for board in boards for panel in board["panels"]}
    named = set(re.findall(r"(?<!\*)\*([A-Z][^*\n]*)\*(?!\*)", path.read_text(encoding="utf-8")))
    assert {name for name in named - NO_PANELS if not any(title.startswith(name) for title in titles)} == set()
