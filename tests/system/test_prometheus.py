"""A real Prometheus looks on while relays are hurt in every way there is; everything that operators would ask it has an answer.

Every panel, recording rule and alert is asked over the whole time, in a lapse in which a minute of a rule is a second: it must
say something while all is well, and something else while something is wrong. Which fault a panel shows is found, not said.
What says nothing while all is well, or never anything else, stands in a table, with its reason.
"""

import asyncio
import json
import re
from contextlib import ExitStack
from dataclasses import replace

import pytest
from proof.asked import Asked, alerts, dashboards, lapsed_rules, records
from proof.evidence import AFTER_S, evidence
from proof.prometheus import INTERVAL_S
from proof.promql import compared, unfiltered
from proof.rig import CROWDED, HURT, run

from relay.metrics.families import FAMILIES, SUPERVISED

pytestmark = pytest.mark.system

DASHBOARDS, ALERTS, RECORDS = dashboards(), alerts(), records()
PANELS = [panel for dashboard in DASHBOARDS for panel in dashboard.panels]
ASKED = [asked for dashboard in DASHBOARDS for asked in dashboard.asked]
COUNTS = f"{len(PANELS)} panels, {len(ASKED)} expressions, {len(ALERTS)} alerts, {len(RECORDS)} recording rules"

# Expression → why it shows the same all the time.
STEADY = {
    "moderation: Calls and their budget (3)": "the configured ceiling, a line to compare with",
    "process: What is running": "versions, which are fixed while a process runs",
    "process: What is running (2)": "when a process began",
}
# Expression → why there is nothing to show while all is well.
NOTHING_YET = {
    "overview: Alerts": "none fires",
}
# Alert → where it fires, by relay and fault. Elsewhere it may fire too: faults have consequences.
FIRES = {
    "RelayErrorBudgetBurn page 1h": ("served", "upstreams fail"),
    "RelayErrorBudgetBurn page 6h": ("served", "upstreams fail"),
    "RelayErrorBudgetBurn ticket 3d": ("served", "upstreams fail"),
    "RelayFirstTextBudgetBurn page 1h": ("served", "upstreams slow"),
    "RelayFirstTextBudgetBurn page 6h": ("served", "upstreams slow"),
    "RelayFirstTextBudgetBurn ticket 3d": ("served", "upstreams slow"),
    "RelayModerationOutage page": ("moderated", "moderator down"),
    "RelayModerationBreakerOpen ticket": ("moderated", "moderator down"),
    "RelayReleasedUnverified page": ("lenient", "moderator down, let pass"),
    "RelayModerationBudget ticket calls": ("moderated", "moderator's budget used up"),
    "RelayModerationBudget ticket waiting": ("moderated", "moderator's budget used up"),
    "RelayModerationBudget ticket throttled": ("moderated", "moderator asked too often"),
    "RelayAllUpstreamsFailing page": ("served", "upstreams fail"),
    "RelayUpstreamFailing ticket": ("served", "upstreams down"),
    "RelayUpstreamEjected ticket": ("served", "upstreams down"),
    "RelayStoreDown page": ("lenient", "store silent"),
    "RelayStoreDegraded ticket": ("lenient", "store silent"),
    "RelayJournalGrowing page": ("lenient", "store silent"),
    "RelayJournalGrowing ticket": ("lenient", "store silent"),
    "RelayJournalLost ticket": ("lenient", "store dies"),
    "RelaySlotsLeaking ticket": ("lenient", "slots leak"),
    "RelayDown page": ("visited", "gone"),
    "RelayInstanceDown ticket": ("visited", "gone"),
    "RelayNoWorkers page": ("crew", "workers die"),
    "RelayWorkerDeaths ticket": ("crew", "worker hung"),
    "RelayLoopLag ticket high": ("visited", "loop blocked"),
    "RelayLoopLag ticket long": ("visited", "loop blocked"),
    "RelayPluginErrors ticket": ("visited", "plugin raises"),
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """All that happened, and a Prometheus that remembers it."""
    with ExitStack() as stack:
        told = asyncio.run(run(tmp_path_factory.mktemp("proof"), lapsed_rules(), stack))
        for timeline in told.timelines.values():
            print(timeline)
        yield told


def shown(seen, asked):
    """What an expression shows of each relay, the one of which it shows most first; and all of it, for who reads the report."""
    found = [evidence(seen.prometheus, asked.of(job), timeline) for job, timeline in seen.timelines.items()]
    return sorted(found, key=lambda each: (each.calm and bool(each.moved), each.by[1]), reverse=True)


def moves(seen, asked, record_property):
    """Assert that an expression shows something while all is well, and something else in some fault.

    Of one that leaves noughts out (`> 0`) the same without that, and that it shows something in a fault.
    """
    found = shown(seen, asked)
    if not found[0].moved and (all_of_it := unfiltered(asked.query)) != asked.query:
        assert any(each.come for each in found), f"nothing whatever happens: {asked.of('…')}"
        found = shown(seen, replace(asked, query=all_of_it))
    assert any(each.calm for each in found), f"nothing while all is well: {asked.of('…')}"
    assert found[0].moved, f"the same whatever happens: {asked.of('…')}"
    record_property("shows", f"{found[0].job}: {found[0].by[0]}")


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_a_panel_has_data(seen, asked, record_property):
    """It says something while all is well, and something else while something is wrong."""
    if str(asked) in STEADY:
        assert any(each.calm for each in shown(seen, asked))
    elif str(asked) in NOTHING_YET:
        found = shown(seen, asked)
        assert not any(each.calm for each in found), "it has data while all is well: take it out of the table"
        assert any(each.come for each in found)
    else:
        moves(seen, asked, record_property)


@pytest.mark.parametrize("asked", RECORDS, ids=str)
def test_a_recording_rule_has_data(seen, asked, record_property):
    """What it records moves, and is recorded."""
    moves(seen, asked, record_property)
    moves(seen, Asked(asked.where, asked.what, asked.what), record_property)


@pytest.mark.parametrize("alert", ALERTS, ids=str)
def test_an_alert_fires(seen, alert, record_property):
    """What it compares has data and moves; it fires in its fault, and not while all is well."""
    for side in compared(alert.query):
        moves(seen, Asked(alert.where, side, side), record_property)
    job, fault = FIRES[str(alert)]
    fired = {each: firing(seen, alert, timeline) for each, timeline in seen.timelines.items()}
    assert [] == [each for each, during in fired.items() if "calm" in during]
    assert fault in fired[job], fired
    record_property("fires", fired)


def firing(seen, alert, timeline):
    """The phases of a relay in which an alert fires."""
    labels = {"alertname": alert.what, "alertstate": "firing", "job": timeline.job, **dict(alert.labels)}
    series = f"ALERTS{{{','.join(f'{name}={json.dumps(value)}' for name, value in labels.items())}}}"
    found = seen.prometheus.between(series, timeline.calm.start, timeline.end + AFTER_S)
    at = {time for values in found.values() for time, _ in values}
    calm = timeline.calm
    spans = [(calm.name, calm.start, calm.over)]
    spans += [(fault.name, fault.start + INTERVAL_S, fault.over + AFTER_S) for fault in timeline.faults]
    return [name for name, start, end in spans if any(start <= time <= end for time in at)]


def test_counted(seen, capsys, record_property):
    """Every panel asks something, every rule is loaded and evaluated without an error, and nobody fills gaps with noughts."""
    record_property("counts", COUNTS)
    with capsys.disabled():
        print(f"\n{COUNTS}, all with data")
    loaded = [rule for group in seen.prometheus.get("rules")["groups"] for rule in group["rules"]]
    assert len(ALERTS) + len(RECORDS) == len(loaded)
    assert [] == [(rule["name"], rule["lastError"]) for rule in loaded if rule["health"] != "ok"]
    queries = [each.query for each in (*ASKED, *ALERTS, *RECORDS)]
    assert [] == [query for query in queries if re.search(r"or\s+(on\s*\(\)\s*)?vector\s*\(", query)]
    assert set(FIRES) == {str(alert) for alert in ALERTS}
    assert {*STEADY, *NOTHING_YET} <= {str(asked) for asked in ASKED}


def test_every_family_has_a_sample(seen):
    """Of what the reference names nothing is never seen; and nothing is seen that it does not name."""
    suffixes = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    named = {family.name + suffix for family in (*FAMILIES, *SUPERVISED) for suffix in suffixes[family.type]}
    found = seen.prometheus.names()
    assert set() == named - found
    assert set() == {name for name in found if name.startswith(("relay_", "gen_ai_"))} - named


@pytest.mark.parametrize("job", CROWDED)
def test_a_scrape_leaves_streams_whole(seen, job):
    """Fifty streams run while the relay is scraped once a second; each comes whole."""
    whole, asked, scrapes = seen.crowds[job]
    assert whole == asked
    assert scrapes >= 3


def test_exemplars_name_requests(seen):
    """With one worker a histogram's buckets name requests, which are in the log. Those of the end may be under way still."""
    timeline = seen.timelines["served"]
    series = 'gen_ai_server_time_to_first_token_seconds_bucket{job="served"}'
    found = seen.prometheus.ask("query_exemplars", query=series, start=timeline.calm.start - 10, end=timeline.calm.over)
    ids = {exemplar["labels"]["request_id"] for each in found for exemplar in each["exemplars"]}
    assert ids
    assert ids <= seen.logged["served"]


@pytest.mark.parametrize("job", HURT)
def test_gauges_are_never_negative(seen, job):
    """Nor is any counter, in whatever fault."""
    timeline = seen.timelines[job]
    below = seen.prometheus.between(f'{{__name__=~"relay_.+",job="{job}"}} < 0', timeline.calm.start, timeline.end)
    assert {} == below
