"""How queries are written here: PromQL, without what every one of them repeats.

`promql` fills in the variables that stand at the top of every dashboard: `metric{}` becomes
`metric{job=~"$job", instance=~"$instance"}`, and the range `[]` becomes `[$__rate_interval]`. What grafana/alerts
records (`relay:…`) and what fires (`ALERTS…`) is of a job as a whole: of the two it has the job.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from relay.metrics import families

_SELECTOR = re.compile(r"\b([a-zA-Z_][\w:]*)\{([^}]*)\}")

UNSERVED = "|".join(families.UNSERVED)
UNJUDGED = "|".join(families.UNJUDGED)

BUT_BREAKER = "|".join(reason for reason in families.UNJUDGED if reason != "breaker_open")
"""Why a moderator that was asked gave no verdict: what an open breaker follows from."""

BY_FAILURE = "|".join((*families.UNJUDGED, "request", families.OTHER))
"""Of the reasons why text left without a verdict those that nobody asked for by a mode or an option."""


def promql(query: str) -> str:
    """The query as Grafana is given it."""
    return _SELECTOR.sub(_selector, query).replace("[]", "[$__rate_interval]")


def _selector(match: re.Match[str]) -> str:
    name, matchers = match.groups()
    chosen = ['job=~"$job"'] if ":" in name or name.startswith("ALERTS") else ['job=~"$job"', 'instance=~"$instance"']
    return f"{name}{{{', '.join([*chosen, *([matchers] if matchers else [])])}}}"


def rate(name: str, *by: str, where: str = "") -> str:
    """How much a counter grows a second, over all instances."""
    return f"sum{_by(by)}(rate({name}{{{where}}}[]))"


def share(part: str, whole: str) -> str:
    """No data where there is nothing to be a part of: 0 of 0 is no share."""
    return f"{part} / ({whole} > 0)"


def quantile(q: float, histogram: str, *by: str) -> str:
    """No data where nothing was observed, rather than what is no number."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', 'le', *by)}) >= 0"


def each(hop: str, query: str, label: str = "") -> str:
    """The series of `query` with the label `hop`, which names a part of the relay; of several of them by `label`."""
    named = f'"{hop} $1", "{label}", "(.+)"' if label else f'"{hop}", "", ""'
    return f'label_replace({query}, "hop", {named})'


def hops(*queries: str) -> str:
    """One series for each hop, of what `each` gave."""
    return " or ".join(f"sum by (hop) ({query})" for query in queries)


def _by(labels: Iterable[str]) -> str:
    return f" by ({', '.join(labels)}) " if labels else ""
