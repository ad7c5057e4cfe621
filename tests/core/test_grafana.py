"""The dashboards ask for what metrics.py gives, and keep the rules of Grafana's dashboard-linter."""

import re
from pathlib import Path

import orjson
import pytest

from relay import metrics
from relay.metrics import Metrics

GRAFANA = Path(__file__).parents[2] / "grafana"
DASHBOARDS = sorted((GRAFANA / "dashboards").glob("*.json"))

# Names of PromQL that look like a metric's to the pattern below.
SELECTOR = re.compile(r"\b([a-z_]+)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|without)\s*\(([^)]*)\)")

# Put on every series by Prometheus, from the scrape configuration.
TARGET_LABELS = {"job", "instance"}

CLOSED_SETS = {
    ("relay_requests_total", "operation"): metrics.OPERATIONS,
    ("relay_requests_total", "outcome"): metrics.OUTCOMES,
    ("relay_refusals_total", "code"): metrics.REFUSALS,
    ("relay_upstream_requests_total", "outcome"): metrics.UPSTREAM_OUTCOMES,
    ("relay_upstream_errors_total", "kind"): metrics.UPSTREAM_ERRORS,
    ("relay_moderation_characters_total", "state"): metrics.CHARACTERS,
    ("relay_released_unverified_characters_total", "reason"): metrics.UNVERIFIED,
    ("relay_moderation_checks_total", "outcome"): metrics.CHECKS,
}


def series():
    """Name of a series, as queries write it → its labels."""
    labels = {}
    for family in Metrics.families():
        if family.type == "histogram":
            labels[f"{family.name}_bucket"] = {*family.labels, "le"}
            labels[f"{family.name}_sum"] = labels[f"{family.name}_count"] = set(family.labels)
        else:
            labels[family.name] = set(family.labels)
    return labels


def load(path):
    return orjson.loads(path.read_bytes())


def panels():
    return [
        pytest.param(panel, id=f"{path.stem}: {panel['title']}")
        for path in DASHBOARDS
        for panel in load(path)["panels"]
    ]


def expressions():
    return [
        pytest.param(target["expr"], id=f"{path.stem}: {panel['title']} {target['refId']}")
        for path in DASHBOARDS
        for panel in load(path)["panels"]
        for target in panel["targets"]
    ]


def test_there_are_dashboards():
    """The tests below have something to run over."""
    assert [path.stem for path in DASHBOARDS] == ["overview"]


@pytest.mark.parametrize("expression", expressions())
def test_expression_asks_for_what_there_is(expression):
    """Every metric of a query is one of ours, with the labels used, and every word has a selector."""
    known = series()
    selectors = SELECTOR.findall(expression)
    assert selectors
    labels = set.intersection(*(known[name] for name, _ in selectors)) | TARGET_LABELS
    for _, matchers in selectors:
        assert {label for label, _, _ in MATCHER.findall(matchers)} <= labels
    for grouping in GROUPING.findall(expression):
        assert {label.strip() for label in grouping.split(",")} <= labels
    # A metric without a selector would escape the checks above.
    assert [name for name, _ in selectors] == re.findall(r"\b(?:relay|gen_ai|process)_\w+\b(?!\s*=)", expression)


@pytest.mark.parametrize("expression", expressions())
def test_expression_looks_for_values_that_there_are(expression):
    """A value that a matcher names is one that the metric can have."""
    for name, matchers in SELECTOR.findall(expression):
        for label, _, values in MATCHER.findall(matchers):
            if label not in TARGET_LABELS:
                assert set(values.split("|")) <= set(CLOSED_SETS[name, label])


@pytest.mark.parametrize("expression", expressions())
def test_expression_keeps_to_the_chosen_targets(expression):
    """Every selector is narrowed by the job and instance variables; every range is `$__rate_interval`."""
    for _, matchers in SELECTOR.findall(expression):
        assert {("job", "=~", "$job"), ("instance", "=~", "$instance")} <= set(MATCHER.findall(matchers))
    assert {"$__rate_interval"} >= set(re.findall(r"\[([^\]]*)\]", expression))


@pytest.mark.parametrize("expression", expressions())
def test_expression_fits_the_type(expression):
    """Counters and buckets are asked for their rate, gauges never; brackets are balanced."""
    gauges = {family.name for family in Metrics.families() if family.type == "gauge"}
    for name, _ in SELECTOR.findall(expression):
        assert (name in gauges) != (f"rate({name}{{" in expression)
    assert all(expression.count(opening) == expression.count(closing) for opening, closing in ("()", "[]", "{}"))


@pytest.mark.parametrize("panel", panels())
def test_panel_explains_itself(panel):
    """A panel has a title, a unit, and a description that states the question it answers."""
    assert panel["title"]
    assert "?" in panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("panel", panels())
def test_panel_asks_the_chosen_datasource(panel):
    """No panel is tied to one Prometheus."""
    for asked in (panel, *panel["targets"]):
        assert asked["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


@pytest.mark.parametrize("panel", panels())
def test_legend_names_labels_that_the_query_keeps(panel):
    """A legend's labels are those the query groups by."""
    for target in panel["targets"]:
        kept = {label.strip() for grouping in GROUPING.findall(target["expr"]) for label in grouping.split(",")}
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept - {"le"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_dashboard_has_its_variables(path):
    """The datasource, job and instance are chosen at the top; the latter two come from a metric that always exists."""
    variables = {variable["name"]: variable for variable in load(path)["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert variables[name]["definition"].startswith("label_values(relay_build_info")


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_lie_side_by_side(path):
    """Ids are unique, and no two panels of the 24 columns overlap."""
    dashboard = load(path)
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken = [
        (x, y)
        for panel in dashboard["panels"]
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_provisioned_datasource_is_named_by_the_environment():
    """No address of a Prometheus is written down outside a comment."""
    lines = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text().splitlines()
    settings = [line.strip() for line in lines if not line.strip().startswith("#")]
    assert "url: $PROMETHEUS_URL" in settings
    assert not [line for line in settings if "://" in line]
