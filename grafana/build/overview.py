"""Are users served, did anything unchecked get out, what does moderation cost, and which part is to blame?"""

from __future__ import annotations

from grafana_foundation_sdk.builders.stat import Panel as Figures
from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Property

from grafana.build.frame import framed
from grafana.build.panels import (
    Ask,
    Query,
    called,
    cell,
    colour,
    events,
    figures,
    inked,
    judged,
    lines,
    logarithmic,
    quantiles,
    stacked,
    table,
    unit,
)
from grafana.build.promql import BY_FAILURE, UNJUDGED, UNSERVED, each, hops, quantile, rate, share
from relay.metrics import families

# Chat requests, without those that the client got wrong or gave up: what the objective speaks of.
VALID = 'operation="chat", outcome!~"refused|client_gone"'
FAILED = f'operation="chat", outcome=~"{UNSERVED}"'

# The objectives, over 30 days: 99.9 % of requests served, 95 % of first texts within 2.5 s. What may fail of each:
UNSERVED_BUDGET = 0.001
SLOW_BUDGET = 0.05
# At 1 the budget lasts its 30 days, at 6 five days, at 14.4 two: what the alerts are set to.
BURN = {1: "yellow", 6: "orange", 14.4: "red"}

# How late the loop of each relay is called back, which is what all that it does waits besides.
LAG = quantile(0.95, "relay_loop_lag_seconds", "instance")

# What alerts are of: see `by` in grafana/alerts/rules.yaml, and `labels` in alerts.yaml.
ALERT_LABELS = ("moderator", "upstream", "plugin", "hook", "concern", "kind", "reason", "sign", "window")

# The codes that are not the client's doing are red, orange and brown; of the others a request that is wrong is pale.
CODES = (
    *("invalid_api_key", "rate_limit_exceeded", "too_many_requests_in_flight", "insufficient_user_quota"),
    *("content_filter", "auth_unavailable", "quota_unavailable", "moderation_unavailable", "moderation_stalled"),
    *("upstream_auth", "upstream_error", "upstream_unavailable", "upstream_timeout", "upstream_malformed"),
    *("upstream_incomplete", "draining", "internal_error"),
)
WRONG = "/^(bad_|headers_|invalid_(?!api_key)|repeated_|keyword_|request_|unsupported_|not_found|method_)/"

NOTHING = Property(id_val="noValue", value="–")

SEVERITIES = called({"page": ("page", "red"), "ticket": ("ticket", "orange")})


def made() -> schema.Dashboard:
    return framed(
        "relay-overview",
        "Whether users are served, whether anything unchecked got out, what moderation costs, which part is to blame.",
        [
            _served(),
            _burn(),
            _unchecked(),
            _streams(),
            _parts(),
            _price(),
            _hops(),
            _alerts(),
            _split(),
            _first_text(),
            _outcomes(),
            _codes(),
            _burning(),
        ],
    )


def _served() -> Figures:
    unserved = share(rate("relay_requests_total", where=FAILED), rate("relay_requests_total", where=VALID))
    return (
        figures(
            "Served now",
            Ask(
                "Are users served?",
                "The share of chat requests of the last minute or so that were served to their end. Those that the "
                "client got wrong or gave up are left out. Below 99.9 %: *Which part is to blame?* has the culprit; "
                "or go by *Requests by outcome*: upstream_error → Upstreams; unavailable → Moderation, or Keys and "
                "quota (the store); internal_error → Plugins and process.",
                then=("relay-upstreams", "relay-moderation", "relay-keys", "relay-process"),
                empty="no requests",
                runbook="RelayErrorBudgetBurn",
            ),
            "percentunit",
            [Query(f"1 - {unserved}")],
            # From below: green is what is at the top.
            limits={0.99: "orange", 0.999: "green"},
            base="red",
        )
        .span(4)
        .decimals(2)
    )


def _burn() -> Figures:
    return (
        figures(
            "Error budgets, last hour",
            Ask(
                "Do the error budgets last?",
                "How many times faster than it may each is being spent: below 1 it lasts its 30 days, at 14.4 two "
                "days. *served*: 99.9 % of requests; *first text*: 95 % of streams within 2.5 s. The worst job's, "
                "over all of its instances. A Prometheus that has seen less than an hour takes what it has for all "
                "of it.",
                then="relay-upstreams",
                empty="no requests",
                runbook="RelayErrorBudgetBurn",
            ),
            "suffix:×",
            [
                Query(f"max(relay:unserved:ratio_rate1h{{}}) / {UNSERVED_BUDGET}", "served"),
                Query(f"max(relay:slow_first_text:ratio_rate1h{{}}) / {SLOW_BUDGET}", "first text"),
            ],
            limits=BURN,
        )
        .span(7)
        .decimals(1)
    )


def _unchecked() -> Figures:
    released = "relay_released_unverified_characters_total"
    return (
        figures(
            "Characters released unchecked",
            Ask(
                "Did anything leave that no moderator passed?",
                "In the time that is looked at. *by failure*: a moderator gave no verdict, and `on_failure` says to "
                "go on; anything but 0 is an incident. *as configured*: by mode (shadow, trailing) or option "
                "(`unknown_fields`, `opaque`). Without the moderation plugin nothing is checked, and nothing counted.",
                then="relay-moderation",
                empty="no relay",
                runbook="RelayReleasedUnverified",
            ),
            "short",
            [
                Query(f'sum(increase({released}{{reason=~"{BY_FAILURE}"}}[$__range]))', "by failure"),
                Query(f'sum(increase({released}{{reason!~"{BY_FAILURE}"}}[$__range]))', "as configured"),
            ],
            # Half a character: what increase() makes of a scrape that comes late is no release.
            limits={0.5: "red"},
        )
        .span(8)
        .decimals(0)
        .override_by_name("as configured", [judged({0.5: "blue"})])
    )


def _streams() -> Figures:
    return (
        figures(
            "Streams now",
            Ask(
                "How much is going on?",
                "Replies that are being streamed to clients. None at a busy hour: do requests come at all?",
                then="relay-process",
                empty="no relay",
            ),
            "short",
            [Query("sum(relay_open_streams{})")],
        )
        .span(5)
        .decimals(0)
    )


def _parts() -> Figures:
    return (
        figures(
            "Parts",
            Ask(
                "Is any part down?",
                "*relays* that do not answer Prometheus; *moderators* that are not asked, because their breaker is "
                "open or probing; *upstreams* that are asked only after all others; the *store*, if it is not "
                "reached. Of these three the opinion of one worker of one relay suffices: not well need not be down. "
                "*loop lag*: how late the loop of the slowest relay called back, 19 times in 20; from 50 ms on "
                "something blocks it, and every other part looks slow. A kind of part that is not configured is "
                "missing.",
                then="relay-process",
                empty="no relay",
                runbook="RelayDown",
            ),
            "suffix:not well",
            [
                Query("sum(relay:instances_down:count{})", "relays"),
                Query("sum(max by (moderator) (relay_moderation_breaker_state{}) > bool 0)", "moderators"),
                Query("sum(max by (upstream) (relay_upstream_ejected{}))", "upstreams"),
                Query("1 - min(relay_store_up{})", "store"),
                Query(f"max({LAG})", "loop lag"),
            ],
            limits={1: "red"},
        )
        .span(13)
        .decimals(0)
        .mappings(called({"0": ("up", "green")}))
        .override_by_name("relays", unit("suffix:down"))
        .override_by_name("loop lag", [*unit("s", 0), judged({0.05: "yellow", 0.25: "red"})])
    )


def _price() -> Figures:
    calls, came = rate("relay_moderation_calls_total"), rate("relay_moderation_characters_total", where='state="in"')
    return (
        figures(
            "Moderation's price",
            Ask(
                "What does moderation cost, and how late does it make replies?",
                "Calls to moderators for 1,000 characters of replies, requests' checks among them: some 16 with "
                "windows of the default size. By how much the first text leaves later, for 19 in 20 moderated "
                "replies. And how much of the fullest budget is used: relays that share a store give out 89 % of it "
                "at most, so 75 % is red, where the alert is too. None of the three says that moderation is well: "
                "while it is down nothing is sent, and all of them are low. *Parts* and *Which part is to blame?* say "
                "that.",
                then="relay-moderation",
                empty="nothing moderated",
            ),
            "short",
            [
                Query(f"1000 * {share(calls, came)}", "calls / 1,000 characters"),
                Query(quantile(0.95, "relay_moderation_first_text_seconds"), "first text later"),
                Query("max(relay:moderation_budget:ratio{})", "of the budget"),
            ],
            limits={},
        )
        .span(11)
        .override_by_name("calls / 1,000 characters", [*unit("short", 1), colour("blue")])
        .override_by_name("first text later", [*unit("s"), judged({1.5: "yellow", 3: "red"})])
        .override_by_name("of the budget", [*unit("percentunit", 0), judged({0.6: "yellow", 0.75: "red"})])
    )


def _hops() -> Table:
    clients, checks = "relay_requests_total", "relay_moderation_checks_total"
    asked = 'outcome!="cached", moderator!="other"'
    counted = hops(
        each("client", rate(clients, where=VALID)),
        each("plugin", rate("relay_plugin_requests_total", "plugin"), "plugin"),
        each("moderator", rate(checks, "moderator", where=asked), "moderator"),
        each("upstream", rate("relay_upstream_requests_total", "upstream"), "upstream"),
        each("store", rate("relay_store_commands_total")),
    )
    failed = hops(
        each("client", rate(clients, where=FAILED)),
        each("plugin", rate("relay_plugin_requests_total", "plugin", where='outcome="failed"'), "plugin"),
        each("moderator", rate(checks, "moderator", where=f'outcome=~"{UNJUDGED}", moderator!="other"'), "moderator"),
        each("upstream", rate("relay_upstream_errors_total", "upstream"), "upstream"),
        each("store", rate("relay_store_commands_total", where='outcome!="ok"')),
    )
    took = hops(
        each("client", quantile(0.95, "gen_ai_server_time_to_first_token_seconds")),
        each("plugin", quantile(0.95, "relay_plugin_seconds", "plugin"), "plugin"),
        each("moderator", quantile(0.95, "relay_moderation_call_seconds", "moderator"), "moderator"),
        each("upstream", quantile(0.95, "relay_upstream_first_text_seconds", "upstream"), "upstream"),
        each("store", quantile(0.95, "relay_store_seconds")),
        each("relay loop", f"max({LAG})"),
    )
    return (
        table(
            "Which part is to blame?",
            Ask(
                "Which part fails, or is slow?",
                "A row for each part that was asked for something in the last minute or so, those that fail first: "
                "how often it was asked, how much of that failed, and the time that 19 in 20 stay under: to the first "
                "text (client, upstream), for the request (plugin), a call (moderator), a write (store). The client's "
                "row is what users feel; of the others the one that is red, or takes most of the client's time, is to "
                "blame. The relay loop's time is how late the slowest one called back: normal is below 10 ms; from "
                "50 ms on something blocks it, and what else is slow may be only its victim. Times are yellow from "
                "1 s and red from 2.5 s; that is no fault of an upstream whose replies are not streamed. If only the "
                "client's row is red: the relay itself. An upstream's errors may have been retried elsewhere.",
                then=("relay-process", "relay-moderation", "relay-upstreams"),
                empty="no requests",
            ),
            "short",
            [
                Query(f"({counted}) > 0", "Per second"),
                Query(f"({failed}) / (({counted}) > 0)", "Failed"),
                Query(took, "95 % within"),
            ],
            labels={"hop": "Part"},
            worst=("Failed",),
        )
        .span(15)
        .height(14)
        .override_by_name("Per second", [*unit("short", 1), NOTHING])
        .override_by_name(
            "Failed", [*unit("percentunit", 2), judged({0.001: "orange", 0.01: "red"}, "transparent"), cell(), NOTHING]
        )
        .override_by_name("95 % within", [*unit("s"), judged({1: "yellow", 2.5: "red"}, "text"), inked(), NOTHING])
    )


def _outcomes() -> Lines:
    ended = rate("relay_requests_total", "outcome", where='operation="chat"')
    return (
        stacked(
            lines(
                "Requests by outcome",
                Ask(
                    "How did requests end?",
                    "Good: completed, filtered (cut by moderation), exhausted (cut where the quota ended). The "
                    "client's own: refused, client_gone. Ours: unavailable (something we need was away, or we were "
                    "too busy), upstream_error, drained, internal_error.",
                    then="relay-keys",
                ),
                "reqps",
                [Query(ended, "{{outcome}}")],
                colours=families.OUTCOMES,
                ranked=True,
            )
        )
        .span(12)
        .height(9)
    )


def _codes() -> Lines:
    return (
        events(
            lines(
                "Errors by code",
                Ask(
                    "What are clients told, and is it their doing?",
                    "Requests that were answered with an error, by its code. Theirs: invalid_…, content_filter, "
                    "rate_limit_exceeded, too_many_requests_in_flight, insufficient_user_quota and the like. Ours: "
                    "upstream_… → Upstreams; moderation_… → Moderation; auth_unavailable, quota_unavailable → the "
                    "store; draining, internal_error → Plugins and process. Not among them: streams that broke off "
                    "after their first text.",
                    then=("relay-upstreams", "relay-moderation", "relay-keys", "relay-process"),
                    empty="no errors in this time",
                ),
                "reqps",
                [Query(f"{rate('relay_refusals_total', 'code')} > 0", "{{code}}")],
                colours=CODES,
            )
        )
        .override_by_regexp(WRONG, [colour("super-light-yellow")])
        .span(12)
        .height(9)
    )


def _split() -> Lines:
    # One denominator for all, replies, so that they can be laid one upon the other.
    replies = f"({rate('relay_overhead_seconds_count')} > 0)"
    return stacked(
        lines(
            "First text: where the time goes",
            Ask(
                "Who makes users wait: the upstream, moderation, or the relay itself?",
                "Averages of all replies, one upon the other: what they are together is the average time to the first "
                "text (of a reply that is not streamed: to the whole). *relay* is everything else, the plugins and "
                "the store among it; usually a few milliseconds.",
                then="relay-moderation",
                empty="no replies in this time",
            ),
            "s",
            [
                Query(f"{rate('relay_upstream_first_text_seconds_sum')} / {replies}", "upstream"),
                Query(f"{rate('relay_moderation_first_text_seconds_sum')} / {replies}", "moderation"),
                Query(f"{rate('relay_overhead_seconds_sum')} / {replies}", "relay"),
            ],
            colours=("upstream", "moderation", "relay"),
        )
    )


def _first_text() -> Lines:
    return lines(
        "First text: how long users wait",
        Ask(
            "How long do users wait for the first text of a stream?",
            "Of two, of twenty and of a hundred streams all but one have their first text by then. The objective is "
            "p95 below 2.5 s, the dashed line. The dots are single requests: their id leads to their log line.",
            then="relay-upstreams",
            empty="no streams in this time",
            runbook="RelayFirstTextBudgetBurn",
        ),
        "s",
        quantiles("gen_ai_server_time_to_first_token_seconds"),
        colours=("p50", "p95", "p99"),
        limits={2.5: "red"},
    )


def _burning() -> Lines:
    served = ("served", "relay:unserved:ratio_rate", UNSERVED_BUDGET)
    slow = ("first text", "relay:slow_first_text:ratio_rate", SLOW_BUDGET)
    panel = lines(
        "Error budgets: how fast they are spent",
        Ask(
            "Is it getting better or worse, and since when?",
            "How many times faster than it may a budget was spent over the last hour, 6 hours and 3 days. An alert "
            "comes at 14.4 (1 h), 6 (6 h) and 1 (3 d): the dashed lines. If a short window is low again while a long "
            "one is high, it is over. A Prometheus that has seen less than a window takes what it has for all of it: "
            "in its first hour the three are the same.",
            then="relay-upstreams",
            empty="",
        ),
        "suffix:×",
        [
            Query(f"max({recorded}{window}{{}}) / {budget}", f"{objective} {window}")
            for objective, recorded, budget in (served, slow)
            for window in ("1h", "6h", "3d")
        ],
        limits=BURN,
        ranked=True,
    )
    for name, shade in zip(("served 1h", "served 6h", "served 3d"), ("red", "orange", "yellow"), strict=True):
        panel.override_by_name(name, [colour(shade)])
    for name, shade in zip(
        ("first text 1h", "first text 6h", "first text 3d"), ("purple", "blue", "light-blue"), strict=True
    ):
        panel.override_by_name(name, [colour(shade)])
    return logarithmic(panel, 1).span(24).height(8).decimals(1)


def _alerts() -> Table:
    # Of ALERTS_FOR_STATE the value is when it began, in seconds; whether it fires stands in ALERTS alone.
    fires = 'ALERTS{alertname=~"Relay.+", alertstate="firing"}'
    since = f'ALERTS_FOR_STATE{{alertname=~"Relay.+"}} and ignoring (alertstate) {fires}'
    # One column for all labels: an alert has one or two of them, and a browser draws spaces in a row as one.
    labels = ", ".join(f'"{label}"' for label in ALERT_LABELS)
    told = f'label_join({since}, "of", " ", {labels})'
    return (
        table(
            "Alerts",
            Ask(
                "Does anything need somebody now?",
                "What fires, of what, and since when what it is about has been so. For each there is a page that says "
                "what to do: docs/runbooks/ALERTNAME.md. page: now; ticket: in the morning. Sometimes it takes minutes "
                "until one fires: the figures above are faster.",
                then="relay-process",
                empty="no alert fires",
            ),
            "none",
            [Query(f"1000 * min by (alertname, severity, of) ({told})", "Since")],
            labels={"alertname": "Alert", "of": "Of", "severity": "Severity"},
        )
        .span(9)
        .height(14)
        .override_by_name("Alert", [Property(id_val="custom.width", value=210)])
        # Else spaces alone, of an alert without any of the labels, would be read as the number 0.
        .override_by_name("Of", unit("string"))
        .override_by_name("Since", [*unit("dateTimeFromNow"), Property(id_val="custom.width", value=140)])
        .override_by_name(
            "Severity",
            [Property(id_val="mappings", value=SEVERITIES), cell(), Property(id_val="custom.width", value=75)],
        )
    )
