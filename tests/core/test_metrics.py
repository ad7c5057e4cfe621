"""What the relay counts, read back as a scraper reads it."""

import ast
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from relay import consultant, exchange
from relay import metrics as names
from relay.errors import UpstreamError
from relay.metrics import FAMILIES, Metrics, ModerationTally, RequestRecord, Standing
from relay.pure import breaker, ruling


@pytest.fixture
def metrics():
    return Metrics(models=["small", "large"], upstreams=["main"], plugins=["auth", "quota"])


def samples(metrics, accept=""):
    """Every sample of a scrape: (name, labels as a frozenset of pairs) → value."""
    body, content_type = metrics.render(accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def value(metrics, name, **labels):
    return samples(metrics)[name, frozenset(labels.items())]


def ended(**fields):
    return RequestRecord(**{"operation": "chat", "outcome": "completed", "duration_s": 1.0, **fields})


def test_request_is_counted_by_operation_and_outcome(metrics):
    """One request is one count under its operation and outcome, and none under another."""
    metrics.request_ended(ended(outcome="filtered"))
    assert value(metrics, "relay_requests_total", operation="chat", outcome="filtered") == 1
    assert value(metrics, "relay_requests_total", operation="chat", outcome="completed") == 0


def test_request_times_land_in_their_histograms(metrics):
    """Each time that a record carries is observed once, in seconds."""
    metrics.request_ended(
        ended(
            model="small",
            upstream="main",
            stream=True,
            duration_s=3.0,
            first_text_s=0.5,
            upstream_s=0.3,
            moderated_s=0.1998,
            overhead_s=0.0002,
            input_tokens=9,
            output_tokens=11,
            chunks=40,
            steps=[("auth", "passed", 0.00002), ("quota", "passed", 0.0003)],
        )
    )
    model = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "small"}
    assert value(metrics, "gen_ai_server_request_duration_seconds_sum", **model, error_type="") == 3.0
    assert value(metrics, "gen_ai_server_time_to_first_token_seconds_sum", **model) == 0.5
    assert value(metrics, "gen_ai_server_time_per_output_token_seconds_sum", **model) == 0.25
    assert value(metrics, "gen_ai_client_token_usage_sum", **model, gen_ai_token_type="input") == 9
    assert value(metrics, "gen_ai_client_token_usage_sum", **model, gen_ai_token_type="output") == 11
    assert value(metrics, "relay_upstream_first_text_seconds_sum", upstream="main") == 0.3
    assert value(metrics, "relay_moderation_first_text_seconds_sum") == 0.1998
    assert value(metrics, "relay_plugin_seconds_bucket", plugin="auth", le="5e-05") == 1
    assert value(metrics, "relay_plugin_seconds_sum", plugin="quota") == 0.0003
    assert value(metrics, "relay_plugin_requests_total", plugin="quota", outcome="passed") == 1
    assert value(metrics, "relay_overhead_seconds_bucket", le="0.0001") == 0
    assert value(metrics, "relay_overhead_seconds_bucket", le="0.00025") == 1
    assert value(metrics, "relay_chunks_total") == 40


def test_what_did_not_happen_is_not_observed(metrics):
    """A request that ended before its first byte adds nothing to the histograms of what follows."""
    metrics.request_ended(ended(outcome="upstream_error"))
    assert value(metrics, "relay_overhead_seconds_count") == 0
    assert value(metrics, "relay_moderation_first_text_seconds_count") == 0
    spoken = ("gen_ai_server_time_to_first_token", "gen_ai_server_time_per", "gen_ai_client", "relay_upstream_first")
    assert not [name for name, _ in samples(metrics) if name.startswith(spoken)]


def test_a_reply_that_is_not_streamed_has_no_first_token(metrics):
    """It comes as a whole: what its parts took is known, and that a token was first is not."""
    metrics.request_ended(ended(model="small", first_text_s=2.0, upstream_s=1.9, overhead_s=0.1, output_tokens=7))
    assert not [name for name, _ in samples(metrics) if name.startswith("gen_ai_server_time_")]
    assert value(metrics, "relay_upstream_first_text_seconds_count", upstream="other") == 1
    assert value(metrics, "relay_overhead_seconds_sum") == 0.1
    assert value(metrics, "relay_moderation_first_text_seconds_count") == 0  # it was not moderated


def test_exemplars_name_the_request(metrics):
    """The case behind a bucket can be found in the log."""
    metrics.request_ended(
        ended(request_id="req-1", model="small", upstream="main", stream=True, first_text_s=0.5, upstream_s=0.3)
    )
    body = metrics.render("application/openmetrics-text")[0].decode()
    named = {
        sample.name: sample.exemplar.labels
        for family in parse_openmetrics(body)
        for sample in family.samples
        if sample.exemplar
    }
    assert named == {
        f"{name}_bucket": {"request_id": "req-1"}
        for name in (
            "gen_ai_server_request_duration_seconds",
            "gen_ai_server_time_to_first_token_seconds",
        )
    }


def test_failures_of_plugins(metrics):
    """By where; of a plugin that is not configured nothing is counted."""
    metrics.requests.failed("quota", "feed")
    metrics.requests.failed("quota", "somewhere")
    metrics.requests.failed("stranger", "feed")
    assert value(metrics, "relay_plugin_errors_total", plugin="quota", hook="feed") == 1
    assert value(metrics, "relay_plugin_errors_total", plugin="quota", hook="other") == 1
    assert {dict(labels)["plugin"] for name, labels in samples(metrics) if name == "relay_plugin_errors_total"} == {
        "auth",
        "quota",
    }


def test_what_is_in_flight_is_asked_when_it_is_read(metrics):
    """As is what the store holds for requests; of two plugins that hold places it is the sum."""
    metrics.requests.watch(lambda: 3)
    store = metrics.store
    with store.promising("slot", lambda: 2), store.promising("reservation", lambda: 5):
        with store.promising("slot", lambda: 1):
            assert value(metrics, "relay_requests_in_flight") == 3
            assert value(metrics, "relay_store_promises", kind="slot") == 3
            assert value(metrics, "relay_store_promises", kind="reservation") == 5
        assert value(metrics, "relay_store_promises", kind="slot") == 2
    assert value(metrics, "relay_store_promises", kind="slot") == 0


@pytest.mark.parametrize(("late_s", "told"), [(0.0, [0.0]), (0.2, [0.2]), (0.6, [0.6, 0.35, 0.1]), (99.0, [99.0] * 40)])
def test_a_loop_that_was_late(metrics, late_s, told):
    """Who came while it stood still waited too, each a period less; of a machine that slept not all are counted."""
    metrics.lagged(late_s)
    assert value(metrics, "relay_loop_lag_seconds_count") == len(told)
    assert value(metrics, "relay_loop_lag_seconds_bucket", le="0.25") == sum(each <= 0.25 for each in told)


@pytest.mark.parametrize("outcome", names.OUTCOMES)
def test_error_type_is_empty_only_for_clean_ends(metrics, outcome):
    """`error_type` says whose doing it was, and is empty if the reply ended as a reply should."""
    metrics.request_ended(ended(outcome=outcome, model="small"))
    error_type = {"completed": "", "filtered": "", "exhausted": "", "refused": "client", "client_gone": "client"}
    error_type = error_type.get(outcome, "server")
    labels = {"gen_ai_operation_name": "chat", "gen_ai_request_model": "small", "error_type": error_type}
    assert value(metrics, "gen_ai_server_request_duration_seconds_count", **labels) == 1


def test_only_generation_is_in_the_genai_histograms(metrics):
    """A list of models does not blur the durations of chats."""
    metrics.request_ended(ended(operation="models", stream=True, first_text_s=0.1, upstream_s=0.1))
    assert not [name for name, _ in samples(metrics) if name.startswith("gen_ai_")]


def test_values_outside_the_closed_sets(metrics):
    """An unknown value is counted as "other", an unknown outcome as our own fault."""
    metrics.request_ended(ended(operation="dance", outcome="shrug", refusal="because"))
    metrics.request_ended(ended(model="gpt-9"))
    metrics.upstream_request("nowhere", "sulked")
    metrics.upstream_error("nowhere", "sulked")
    metrics.moderated(
        ModerationTally(
            unverified={"laziness": 3},
            checks={("stranger", "guess"): 4},
            violations={("stranger", "Rude"): 5},
        )
    )
    assert value(metrics, "relay_requests_total", operation="other", outcome="internal_error") == 1
    assert value(metrics, "relay_refusals_total", code="other") == 1
    assert (
        value(
            metrics,
            "gen_ai_server_request_duration_seconds_count",
            gen_ai_operation_name="chat",
            gen_ai_request_model="other",
            error_type="",
        )
        == 1
    )
    assert value(metrics, "relay_upstream_requests_total", upstream="other", outcome="other") == 1
    assert value(metrics, "relay_upstream_errors_total", upstream="other", kind="other") == 1
    assert value(metrics, "relay_released_unverified_characters_total", reason="other") == 3
    assert value(metrics, "relay_moderation_checks_total", moderator="other", outcome="other") == 4
    assert value(metrics, "relay_moderation_violations_total", moderator="other", label="other") == 5


def test_closed_sets_hold_what_the_core_says():
    """Every outcome, operation and kind of error that the core can name has a label of its own."""
    assert set(get_args(exchange.OutcomeKind)) == set(names.OUTCOMES)
    assert set(get_args(exchange.Operation)) <= set(names.OPERATIONS)
    assert UpstreamError("", code="upstream_unavailable").kind in names.UPSTREAM_ERRORS
    assert get_args(consultant.Reason) == names.UNJUDGED
    assert set(names.CHECKS) == {*get_args(ruling.Action), *names.UNJUDGED, "cached", names.OTHER}
    assert get_args(breaker.State) == names.BREAKER_STATES


def test_streams_open_and_close(metrics):
    """The gauge says how many are open and returns to zero."""
    metrics.stream_opened()
    metrics.stream_opened()
    assert value(metrics, "relay_open_streams") == 2
    metrics.stream_closed()
    metrics.stream_closed()
    assert value(metrics, "relay_open_streams") == 0


def test_upstreams_are_counted_by_name(metrics):
    """Requests to a configured upstream, and its errors, stand under its name."""
    metrics.upstream_request("main", "answered")
    metrics.upstream_error("main", "idle")
    assert value(metrics, "relay_upstream_requests_total", upstream="main", outcome="answered") == 1
    assert value(metrics, "relay_upstream_errors_total", upstream="main", kind="idle") == 1


def test_trimmed_messages_add_up(metrics):
    """What was dropped of one conversation and of another is one sum."""
    metrics.history_trimmed(3)
    metrics.history_trimmed(4)
    assert value(metrics, "relay_history_trimmed_messages_total") == 7


def test_moderation_tally(metrics):
    """A tally is added up, each of its amounts under its own name."""
    metrics.add_moderator("lexicon", ["insult"])
    tally = ModerationTally(
        came=100,
        checked=130,
        released=70,
        withheld=20,
        blocked=10,
        unverified={"breaker_open": 7},
        checks={("lexicon", "pass"): 3, ("lexicon", "block"): 1},
        violations={("lexicon", "insult"): 1, ("lexicon", "heresy"): 2},
        longest_hold_s=0.4,
    )
    metrics.moderated(tally)
    metrics.moderated(tally)
    states = {
        state: value(metrics, "relay_moderation_characters_total", state=state)
        for state in ("in", "checked", "released", "withheld", "blocked")
    }
    assert states == {"in": 200, "checked": 260, "released": 140, "withheld": 40, "blocked": 20}
    assert value(metrics, "relay_released_unverified_characters_total", reason="breaker_open") == 14
    assert value(metrics, "relay_moderation_checks_total", moderator="lexicon", outcome="pass") == 6
    assert value(metrics, "relay_moderation_checks_total", moderator="lexicon", outcome="block") == 2
    assert value(metrics, "relay_moderation_violations_total", moderator="lexicon", label="insult") == 2
    assert value(metrics, "relay_moderation_violations_total", moderator="lexicon", label="other") == 4
    assert value(metrics, "relay_moderation_hold_seconds_sum") == 0.8


def test_calls_to_moderators(metrics):
    """Every call that is sent is counted with its characters; one that did not end has no duration."""
    calls = metrics.calls("tencent", lambda: WELL)
    calls.sent(400)
    calls.sent(100)
    calls.took(0.06)
    assert value(metrics, "relay_moderation_calls_total", moderator="tencent") == 2
    assert value(metrics, "relay_moderation_scanned_characters_total", moderator="tencent") == 500
    assert value(metrics, "relay_moderation_call_seconds_count", moderator="tencent") == 1
    assert value(metrics, "relay_moderation_call_seconds_bucket", moderator="tencent", le="0.05") == 0
    assert value(metrics, "relay_moderation_call_seconds_bucket", moderator="tencent", le="0.075") == 1


WELL = Standing("closed", 800, 800, 0)


@pytest.mark.parametrize(("state", "number"), [("closed", 0), ("probing", 1), ("open", 2)])
def test_standing_of_moderators(metrics, state, number):
    """How it stands with a moderator is asked when the counts are read, every time."""
    now = WELL
    metrics.calls("tencent", lambda: now)
    assert value(metrics, "relay_moderation_breaker_state", moderator="tencent") == 0
    now = Standing(state, 800, 38.5, 12)
    assert value(metrics, "relay_moderation_breaker_state", moderator="tencent") == number
    assert value(metrics, "relay_moderation_rate_ceiling", moderator="tencent") == 800
    assert value(metrics, "relay_moderation_rate_allowed", moderator="tencent") == 38.5
    assert value(metrics, "relay_moderation_checks_waiting", moderator="tencent") == 12


def test_counters_are_there_before_their_first_event(metrics):
    """`rate()` sees the first event of any kind, because its counter was scraped at zero before."""
    metrics.add_moderator("lexicon", ["insult"])
    metrics.calls("tencent", lambda: WELL)
    counters = {
        (name, labels): amount
        for (name, labels), amount in samples(metrics).items()
        if name.startswith("relay_") and name.endswith("_total")
    }
    assert {family.name for family in FAMILIES if family.type == "counter"} == {name for name, _ in counters}
    assert {0.0} == set(counters.values())


def test_two_relays_do_not_share_counts(metrics):
    """Collectors belong to their `Metrics`."""
    metrics.request_ended(ended())
    other = Metrics(models=["small"], upstreams=["main"])
    assert value(other, "relay_requests_total", operation="chat", outcome="completed") == 0


def test_build_info_names_what_runs(metrics):
    """One series of value 1 names the versions."""
    [(labels, amount)] = [
        (dict(labels), amount) for (name, labels), amount in samples(metrics).items() if name == "relay_build_info"
    ]
    assert amount == 1
    assert {"version", "python", "aiohttp"} == set(labels)
    assert all(labels.values())


@pytest.mark.parametrize(
    ("accept", "openmetrics"),
    [
        # Prometheus 2 and 3, curl, a browser.
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
            "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        (
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
            "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.3",
            True,
        ),
        ("Application/OpenMetrics-Text", True),
        ("*/*", False),
        ("text/html,application/xhtml+xml", False),
        ("", False),
    ],
)
def test_format_follows_the_accept_header(metrics, accept, openmetrics):
    """OpenMetrics for who names it, the text format for all others; both say the same."""
    body, content_type = metrics.render(accept)
    assert openmetrics == content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert openmetrics == body.endswith(b"# EOF\n")
    # What the process collector reads (memory, processor time) moves between two scrapes.
    plain, chosen = samples(metrics), samples(metrics, accept)
    assert {key: amount for key, amount in plain.items() if "process" not in key[0]} == {
        key: amount for key, amount in chosen.items() if "process" not in key[0]
    }


def test_families_are_what_is_exposed(metrics):
    """The list for the documentation and the scrape agree on name, type, help and labels."""
    metrics.request_ended(
        ended(stream=True, first_text_s=1.0, upstream_s=0.5, output_tokens=2, steps=[("auth", "passed", 0.1)])
    )
    metrics.calls("tencent", lambda: WELL)
    metrics.store.watch(lambda: True)
    exposed = {family.name: family for family in parse_text(metrics.render()[0].decode())}
    for name, kind, text, labels, *_ in Metrics.families():
        # The parser drops a counter's `_total`, as OpenMetrics has it.
        family = exposed.pop(name.removesuffix("_total") if kind == "counter" else name)
        assert (kind, text) == (family.type, family.documentation)
        assert {frozenset(labels)} == {frozenset(sample.labels) - {"le"} for sample in family.samples}
    assert all(name.startswith("process_") for name in exposed)


def test_no_created_series(metrics):
    """No `_created` series: they would double the counters for a Prometheus that stores them."""
    assert not [name for name, _ in samples(metrics, "application/openmetrics-text") if name.endswith("_created")]


def test_series_are_bounded_by_the_configuration():
    """A thousand hostile model names and every way to end stay under two thousand series with ten models."""
    models = [f"model-{number}" for number in range(10)]
    plugins = ["auth", "parameters", "rate_limit", "quota", "moderation", "history"]
    metrics = Metrics(models, ["main", "spare"], plugins)
    metrics.add_moderator("lexicon", ["lexicon"])
    metrics.add_moderator("tencent", [f"label-{number}" for number in range(20)])
    metrics.calls("tencent", lambda: WELL)
    hostile = [f'm{number}"}}\n\\' for number in range(1000)]
    for model in models + hostile:
        for outcome in names.OUTCOMES:
            metrics.request_ended(
                ended(
                    model=model,
                    outcome=outcome,
                    refusal=model,
                    upstream=model,
                    stream=True,
                    first_text_s=1.0,
                    upstream_s=0.5,
                    overhead_s=0.1,
                    input_tokens=10,
                    output_tokens=10,
                    steps=[(plugin, "passed", 0.1) for plugin in [*plugins, model]],
                )
            )
    assert len(samples(metrics)) <= 2000


def codes(source: str) -> set[str]:
    """The codes of error bodies that a source names: `code="…"`, and the second argument of InvalidRequest."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            named = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
            if isinstance(node.func, ast.Name) and node.func.id == "InvalidRequest":
                named += node.args[1:2]
            found |= {value.value for value in named if isinstance(value, ast.Constant)}
            found |= {f"invalid_{rule}" for value in named if isinstance(value, ast.JoinedStr) for rule in PARAMETERS}
    return found


# What `parameters` looks at: its codes are made of the names.
PARAMETERS = (
    "temperature max_tokens max_completion_tokens presence_penalty frequency_penalty top_p user logit_bias".split()
)
# What says these answers operators, which is not counted. (One of a guard's failures is named in relay.pure.)
FOR_OPERATORS = {"admin_reload", "admin", "admin_api", "admin_events", "administration", "audit", "keyring"}


def test_refusals_are_the_codes_that_there_are():
    """Every code of the sources is counted under its name, and no name is there for nothing."""
    root = Path(names.__file__).parents[2]
    sources = [
        path
        for folder in ("relay", "plugins/relay_plugins")
        for path in (root / folder).rglob("*.py")
        if "testing" not in path.parts and path.stem not in FOR_OPERATORS
    ]
    named = set().union(*(codes(path.read_text(encoding="utf-8")) for path in sources))
    assert named | {"moderation_stalled", names.OTHER} == set(names.REFUSALS)
