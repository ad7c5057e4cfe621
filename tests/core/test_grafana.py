"""The dashboards are what grafana/build makes, ask for what relays tell, and keep the rules of Grafana's linter."""

import re
from pathlib import Path

import orjson
import pytest

from grafana.build.colours import COLOURS
from grafana.build.files import files
from grafana.build.panels import TITLES
from relay.metrics import families
from relay.metrics.families import FAMILIES, SUPERVISED, Configured

GRAFANA = Path(__file__).parents[2] / "grafana"
ALERTS = "".join(path.read_text() for path in sorted((GRAFANA / "alerts").glob("*.yaml")))

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Put on every series by Prometheus, from the scrape configuration.
TARGET_LABELS = {"job", "instance"}

# What Prometheus, its rules and the client library of every process tell besides; with what labels.
FOREIGN = {
    "ALERTS": {"alertname": Configured("any"), "alertstate": ("pending", "firing"), "severity": ("page", "ticket")},
    "ALERTS_FOR_STATE": {"alertname": Configured("any"), "severity": ("page", "ticket")},
    "process_cpu_seconds_total": {},
    "process_resident_memory_bytes": {},
    "process_start_time_seconds": {},
}

NOT_SHOWN = {
    "relay_chunks_total": "no question hangs on it but what a chunk costs, which is bench's",
    "gen_ai_server_request_duration_seconds": "as long as the model talks; users wait for the next token",
}

SELECTOR = re.compile(r"([a-zA-Z_][\w:]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
AGGREGATION = re.compile(r"\b(?:sum|max|min|count)(?: by \(([^)]*)\))? ?\(")


def series():
    """Name of a series, as queries write it → its labels, each with its closed set."""
    known = dict(FOREIGN)
    for family in (*FAMILIES, *SUPERVISED):
        if family.type == "histogram":
            known[f"{family.name}_bucket"] = {**family.labels, "le": tuple(map(str, family.buckets))}
            known[f"{family.name}_sum"] = known[f"{family.name}_count"] = family.labels
        else:
            known[family.name] = family.labels
    return known


SERIES = series()
COUNTED = {
    *(name for name in SERIES if re.search("_(bucket|sum|count)$", name)),
    *(family.name for family in (*FAMILIES, *SUPERVISED) if family.type == "counter"),
    "process_cpu_seconds_total",
}
FIRING = set(re.findall(r"^ *- alert: (\S+)$", ALERTS, re.MULTILINE))
RECORDED = set(re.findall(r"^ *- record: (\S+)$", ALERTS, re.MULTILINE))

DASHBOARDS = {path.stem: orjson.loads(path.read_bytes()) for path in sorted((GRAFANA / "dashboards").glob("*.json"))}
PANELS = [
    pytest.param(panel, id=f"{stem}: {panel['title']}")
    for stem, dashboard in DASHBOARDS.items()
    for panel in dashboard["panels"]
]
EXPRESSIONS = [
    pytest.param(target["expr"], id=f"{panel.id} {target['refId']}")
    for panel in PANELS
    for target in panel.values[0]["targets"]
]

each_dashboard = pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
each_panel = pytest.mark.parametrize("panel", PANELS)
each_expression = pytest.mark.parametrize("expression", EXPRESSIONS)


def labels(text):
    return {label.strip() for label in (text or "").split(",")} - {""}


def aggregations(expression):
    """The labels that each aggregation keeps, and what it aggregates."""
    for match in AGGREGATION.finditer(expression):
        depth, end = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expression[end], 0)
            end += 1
        yield labels(match[1]), expression[match.end() : end - 1]


def test_files_are_what_the_source_makes():
    """`make dashboards` would change nothing."""
    assert {path.name: path.read_bytes() for path in (GRAFANA / "dashboards").iterdir()} == files()


def test_every_family_is_shown():
    """Each metric of ours is in a panel or in an alert, or there is a reason why not."""
    asked = ALERTS + " ".join(expression.values[0] for expression in EXPRESSIONS)
    shown = {family.name for family in (*FAMILIES, *SUPERVISED) if re.search(rf"\b{family.name}(_|\b)", asked)}
    assert {family.name for family in (*FAMILIES, *SUPERVISED)} - shown == NOT_SHOWN.keys()


def test_outcomes_have_colours():
    """What an outcome is called has the same colour wherever it is drawn."""
    assert {*families.OUTCOMES, *families.CHECKS, *families.UNJUDGED} <= COLOURS.keys()


@each_expression
def test_every_metric_has_a_selector(expression):
    """What is no function, keyword or number is a series of ours, or recorded by our rules, and has its matchers."""
    bare = re.sub(r'"[^"]*"|\[[^]]*\]|(?:by|on|ignoring) \([^)]*\)', "", expression)
    words = re.findall(r"\b[a-zA-Z_][\w:]*(?![\w:]| *\()", re.sub(r"\{[^}]*\}", "{}", bare))
    names = [name for name, _ in SELECTOR.findall(expression)]
    assert names == [word for word in words if word not in {"and", "or", "bool", "Inf"}]
    assert set(names) <= SERIES.keys() | RECORDED


@each_expression
def test_matchers_name_what_there_is(expression):
    """A series has the label that it is chosen by, and the label that value."""
    for name, matchers in SELECTOR.findall(expression):
        for label, operator, value in MATCHER.findall(matchers):
            if label in TARGET_LABELS:
                continue
            possible = SERIES[name][label]
            wanted = value.split("|") if "~" in operator else [value]
            assert isinstance(possible, Configured) or set(wanted) <= set(possible)


@each_expression
def test_what_is_kept_is_there_to_be_kept(expression):
    """Whatever an aggregation groups by, all of its series have, or `label_replace` or `label_join` gave it to them."""
    for kept, argument in aggregations(expression):
        made = {
            *re.findall(r'label_replace\(.*?, "(\w+)", "[^"]*", "\w*", "[^"]*"\)', argument),
            *re.findall(r'label_join\(.*?, "(\w+)", "[^"]*"(?:, "\w+")+\)', argument),
        }
        for name, _ in SELECTOR.findall(argument):
            if name not in RECORDED:
                assert kept <= {*SERIES[name], *TARGET_LABELS, *made}


@each_expression
def test_targets_are_the_chosen_ones(expression):
    """Job and instance narrow every selector; what is recorded of a job as a whole has no instance."""
    for name, matchers in SELECTOR.findall(expression):
        of_a_job = name in RECORDED or name.startswith("ALERTS")
        chosen = {("job", "=~", "$job")} | (set() if of_a_job else {("instance", "=~", "$instance")})
        assert chosen == {each for each in MATCHER.findall(matchers) if each[0] in TARGET_LABELS}


@each_expression
def test_counters_are_asked_for_their_growth(expression):
    """Counters by `rate` over `$__rate_interval`, or `increase`, also over all of the time shown; gauges as they are."""
    for call, name, width in re.findall(r"(?:\b(\w+)\()?([a-zA-Z_][\w:]*)\{[^}]*\}(?:\[([^]]*)\])?", expression):
        if name in COUNTED:
            assert (call, width) in {
                ("rate", "$__rate_interval"),
                ("increase", "$__rate_interval"),
                ("increase", "$__range"),
            }
        else:
            assert (width, call in {"rate", "increase"}) == ("", False)


@each_expression
def test_nothing_is_made_up(expression):
    """No data is no data: a nought in its place would say that all is well. Quantiles are of buckets by their bounds."""
    assert "vector(" not in expression
    assert "absent" not in expression
    assert expression.count("histogram_quantile(") == expression.count("_bucket{")
    for kept, argument in aggregations(expression):
        if re.match(r"rate\(\w+_bucket\{", argument):
            assert "le" in kept


@each_panel
def test_panel_explains_itself(panel):
    """A panel has a title, the one question that it answers, how to read it, a unit, and words for no data."""
    assert panel["title"]
    question, reading, *runbook = panel["description"].split("\n\n")
    assert re.fullmatch(r"\*\*[^?]+\?\*\*", question)
    assert len(reading) > 40
    for line in runbook:
        assert re.fullmatch(r"Runbook: docs/runbooks/(\w+)\.md", line)[1] in FIRING
    assert panel["fieldConfig"]["defaults"]["unit"]
    # Grafana would write the words at each mark of a logarithmic axis that has no number.
    logarithmic = "scaleDistribution" in panel["fieldConfig"]["defaults"].get("custom", {})
    assert logarithmic != ("noValue" in panel["fieldConfig"]["defaults"])


@each_panel
def test_panel_asks_the_chosen_datasource(panel):
    """No panel is tied to one Prometheus."""
    assert panel["targets"]
    for asking in (panel, *panel["targets"]):
        assert asking["datasource"] == DATASOURCE


@each_panel
def test_letters_are_unique(panel):
    """Each query of a panel has a letter of its own; quantiles drawn over time show single requests."""
    letters = [target["refId"] for target in panel["targets"]]
    assert sorted(set(letters)) == letters
    for target in panel["targets"]:
        over_time = panel["type"] == "timeseries"
        assert over_time == target["range"] == (not target["instant"])
        assert target.get("exemplar", False) == (over_time and "histogram_quantile(" in target["expr"])


@each_panel
def test_legend_names_labels_that_the_query_keeps(panel):
    """A legend's labels are those the query groups by, so no two series are called the same."""
    if panel["type"] != "table":
        for target in panel["targets"]:
            kept, _ = next(aggregations(target["expr"]))
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) == kept - {"le"}


@each_panel
def test_next_dashboard_exists(panel):
    """A link leads to one of ours, with the time and the variables."""
    for link in panel.get("links", []):
        uid, question, variables = re.fullmatch(r"/d/([\w-]+)(\?)(.*)", link["url"]).groups()
        assert uid in TITLES
        assert (question, variables) == ("?", "${__url_time_range}&${__all_variables}")


def test_dashboards_have_their_addresses():
    """Each is a file by the end of its uid."""
    assert {f"relay-{stem}": dashboard["title"] for stem, dashboard in DASHBOARDS.items()} == {
        uid: f"Relay: {title}" for uid, title in TITLES.items()
    }
    assert {dashboard["uid"] for dashboard in DASHBOARDS.values()} == TITLES.keys()


@each_dashboard
def test_dashboard_has_its_frame(dashboard):
    """Nobody edits it in the browser; it renews itself, and is linked with the others by their tag."""
    assert (False, "30s") == (dashboard["editable"], dashboard["refresh"])
    assert {"from": "now-1h", "to": "now"} == dashboard["time"]
    assert ["relay"] == dashboard["tags"] == dashboard["links"][0]["tags"]
    assert len(dashboard["panels"]) <= 13


@each_dashboard
def test_dashboard_has_its_variables(dashboard):
    """The datasource, job and instance are chosen at the top; the latter two come from a metric that always exists."""
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "instance"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    for name in ("job", "instance"):
        assert variables[name]["datasource"] == DATASOURCE
        assert variables[name]["query"]["query"].startswith("label_values(relay_build_info")
        assert (variables[name]["multi"], variables[name]["includeAll"]) == (True, True)


@each_dashboard
def test_panels_lie_side_by_side(dashboard):
    """Numbers are unique, and the panels cover all of the 24 columns without overlapping."""
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(numbers) == len(set(numbers))
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    taken = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken)) == 24 * max(y + 1 for _, y in taken)
    assert max(x for x, _ in taken) < 24


def test_provisioned_datasource_is_named_by_the_environment():
    """No address of a Prometheus is written down outside a comment."""
    lines = (GRAFANA / "provisioning/datasources/prometheus.yaml").read_text().splitlines()
    settings = [line.strip() for line in lines if not line.strip().startswith("#")]
    assert "url: $PROMETHEUS_URL" in settings
    assert not [line for line in settings if "://" in line]
