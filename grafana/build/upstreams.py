"""Which upstream fails, how, and what is done about it; how fast they are."""

from __future__ import annotations

from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.models import dashboard as schema

from grafana.build.frame import framed
from grafana.build.panels import Ask, Query, colour, events, lines, quantiles, ranking, stacked, states
from grafana.build.promql import rate


def made() -> schema.Dashboard:
    return framed(
        "relay-upstreams",
        "Which upstream fails, how, and what is done about it; how fast they are.",
        [
            _requests(),
            _errors(),
            _ejected(),
            _retries(),
            _first_text(),
            _output_token(),
            _tokens(),
            _ejections(),
        ],
    )


def _requests() -> Lines:
    answered = rate("relay_upstream_requests_total", "upstream", where='outcome="answered"')
    other = rate("relay_upstream_requests_total", "upstream", "outcome", where='outcome!="answered"')
    return stacked(
        lines(
            "Requests by upstream and outcome",
            Ask(
                "Who is asked, and does it answer?",
                "Retries count too. By its name alone: it answered with a head of status 200; what goes wrong after "
                "that is in *Errors*. refused: another status. failed: no head at all. cancelled: the client left "
                "first.",
                then="relay-overview",
                empty="no requests in this time",
            ),
            "reqps",
            [Query(answered, "{{upstream}}"), Query(other, "{{upstream}} {{outcome}}")],
            # Those that were answered: a colour for each upstream.
            colours=("failed", "cancelled"),
            ranked=True,
        )
    ).override_by_regexp("/ refused$/", [colour("dark-orange")])


def _errors() -> Lines:
    errors = rate("relay_upstream_errors_total", "upstream", "kind")
    return events(
        lines(
            "Errors by upstream and kind",
            Ask(
                "What does an upstream do wrong?",
                "connect: not reached. first_byte, idle: silent for too long, before or inside a reply. status: 5xx, "
                "429 or our credentials. died, incomplete: the reply broke off. malformed: it cannot be read. "
                "reported: it said so itself. All upstreams at once: our network, or what they share.",
                runbook="RelayUpstreamFailing",
                empty="no errors in this time",
            ),
            "reqps",
            [Query(f"{errors} > 0", "{{upstream}} {{kind}}")],
        )
    )


def _ejected() -> Lines:
    return states(
        lines(
            "Ejected",
            Ask(
                "Which upstream is asked only after all others, and since when?",
                "By at least one worker of a relay: each has its own opinion. If all of them are, they are asked as "
                "if none were. It comes back by itself, later each time. The colour is the state's: who it is says "
                "the legend.",
                runbook="RelayUpstreamEjected",
            ),
            "none",
            [Query('max by (upstream) (relay_upstream_ejected{upstream!="other"})', "{{upstream}}")],
        ),
        ("in turn", "green"),
        ("ejected", "red"),
    )


def _ejections() -> Lines:
    return events(
        lines(
            "Ejections by reason",
            Ask(
                "Why is an upstream ejected?",
                "How often, by what had gone wrong several times: heads (it did not answer), replies (they broke "
                "off), slow (it was much slower than the others). Each worker counts for itself, so one incident is "
                "as many ejections as there are workers; and a bar is of the last minute or so, so the same ones "
                "stand in several bars side by side.",
                empty="no ejections in this time",
            ),
            "short",
            [
                Query(
                    "round(sum by (upstream, reason) (increase(relay_upstream_ejections_total{}[]))) > 0",
                    "{{upstream}} {{reason}}",
                )
            ],
            axis="ejections",
            # Marks between whole numbers would have to be written, and one ejection is what there usually is.
        ).axis_soft_max(4)
    )


def _retries() -> Lines:
    retries = rate("relay_upstream_retries_total", "upstream", "outcome")
    return events(
        lines(
            "Retries",
            Ask(
                "Are failures made good by other upstreams?",
                "By the upstream that failed. retried: another one was asked. over_budget: none was, as too much "
                "failed already; more requests would only have made it worse. These users got the error.",
                empty="no retries in this time",
            ),
            "reqps",
            [Query(f"{retries} > 0", "{{upstream}} {{outcome}}")],
        )
    )


def _first_text() -> Lines:
    return lines(
        "First text by upstream",
        Ask(
            "Which upstream is slow to begin?",
            "From asking it to its first text; of a reply that is not streamed, to its end. By who answered in the "
            "end: time lost with others before is in it. One slower than the rest: its load. All: the prompts. "
            "Where its line ends it has answered nothing any more.",
            then="relay-overview",
            empty="no replies in this time",
        ),
        "s",
        quantiles("relay_upstream_first_text_seconds", "upstream", of=(0.5, 0.95)),
        ranked=True,
    ).legend(ranking("mean", "max"))


def _output_token() -> Lines:
    return lines(
        "Time per output token",
        Ask(
            "How fast do replies flow?",
            "From the first text to the end, by the tokens after the first; of streams whose upstream tells its "
            "usage. 0.1 s is ten tokens a second, faster than people read. One model: its upstream is loaded. All of "
            "them: perhaps text is held.",
            then="relay-moderation",
            empty="no upstream told its usage in this time",
        ),
        "s",
        quantiles("gen_ai_server_time_per_output_token_seconds", "gen_ai_request_model", of=(0.5,)),
    )


def _tokens() -> Lines:
    return lines(
        "Tokens",
        Ask(
            "How many tokens go in and come out?",
            "As upstreams tell it, so only of those that do: what they will charge. Input that grows by itself: "
            "conversations grow; see *History trimmed*.",
            then="relay-keys",
            empty="no upstream told its usage in this time",
        ),
        "short",
        [Query(rate("gen_ai_client_token_usage_sum", "gen_ai_token_type"), "{{gen_ai_token_type}}")],
        axis="tokens a second",
    )
