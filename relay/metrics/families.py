"""Every metric of ours, and the closed sets of its labels: the reference, of which docs/metrics.md is made.

A name never changes its meaning. A new one comes with its line in a dashboard or a reason why not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from relay.pure.health import REASONS

Across = Literal["livesum", "livemax", "livemin"]


class Configured(NamedTuple):
    """The closed set of a label whose values the configuration names. what: of which things, for the reference."""

    what: str


Values = tuple[str, ...] | Configured


class Family(NamedTuple):
    """One metric, as it is named in queries. A histogram's series add `_bucket` (with `le`), `_sum` and `_count`.

    labels: each with the values that it can have. across: of a gauge, how the values of several workers become one; a
    worker that is gone counts no more. Counters and histograms are summed, those of the dead included.
    buckets: of a histogram, upper bounds in its unit.
    """

    name: str
    type: Literal["counter", "gauge", "histogram"]
    help: str
    labels: Mapping[str, Values] = MappingProxyType({})
    across: Across | None = None
    buckets: tuple[float, ...] = ()


OTHER = "other"

OPERATIONS = ("chat", "models", "quota", OTHER)
"""What was asked for; "chat" under whichever dialect's route, "other" under none."""

OUTCOMES = (
    "completed",
    "filtered",
    "exhausted",
    "refused",
    "unavailable",
    "upstream_error",
    "client_gone",
    "drained",
    "internal_error",
)
"""How a request ended. "filtered": the reply was cut by moderation; a prompt that moderation refuses is "refused", as is
whatever else is the client's own doing. "exhausted": the reply was cut where the quota ended. "unavailable": it could not
be served, or not to its end, because something that we depend on was away or we were too busy; not an upstream."""

UNSERVED = ("unavailable", "upstream_error", "drained", "internal_error")
"""The outcomes that are not the client's doing: what availability is measured by."""

REFUSALS = (
    "bad_request",
    "headers_too_large",
    "invalid_api_key",
    "invalid_json",
    "repeated_key",
    "invalid_messages",
    "invalid_model",
    "invalid_n",
    "invalid_stream",
    "invalid_temperature",
    "invalid_max_tokens",
    "invalid_max_completion_tokens",
    "invalid_presence_penalty",
    "invalid_frequency_penalty",
    "invalid_top_p",
    "invalid_user",
    "invalid_logit_bias",
    "invalid_keyword",
    "keyword_too_long",
    "request_too_large",
    "request_timeout",
    "unsupported_media_type",
    "not_found",
    "method_not_allowed",
    "content_filter",
    "rate_limit_exceeded",
    "too_many_requests_in_flight",
    "insufficient_user_quota",
    "quota_unavailable",
    "auth_unavailable",
    "audit_unavailable",
    "moderation_unavailable",
    "moderation_stalled",
    "mixed_models",
    "overdue",
    "upstream_auth",
    "upstream_error",
    "upstream_unavailable",
    "upstream_timeout",
    "upstream_malformed",
    "upstream_incomplete",
    "draining",
    "internal_error",
    OTHER,
)
"""The `code` of an error body that was answered in place of a reply. Codes that an upstream or a plugin of somebody
else's made up are "other"."""

UPSTREAM_OUTCOMES = ("answered", "refused", "failed", "cancelled", OTHER)
"""Of one request to an upstream: a head with status 200 came; another status came; no head came; the client left before it."""

UPSTREAM_ERRORS = (
    *("connect", "first_byte", "idle", "status", "died", "malformed", "incomplete", "reported", "error"),
    OTHER,
)
"""What an upstream did wrong: the `kind` of an `UpstreamError`."""

EJECTIONS = REASONS
"""What had gone wrong with an upstream: `relay.pure.health`."""

RETRIES = ("retried", "over_budget")
"""Of a failure that may be retried."""

CHARACTERS = ("in", "checked", "released", "withheld", "blocked")
"""Of guarded text: came; shown to moderators (overlap counts twice); sent to the client; dropped without being
flagged itself (the tail after a cut, or the client left); dropped in a flagged window.
At the end of every reply in = released + withheld + blocked."""

UNJUDGED = ("timeout", "error", "breaker_open", "rate_limited", "unauthorized")
"""Why a moderator gave no verdict: every call took too long; failed; it was down and not asked; it was asked too often;
it refuses to be asked at all."""

UNVERIFIED = (*UNJUDGED, "request", "ahead", "shadow", "unknown_field", "opaque", OTHER)
"""Why text left without a verdict: there was none and `on_failure = "open"` (`request`: in a request, to an upstream); it
was ahead of one that did not come in time; the mode; the two options."""

CHECKS = ("pass", "review", "mask", "block", *UNJUDGED, "cached", OTHER)
"""What became of one check: what the verdict means by the policy for labels; why there is none; or the verdict was known
already, or asked for by another request."""

PLUGIN_OUTCOMES = ("passed", "answered", "refused", "failed", "overdue", "cancelled")
"""What a plugin did with a request: nothing that ends it; gave the answer; refused it; raised what is no refusal; took longer
than its budget; the client left, or the relay stopped, while it was at work."""

PLUGIN_HOOKS = ("translate", "on_request", "on_stream", "feed", "end", "on_end", OTHER)
"""Where a plugin failed: its hooks, and the two methods of its sink."""

PROMISES = ("slot", "reservation")
"""What the store holds for a request until it ends: a place in flight (rate_limit), units of a balance (quota)."""

BREAKER_STATES = ("closed", "probing", "open")
"""Of a moderator, in the order of the numbers that stand for them."""

GEN_AI_OPERATIONS = ("chat",)
"""The operations that the GenAI conventions speak of; a list of models or a wrong path would only blur their quantiles."""

CLEAN = ("completed", "filtered", "exhausted")
"""The outcomes of a reply that ended as it should."""

ERROR_TYPES = ("", "client", "server")
"""Whose doing it was that a request did not end as it should, if it did not: "server" is `UNSERVED`. (Every value costs
sixteen series for each model; how it ended stands in relay_requests_total.)"""

TOKEN_TYPES = ("input", "output")

MODELS = Configured('the models of [[upstreams]] by their public names, and "other"')
UPSTREAMS = Configured('the names of [[upstreams]], and "other"')
PLUGINS = Configured("the names of [[plugins]]")
MODERATORS = Configured('the names of the moderators, "guard" for what needs none, and "other"')
LABELS = Configured('the labels that a moderator can give, and "other"')
RUNNING = Configured("what is installed")
WORKER_NUMBERS = Configured("the numbers of the workers, from 0")

# Buckets in seconds; the first three are OpenTelemetry's, as are those of tokens.
REQUEST_DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
FIRST_TOKEN_BUCKETS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1, 2.5, 5, 7.5, 10, 15, 20, 30, 45, 60),
)
OUTPUT_TOKEN_BUCKETS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)
TOKEN_BUCKETS = tuple(4**power for power in range(14))
# From a tenth of a millisecond, which is what the chain costs without a moderator that waits.
OVERHEAD_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
CALL_BUCKETS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5)
# Up to the default `max_wait_ms` and `deadline_ms` together, and what a budget that is short makes of them.
HOLD_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 3.5, 5, 10, 20, 40)
# A write and its answer take a fifth of a millisecond on one machine; the time-out is 50 ms.
STORE_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1)
# A plugin that looks at a header takes a hundredth of a millisecond; one that asks a moderator as long as that does.
PLUGIN_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

REQUESTS = Family(
    "relay_requests_total",
    "counter",
    "Requests that ended, by how they ended.",
    {"operation": OPERATIONS, "outcome": OUTCOMES},
)
REFUSED = Family(
    "relay_refusals_total",
    "counter",
    "Requests answered with an error body instead of a reply, by its code.",
    {"code": REFUSALS},
)
OPEN_STREAMS = Family(
    "relay_open_streams",
    "gauge",
    "Replies being streamed to clients now.",
    across="livesum",
)
CHUNKS = Family(
    "relay_chunks_total",
    "counter",
    "Chunks sent to clients, added when their reply ends.",
)
OVERHEAD = Family(
    "relay_overhead_seconds",
    "histogram",
    "Time that the relay itself took until the first text left, or the whole of a reply that is not streamed: from the "
    "arrival, without the upstream's time and without what moderators made it wait. The store's time is in it.",
    buckets=OVERHEAD_BUCKETS,
)
REQUEST_DURATION = Family(
    "gen_ai_server_request_duration_seconds",
    "histogram",
    "From a request's arrival to the end of its reply.",
    {"gen_ai_operation_name": GEN_AI_OPERATIONS, "gen_ai_request_model": MODELS, "error_type": ERROR_TYPES},
    buckets=REQUEST_DURATION_BUCKETS,
)
FIRST_TOKEN = Family(
    "gen_ai_server_time_to_first_token_seconds",
    "histogram",
    "From a request's arrival to the first text of a stream; the role frame before it does not count.",
    {"gen_ai_operation_name": GEN_AI_OPERATIONS, "gen_ai_request_model": MODELS},
    buckets=FIRST_TOKEN_BUCKETS,
)
OUTPUT_TOKEN = Family(
    "gen_ai_server_time_per_output_token_seconds",
    "histogram",
    "Of a stream whose upstream told its usage: from its first text to its end, by the tokens after the first.",
    {"gen_ai_operation_name": GEN_AI_OPERATIONS, "gen_ai_request_model": MODELS},
    buckets=OUTPUT_TOKEN_BUCKETS,
)
TOKEN_USAGE = Family(
    "gen_ai_client_token_usage",
    "histogram",
    "Tokens of a request and of its reply, where the upstream told them.",
    {"gen_ai_operation_name": GEN_AI_OPERATIONS, "gen_ai_request_model": MODELS, "gen_ai_token_type": TOKEN_TYPES},
    buckets=TOKEN_BUCKETS,
)
IN_FLIGHT = Family(
    "relay_requests_in_flight",
    "gauge",
    "Requests that have come and whose affairs are not settled yet.",
    across="livesum",
)
LOOP_LAG = Family(
    "relay_loop_lag_seconds",
    "histogram",
    "How late the loop called back, asked four times a second: what each request and each chunk waits besides.",
    buckets=LAG_BUCKETS,
)
PLUGIN_REQUESTS = Family(
    "relay_plugin_requests_total",
    "counter",
    "Requests that a plugin was shown, by what it did with them.",
    {"plugin": PLUGINS, "outcome": PLUGIN_OUTCOMES},
)
PLUGIN_SECONDS = Family(
    "relay_plugin_seconds",
    "histogram",
    "How long a plugin kept a request on its way to the upstream; also what it waits for: the store, a moderator.",
    {"plugin": PLUGINS},
    buckets=PLUGIN_BUCKETS,
)
PLUGIN_ERRORS = Family(
    "relay_plugin_errors_total",
    "counter",
    "Times that a plugin raised what is no refusal, by where.",
    {"plugin": PLUGINS, "hook": PLUGIN_HOOKS},
)
PLUGIN_BLOCKS = Family(
    "relay_plugin_blocks_total",
    "counter",
    "Times that a plugin had the loop for a quarter of a second or longer, with a hook that may not wait: all streams wait.",
    {"plugin": PLUGINS},
)
UPSTREAM_FIRST_TEXT = Family(
    "relay_upstream_first_text_seconds",
    "histogram",
    "From asking an upstream to its first text, or the whole of a reply that is not streamed; by who answered in the end.",
    {"upstream": UPSTREAMS},
    buckets=FIRST_TOKEN_BUCKETS,
)
UPSTREAM_REQUESTS = Family(
    "relay_upstream_requests_total",
    "counter",
    "Requests sent to an upstream, retries included.",
    {"upstream": UPSTREAMS, "outcome": UPSTREAM_OUTCOMES},
)
UPSTREAM_FAILURES = Family(
    "relay_upstream_errors_total",
    "counter",
    "What an upstream did wrong, before or inside a reply.",
    {"upstream": UPSTREAMS, "kind": UPSTREAM_ERRORS},
)
UPSTREAM_RETRIES = Family(
    "relay_upstream_retries_total",
    "counter",
    "Retries elsewhere that a failure of this upstream led to, or would have led to but for the budget.",
    {"upstream": UPSTREAMS, "outcome": RETRIES},
)
UPSTREAM_EJECTIONS = Family(
    "relay_upstream_ejections_total",
    "counter",
    "Times that an upstream was put behind all others, by what had gone wrong.",
    {"upstream": UPSTREAMS, "reason": EJECTIONS},
)
UPSTREAM_EJECTED = Family(
    "relay_upstream_ejected",
    "gauge",
    "Whether an upstream is asked only after all others now: 1 or 0. Of several workers each has its own opinion: 1 if any.",
    {"upstream": UPSTREAMS},
    across="livemax",
)
QUOTA_UNITS = ("characters", "tokens", "points")
DIRECTIONS = ("prompt", "reply")
COUNTED_BY = ("relay", "upstream")

CONCERNS = ("auth", "rate_limit", "quota", "moderation")
"""What is done without the store for a while, each in a way of its own."""

QUOTA_CHARGED = Family(
    "relay_quota_charged_total", "counter", "What requests were charged, in units.", {"unit": QUOTA_UNITS}
)
QUOTA_UNCOVERED = Family(
    "relay_quota_uncovered_total",
    "counter",
    "What requests cost beyond their key's balance, so that nobody was charged for it, in units.",
    {"unit": QUOTA_UNITS},
)
QUOTA_TOKENS = Family(
    "relay_quota_tokens_total",
    "counter",
    "Tokens of requests whose upstream told a usage, by who counted them: what the two differ is how far our own is off.",
    {"direction": DIRECTIONS, "counted_by": COUNTED_BY},
)
DEGRADED = Family(
    "relay_degraded_requests_total",
    "counter",
    "Requests that were served without the state that relays share, as the store did not answer.",
    {"concern": CONCERNS},
)
STORE_OUTCOMES = ("ok", "away", "slow", "breaker", "full", "readonly", "error")
"""What became of a command to the store: done, or a `relay.store.port.Trouble`."""

STORE_UP = Family(
    "relay_store_up",
    "gauge",
    "Whether the store is reached and asked: 1 or 0. Of several workers each has its own opinion: 0 if any has.",
    across="livemin",
)
STORE_COMMANDS = Family(
    "relay_store_commands_total",
    "counter",
    "Commands to the store, by what became of them.",
    {"outcome": STORE_OUTCOMES},
)
STORE_SECONDS = Family(
    "relay_store_seconds",
    "histogram",
    "From the first command of one write to the store to the last of its answers.",
    buckets=STORE_BUCKETS,
)
STORE_RESTARTS = Family(
    "relay_store_restarts_total",
    "counter",
    "Times that the embedded store's server ended by itself and was started again.",
)
PROMISED = Family(
    "relay_store_promises",
    "gauge",
    "What the store holds for requests of this relay now. More than there are requests in flight: something leaks.",
    {"kind": PROMISES},
    across="livesum",
)
HISTORY_TRIMMED = Family(
    "relay_history_trimmed_messages_total",
    "counter",
    "Messages that were dropped from conversations which had grown too long.",
)
MODERATION_CHARACTERS = Family(
    "relay_moderation_characters_total",
    "counter",
    "Characters of guarded text by what became of them: in = released + withheld + blocked; checked counts overlap.",
    {"state": CHARACTERS},
)
RELEASED_UNVERIFIED = Family(
    "relay_released_unverified_characters_total",
    "counter",
    "Characters that left without a verdict, to clients or in requests to upstreams, by reason.",
    {"reason": UNVERIFIED},
)
MODERATION_CHECKS = Family(
    "relay_moderation_checks_total",
    "counter",
    "Checks by moderator and what became of them.",
    {"moderator": MODERATORS, "outcome": CHECKS},
)
MODERATION_CALLS = Family(
    "relay_moderation_calls_total",
    "counter",
    "Calls sent to moderators, retries included.",
    {"moderator": MODERATORS},
)
MODERATION_SCANNED = Family(
    "relay_moderation_scanned_characters_total",
    "counter",
    "Characters sent to moderators; overlap and retries count again.",
    {"moderator": MODERATORS},
)
CALL_SECONDS = Family(
    "relay_moderation_call_seconds",
    "histogram",
    "How long calls to moderators took, with or without a verdict at their end; not how long they waited to be sent.",
    {"moderator": MODERATORS},
    buckets=CALL_BUCKETS,
)
BREAKER = Family(
    "relay_moderation_breaker_state",
    "gauge",
    "Whether a moderator is asked now: 0 yes, 1 one call is trying, 2 no. Of several workers the worst.",
    {"moderator": MODERATORS},
    across="livemax",
)
RATE_CEILING = Family(
    "relay_moderation_rate_ceiling",
    "gauge",
    "How many calls a second to a moderator its budget allows at most.",
    {"moderator": MODERATORS},
    across="livemax",
)
RATE_ALLOWED = Family(
    "relay_moderation_rate_allowed",
    "gauge",
    "How many calls a second to a moderator are allowed now; fewer than at most after it was asked too often.",
    {"moderator": MODERATORS},
    across="livemin",
)
CHECKS_WAITING = Family(
    "relay_moderation_checks_waiting",
    "gauge",
    "Checks that wait for a moderator's budget now.",
    {"moderator": MODERATORS},
    across="livesum",
)
VIOLATIONS = Family(
    "relay_moderation_violations_total",
    "counter",
    "Violations found, by moderator and its label.",
    {"moderator": MODERATORS, "label": LABELS},
)
HOLD = Family(
    "relay_moderation_hold_seconds",
    "histogram",
    "The longest time that text was held for a verdict, once per moderated reply.",
    buckets=HOLD_BUCKETS,
)
FIRST_TEXT = Family(
    "relay_moderation_first_text_seconds",
    "histogram",
    "How much later the first text of a reply left, or the whole of one that is not streamed, because of moderation: the "
    "check of the request, if the upstream waited for it, and the time that text was held.",
    buckets=HOLD_BUCKETS,
)
JOURNAL_ENTRIES = Family(
    "relay_journal_entries",
    "gauge",
    "Settlements that wait for the store to be reachable again.",
    across="livesum",
)
JOURNAL_REPLAYED = Family(
    "relay_journal_replayed_total",
    "counter",
    "Settlements that the store took when it was reachable again.",
)
JOURNAL_LOST = Family(
    "relay_journal_lost_total",
    "counter",
    "Settlements that nobody booked: the journal was full, or they were too old, refused or half written.",
)
BUILD_INFO = Family(
    "relay_build_info",
    "gauge",
    "Always 1; the labels say what is running.",
    {"version": RUNNING, "python": RUNNING, "aiohttp": RUNNING},
    across="livemax",
)

RELOAD_RESULTS = ("done", "refused")
"""What became of a relay.toml that was read again: it is served, or there was an error in it and nothing has changed."""

RELOADS = Family(
    "relay_reloads_total",
    "counter",
    "Times that relay.toml was read again while the relay served.",
    {"result": RELOAD_RESULTS},
)

WORKER_STATES = ("starting", "serving", "leaving")
"""Of a worker: does not serve yet; takes requests; takes no new connections, and ends when its replies have ended."""

WORKER_ENDS = ("left", "died", "hung", "refused")
"""Why a worker ended: it was told to; by itself or killed from outside; its loop stood still and it was killed; it could
not serve its configuration."""

WORKERS = Family(
    "relay_workers",
    "gauge",
    "Worker processes, by what they do now.",
    {"state": WORKER_STATES},
)
WORKERS_ENDED = Family(
    "relay_worker_ends_total",
    "counter",
    "Worker processes that have ended, by why.",
    {"reason": WORKER_ENDS},
)
WORKER_CPU = Family(
    "relay_worker_cpu_seconds_total",
    "counter",
    "Processor time that a worker process has used.",
    {"worker": WORKER_NUMBERS},
)
WORKER_MEMORY = Family(
    "relay_worker_resident_memory_bytes",
    "gauge",
    "Memory of a worker process that is resident.",
    {"worker": WORKER_NUMBERS},
)

SUPERVISED = (WORKERS, WORKERS_ENDED, WORKER_CPU, WORKER_MEMORY)
"""What there is besides where `workers` is more than 1. The supervisor counts these itself: nothing is to be summed."""

FAMILIES = tuple(each for each in tuple(globals().values()) if isinstance(each, Family) and each not in SUPERVISED)
