"""Who is turned away, what is charged, and whether anything that was promised or owed got lost."""

from __future__ import annotations

from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Property

from grafana.build.frame import framed
from grafana.build.panels import Ask, Query, bars, colour, dashed, events, lines, stacked
from grafana.build.promql import rate
from relay.metrics import families

CODES = (
    "invalid_api_key",
    "auth_unavailable",
    "rate_limit_exceeded",
    "too_many_requests_in_flight",
    "insufficient_user_quota",
    "quota_unavailable",
)


def made() -> schema.Dashboard:
    return framed(
        "relay-keys",
        "Who is turned away, what is charged, and whether anything that was promised or owed got lost.",
        [
            _refusals(),
            _degraded(),
            _charged(),
            _uncovered(),
            _tokens(),
            _journal(),
            _promises(),
            _trimmed(),
        ],
    )


def _refusals() -> Lines:
    return stacked(
        lines(
            "Turned away by keys, limits and quotas",
            Ask(
                "Who is turned away, and is it our fault?",
                "The client's own: invalid_api_key, rate_limit_exceeded, too_many_requests_in_flight, "
                "insufficient_user_quota. Ours: auth_unavailable and quota_unavailable, as the store is away. Many "
                "wrong keys at once: somebody guesses, or a key was rotated too early. rate_limit_exceeded may be an "
                "upstream's 429, too: see *Upstreams*, Errors.",
                then="relay-process",
            ),
            "reqps",
            [Query(rate("relay_refusals_total", "code", where=f'code=~"{"|".join(CODES)}"'), "{{code}}")],
            colours=CODES,
            ranked=True,
        )
    )


def _degraded() -> Lines:
    return events(
        lines(
            "Served without the store",
            Ask(
                "Is anything decided without the state that relays share?",
                "Requests by concern: auth by keys seen lately, rate_limit by each process's share, quota charged "
                "later, moderation's budget by its share. Empty is normal; else the store is away or slow.",
                then="relay-process",
                runbook="RelayStoreDegraded",
            ),
            "reqps",
            [Query(rate("relay_degraded_requests_total", "concern"), "{{concern}}")],
        )
    )


def _charged() -> Lines:
    return lines(
        "Charged",
        Ask(
            "What are keys charged?",
            "Units a second; the plugin quota says which unit. It falls while requests go on: usage is missing, or "
            "nobody has any balance.",
            then="relay-upstreams",
            empty="nothing charged in this time",
        ),
        "short",
        [Query(f"{rate('relay_quota_charged_total', 'unit')} > 0", "{{unit}}")],
        axis="units a second",
    )


def _uncovered() -> Lines:
    return events(
        lines(
            "Owed by nobody",
            Ask(
                "Is more used than was paid for?",
                "Units beyond a key's balance: upstreams' usage was higher than our own count, or replies were "
                "charged only when the store came back. Little now and then is normal with tokens; steadily: see *Our "
                "count of tokens*.",
            ),
            "short",
            [Query(rate("relay_quota_uncovered_total", "unit"), "{{unit}}")],
            axis="units a second",
        )
    )


def _tokens() -> Lines:
    ours = rate("relay_quota_tokens_total", "direction", where='counted_by="relay"')
    theirs = rate("relay_quota_tokens_total", "direction", where='counted_by="upstream"')
    panel = lines(
        "Our count of tokens",
        Ask(
            "How far is our own count of tokens off the upstreams'?",
            "Ours by theirs, less one: 10 % is a tenth too many. What is reserved, and what a reply that broke off "
            "costs, goes by our count, which learns from theirs. Far off for long: upstreams count something that we "
            "do not see, such as hidden reasoning.",
            empty="no upstream told its usage, or nothing counts tokens",
        ),
        "percentunit",
        [Query(f"{ours} / ({theirs} > 0) - 1", "{{direction}}")],
        limits={-0.1: "red", 0.1: "red"},
    )
    return panel.min(-1)


def _journal() -> Lines:
    return bars(
        lines(
            "Journal",
            Ask(
                "Does anything wait to be booked, or was anything lost?",
                "*waiting*: settlements that go to the store when it is back; it grows while the store is away and "
                "falls to 0 after. Bars: what was *booked* after all, and what is *lost*: nobody pays for that, and "
                "the log names each with its amount.",
                then="relay-process",
                runbook="RelayJournalGrowing",
            ),
            "short",
            [
                Query("sum(relay_journal_entries{})", "waiting"),
                Query("round(sum(increase(relay_journal_replayed_total{}[])))", "booked"),
                Query("round(sum(increase(relay_journal_lost_total{}[])))", "lost"),
            ],
            colours=("waiting", "booked", "lost"),
            axis="settlements",
        ),
        "booked|lost",
    )


def _promises() -> Lines:
    panel = lines(
        "Promises and requests",
        Ask(
            "Does anything leak?",
            "What the store holds for requests until they end: a *slot* of a limit, a *reservation* of a balance. "
            "Neither can be more than there are *requests*; what stays above them is not given back before its lease "
            "ends.",
            then="relay-process",
            runbook="RelaySlotsLeaking",
        ),
        "short",
        [
            Query("sum by (kind) (relay_store_promises{})", "{{kind}}"),
            Query("sum(relay_requests_in_flight{})", "requests"),
        ],
        colours=families.PROMISES,
        axis="now",
    )
    # An area, which the two lines are to stay in.
    area = [
        colour("light-green"),
        Property(id_val="custom.fillOpacity", value=30),
        Property(id_val="custom.lineWidth", value=0),
    ]
    return panel.override_by_name("requests", area).override_by_name("reservation", [dashed()])


def _trimmed() -> Lines:
    return lines(
        "History trimmed",
        Ask(
            "Are conversations cut?",
            "Messages that the plugin history dropped, as the conversation had grown longer than it allows. Much: "
            "users notice that the model forgets.",
        ),
        "short",
        [Query(rate("relay_history_trimmed_messages_total"), "messages")],
        axis="messages a second",
    )
