"""Which plugin fails or is slow, and how the processes and the store are."""

from __future__ import annotations

from grafana_foundation_sdk.builders.table import Panel as Table
from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Property

from grafana.build.frame import framed
from grafana.build.panels import Ask, Query, bars, events, lines, logarithmic, quantiles, table
from grafana.build.promql import rate
from relay.metrics import families

# Other processes tell the same of themselves, Prometheus for one.
OF_A_RELAY = "and on (job, instance) relay_build_info{}"


def made() -> schema.Dashboard:
    return framed(
        "relay-process",
        "Which plugin fails or is slow, and how the processes and the store are.",
        [
            _plugins(),
            _plugin_seconds(),
            _lag(),
            _in_flight(),
            _cpu(),
            _memory(),
            _store(),
            _store_seconds(),
            _workers(),
            _running(),
        ],
    )


def _plugins() -> Lines:
    refused = rate("relay_plugin_requests_total", "plugin", where='outcome="refused"')
    ended = rate("relay_plugin_requests_total", "plugin", "outcome", where='outcome=~"answered|failed|overdue"')
    # An error in on_request is that request's outcome, "failed".
    errors = rate("relay_plugin_errors_total", "plugin", "hook", where='hook!="on_request"')
    blocks = rate("relay_plugin_blocks_total", "plugin")
    return events(
        lines(
            "Requests that plugins ended",
            Ask(
                "Which plugin refuses requests, and which one is broken?",
                "refused: as it should (keys, limits, quotas, prompts), or because it could not say: the codes "
                "moderation_unavailable, auth_unavailable and quota_unavailable in *Errors by code* (Overview) are "
                "not as it should; see *Why there is no verdict* (Moderation) and *Store* below. answered: in the "
                "upstream's stead. failed: it raised an error in on_request; *error in*: in another of its hooks. "
                "Both are a defect of the plugin; the log has the traceback. overdue: it took longer than its budget_ms. "
                "*blocks all*: it had the loop for a quarter of a second, while every stream waited; the log names the line.",
                then=("relay-overview", "relay-moderation", "relay-keys"),
                runbook="RelayPluginErrors",
                empty="no plugin ended a request in this time",
            ),
            "reqps",
            [
                Query(f"{refused} > 0", "{{plugin}} refused"),
                Query(f"{ended} > 0", "{{plugin}} {{outcome}}"),
                Query(f"{errors} > 0", "{{plugin}} error in {{hook}}"),
                Query(f"{blocks} > 0", "{{plugin}} blocks all"),
            ],
            colours=("failed",),
        )
    )


def _plugin_seconds() -> Lines:
    return logarithmic(
        lines(
            "How long plugins keep a request",
            Ask(
                "Which plugin makes requests wait?",
                "On its way to the upstream, p95; with what the plugin waits for: the store (a millisecond), a "
                "moderator (as long as its calls take). If the loop's lag is high too, the one that is usually in "
                "microseconds is what blocks; those that wait for the store or a moderator are its victims.",
                then="relay-moderation",
                empty="",
            ),
            "s",
            quantiles("relay_plugin_seconds", "plugin", of=(0.95,)),
            ranked=True,
        ),
        0.0001,
    )


def _lag() -> Lines:
    return lines(
        "Loop lag",
        Ask(
            "Is a process too busy?",
            "How late its loop called back, p99: each request and each chunk waits as long besides. Normal is below "
            "10 ms; from 100 ms on (the dashed line) users feel it: too many streams for its core, or code that "
            "blocks. A process that stands still tells nothing.",
            runbook="RelayLoopLag",
        ),
        "s",
        quantiles("relay_loop_lag_seconds", "instance", of=(0.99,)),
        limits={0.1: "red"},
    )


def _in_flight() -> Lines:
    return lines(
        "Requests in flight",
        Ask(
            "How many requests does each relay work on?",
            "Streams are most of them, unless requests wait for something. One relay with far more than the others: "
            "the balancer. It goes back to 0 when nobody asks; if not, something leaks.",
            then="relay-keys",
        ),
        "short",
        [Query("sum by (instance) (relay_requests_in_flight{})", "{{instance}}")],
        axis="requests",
    )


def _cpu() -> Lines:
    return lines(
        "CPU",
        Ask(
            "Is a process at the end of its core?",
            "A process can use one core: 100 %. From 80 % on (the dashed line) latencies grow: more `workers`, or "
            "more relays. With several workers *main* is the supervisor, which does next to nothing; without, it is "
            "all.",
        ),
        "percentunit",
        [
            Query(f"sum by (instance) (rate(process_cpu_seconds_total{{}}[]) {OF_A_RELAY})", "{{instance}} main"),
            Query(rate("relay_worker_cpu_seconds_total", "instance", "worker"), "{{instance}} worker {{worker}}"),
        ],
        limits={0.8: "red"},
        ranked=True,
    )


def _memory() -> Lines:
    return lines(
        "Memory",
        Ask(
            "Does memory grow without end?",
            "Resident, by process; *main* as in *CPU*. It follows the number of streams and stays near where it was "
            "at most. What grows day by day while *Requests in flight* does not, leaks.",
        ),
        "bytes",
        [
            Query(f"sum by (instance) (process_resident_memory_bytes{{}} {OF_A_RELAY})", "{{instance}} main"),
            Query("sum by (instance, worker) (relay_worker_resident_memory_bytes{})", "{{instance}} worker {{worker}}"),
        ],
        ranked=True,
    )


def _store() -> Lines:
    failed = rate("relay_store_commands_total", "outcome", where='outcome!="ok"')
    return events(
        lines(
            "Store: what did not go well",
            Ask(
                "Does the store answer?",
                "Commands that were not done. away: no connection. slow: no answer within `timeout_ms`. breaker: not "
                "asked, as it had just been silent. full, readonly: it refuses to write. error: it did not "
                "understand. What relays do meanwhile is in docs/operating.md.",
                then="relay-keys",
                runbook="RelayStoreDown",
            ),
            "ops",
            [Query(failed, "{{outcome}}")],
            colours=families.STORE_OUTCOMES[1:],
        )
    )


def _store_seconds() -> Lines:
    return lines(
        "Store: how long it takes",
        Ask(
            "Is the store slow?",
            "From writing commands to the last answer. On one machine some 0.2 ms, in one network 1 ms; `timeout_ms` "
            "(50 ms, the dashed line) is the end. Slow together with the loop's lag: it is not the store.",
            empty="no store, or nothing asked of it in this time",
        ),
        "s",
        quantiles("relay_store_seconds"),
        colours=("p50", "p95", "p99"),
        limits={0.05: "red"},
    )


def _workers() -> Lines:
    return bars(
        lines(
            "Workers, and what ended",
            Ask(
                "Do processes die?",
                "Lines: workers by what they do. Bars: how many ended, and why. left: told to (a reload, a drain). "
                "died, hung: look into the log; each cut its streams. refused: its configuration. *store restarted*: "
                "the embedded one, which had died. Workers are counted from two on. *reload refused*: there is an error "
                "in relay.toml, and the log names its line; until it is mended the old one is served, and a start fails.",
                then="relay-upstreams",
                runbook="RelayWorkerDeaths",
            ),
            "short",
            [
                Query("sum by (state) (relay_workers{})", "{{state}}"),
                Query("round(sum by (reason) (increase(relay_worker_ends_total{}[])))", "ended: {{reason}}"),
                Query("round(sum(increase(relay_store_restarts_total{}[])))", "ended: store restarted"),
                Query("round(sum by (result) (increase(relay_reloads_total{}[])))", "reload {{result}}"),
            ],
            colours=(*families.WORKER_STATES, *families.WORKER_ENDS),
            axis="processes",
            ranked=True,
        ),
        "(ended:|reload).*",
    )


def _running() -> Table:
    return table(
        "What is running",
        Ask(
            "Which versions are running, and since when?",
            "A row for each relay. Two versions side by side are normal during an upgrade only. A relay that started "
            "lately although nobody started it: its log, and the node's.",
        ),
        "none",
        [
            Query("max by (instance, version, python, aiohttp) (relay_build_info{})"),
            Query(f"1000 * max by (instance) (process_start_time_seconds{{}} {OF_A_RELAY})", "Started"),
        ],
        labels={"instance": "Instance", "version": "Version", "python": "Python", "aiohttp": "aiohttp"},
    ).override_by_name("Started", [Property(id_val="unit", value="dateTimeFromNow")])
