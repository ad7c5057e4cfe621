"""What becomes of text, how long it is held for that, what it costs, and how well the moderators are."""

from __future__ import annotations

from grafana_foundation_sdk.builders.timeseries import Panel as Lines
from grafana_foundation_sdk.models import dashboard as schema

from grafana.build.frame import framed
from grafana.build.panels import Ask, Query, colour, dashed, events, lines, on_the_right, quantiles, stacked, states
from grafana.build.promql import BUT_BREAKER, rate, share
from relay.metrics import families

BREAKER = tuple(zip(families.BREAKER_STATES, ("green", "yellow", "red"), strict=True))


def made() -> schema.Dashboard:
    return framed(
        "relay-moderation",
        "What becomes of text, how long it is held for that, what it costs, and how well the moderators are.",
        [
            _text(),
            _unchecked(),
            _hold(),
            _first_text(),
            _checks(),
            _reasons(),
            _breakers().span(8),
            _calls().span(8),
            _budget().span(8),
            _cost(),
            _violations(),
        ],
    )


def _breakers() -> Lines:
    return states(
        lines(
            "Breakers",
            Ask(
                "Is every moderator being asked, and since when?",
                "closed: yes. open: no; its calls failed or were slow, and none is sent until a trial succeeds. "
                "probing: one call is trying. Of several relays and workers the worst: one of them suffices. While it "
                "is open, `on_failure` decides whether users get errors or unchecked text. The colour is the state's: "
                "who it is says the legend.",
                then="relay-overview",
                empty="no moderator that is asked over the network",
                runbook="RelayModerationBreakerOpen",
            ),
            "none",
            [Query("max by (moderator) (relay_moderation_breaker_state{})", "{{moderator}}")],
        ),
        *BREAKER,
    )


def _text() -> Lines:
    states = 'state=~"released|withheld|blocked"'
    return stacked(
        lines(
            "What became of text",
            Ask(
                "How much text is moderated, and how much of it is kept back?",
                "Characters of replies. released: sent to the client. blocked: in a window that was flagged. "
                "withheld: not flagged itself, but dropped with it, or because the client had left. Together they are "
                "what came.",
                empty="nothing moderated",
            ),
            "short",
            [Query(rate("relay_moderation_characters_total", "state", where=states), "{{state}}")],
            colours=("released", "withheld", "blocked"),
            axis="characters a second",
        )
    )


def _unchecked() -> Lines:
    return events(
        lines(
            "Released without a verdict",
            Ask(
                "What left unchecked, and why?",
                "Characters by reason. shadow, ahead: the mode. unknown_field, opaque: the options. request: a "
                "prompt, to an upstream. The others: there was no verdict, and `on_failure` is open. Empty is how it "
                "should be in strict mode.",
                then="relay-overview",
                runbook="RelayReleasedUnverified",
            ),
            "short",
            [Query(rate("relay_released_unverified_characters_total", "reason"), "{{reason}}")],
            colours=families.UNVERIFIED,
            axis="characters a second",
        )
    )


def _hold() -> Lines:
    return lines(
        "How long text is held",
        Ask(
            "How long does a reply stand still for a verdict?",
            "The longest time that text of a reply was held. It grows with `max_wait_ms`, with slow moderators and "
            "with budgets that are used up. 10 s stands for 10 s and more.",
            then="relay-overview",
            empty="nothing moderated in this time",
        ),
        "s",
        quantiles("relay_moderation_hold_seconds"),
        colours=("p50", "p95", "p99"),
    )


def _first_text() -> Lines:
    return lines(
        "How much later the first text leaves",
        Ask(
            "How much longer do users wait for the first text because of moderation?",
            'The check of the request, unless it goes beside the upstream (`request = "parallel"`), and the first '
            "window. `first_chars` and `sentence_chars` say how soon that is cut. 10 s stands for 10 s and more. The "
            "dots are single requests.",
            then="relay-overview",
            empty="nothing moderated in this time",
        ),
        "s",
        quantiles("relay_moderation_first_text_seconds"),
        colours=("p50", "p95", "p99"),
        limits={1.5: "yellow", 3: "red"},
    )


def _checks() -> Lines:
    return stacked(
        lines(
            "Checks by what became of them",
            Ask(
                "Do checks end in verdicts?",
                "Verdicts: pass, review, mask, block; cached: known already. No verdict: timeout, error, breaker_open "
                "(it was not asked), rate_limited (asked too often), unauthorized (credentials, or the service is not "
                "booked). breaker_open only follows from the others: *Why there is no verdict* is without it.",
                runbook="RelayModerationOutage",
            ),
            "ops",
            [Query(rate("relay_moderation_checks_total", "outcome"), "{{outcome}}")],
            colours=families.CHECKS,
            ranked=True,
        )
    )


def _reasons() -> Lines:
    asked = rate("relay_moderation_checks_total", "moderator", "outcome", where=f'outcome=~"{BUT_BREAKER}"')
    return events(
        lines(
            "Why there is no verdict",
            Ask(
                "What is wrong with the moderator?",
                "Checks that were made and have no verdict. unauthorized: our credentials or the account; nothing "
                "helps but new ones. rate_limited: others use the account too, or `calls_per_second` is too high. "
                "timeout: slow, or the network swallows it. error: refused, broken or nonsense; the log has the "
                "words. With the breaker open it is asked only to try, so these are few, and still the cause.",
                runbook="RelayModerationOutage",
                empty="every check that was made had a verdict",
            ),
            "ops",
            [Query(f"{asked} > 0", "{{moderator}} {{outcome}}")],
            colours=families.UNJUDGED,
        )
    )


def _calls() -> Lines:
    return lines(
        "How long calls take",
        Ask(
            "Is a moderator slow?",
            "Calls without the time that they waited to be sent. Its usual p95 is some 100 ms; at `deadline_ms` (2 s "
            "by default) a check is given up. Slow here and nowhere else: it is the service or the way to it.",
            empty="no calls in this time",
        ),
        "s",
        quantiles("relay_moderation_call_seconds", "moderator", of=(0.5, 0.95)),
        colours=("p50", "p95"),
        limits={2: "red"},
    )


def _cost() -> Lines:
    came = rate("relay_moderation_characters_total", where='state="in"')
    panel = on_the_right(
        lines(
            "What moderation costs",
            Ask(
                "How much is sent to moderators for what is produced?",
                "*calls* for 1,000 characters of replies, and how many characters are sent for one (right; windows "
                "overlap, requests are checked too). Many calls: windows are cut small, by `sentence_chars` or "
                "`max_wait_ms`. `make bench` shows what other settings would do.",
                empty="nothing moderated",
            ),
            "short",
            [
                Query(f"1000 * {share(rate('relay_moderation_calls_total'), came)}", "calls / 1,000 characters"),
                Query(share(rate("relay_moderation_scanned_characters_total"), came), "sent / produced"),
            ],
            axis="calls",
        ).decimals(1),
        "sent / produced",
        "characters sent for one",
    )
    panel.override_by_name("calls / 1,000 characters", [colour("blue")])
    return panel.override_by_name("sent / produced", [colour("orange"), dashed()])


def _budget() -> Lines:
    panel = on_the_right(
        lines(
            "Calls and their budget",
            Ask(
                "How near is the end of the budget, and does text wait for it?",
                "*calls* a second, what is *allowed* now (less for a while after the service said that it was asked "
                "too often), and the *ceiling*, `calls_per_second`. Calls near what is allowed: checks wait (right), "
                "and windows grow. A few that wait come and go; many that stay are text that is held.",
                empty="no moderator that is asked over the network",
                runbook="RelayModerationBudget",
            ),
            "reqps",
            [
                Query(rate("relay_moderation_calls_total", "moderator"), "calls {{moderator}}"),
                Query("min by (moderator) (relay_moderation_rate_allowed{}) < Inf", "allowed {{moderator}}"),
                Query("max by (moderator) (relay_moderation_rate_ceiling{}) < Inf", "ceiling {{moderator}}"),
                Query("sum by (moderator) (relay_moderation_checks_waiting{})", "waiting {{moderator}}"),
            ],
        ),
        "waiting.*",
        "checks that wait",
    )
    for series, shade in (("calls", "green"), ("allowed", "yellow"), ("ceiling", "red"), ("waiting", "purple")):
        panel.override_by_regexp(f"/^{series} /", [colour(shade)])
    return panel


def _violations() -> Lines:
    found = rate("relay_moderation_violations_total", "moderator", "label")
    return events(
        lines(
            "Violations",
            Ask(
                "What is found, and by whom?",
                "By the moderator and its label. Suddenly many of one label: a word list was changed, or somebody "
                "tries something; `relay tail` shows them one by one.",
                empty="no violations in this time",
            ),
            "short",
            [Query(f"60 * ({found} > 0)", "{{label}} ({{moderator}})")],
            axis="a minute",
        )
    )
