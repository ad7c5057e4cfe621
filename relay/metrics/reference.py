"""The page about every metric, made of the table that names them: `python -m relay.metrics.reference > docs/metrics.md`."""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from relay.metrics import families
from relay.metrics.families import FAMILIES, SUPERVISED, Configured, Family

_HEAD: Final = """# Metrics

What `/metrics` of the admin listener exposes. This page is made of `relay/metrics/families.py` (`python -m relay.metrics.reference`); the dashboards and alerts in `grafana/` ask for nothing else.

Names follow OpenTelemetry's GenAI conventions where there is one; what is ours begins with `relay_`. Every label has a closed set of values, given here or by the configuration: what clients send makes no series, and no key, prompt or request id is in a label. Counters are there from the start, at 0; histograms by model, upstream or plugin from their first observation. In a process alone the histograms marked \\* carry exemplars, `request_id`, for who scrapes OpenMetrics.

With `[server] workers` above 1 the supervisor adds up what its workers count, those included that have died; of a gauge it shows what stands in the last column, over the living. `process_*` is then about the supervisor, and the metrics of workers are there too.
"""
_EXEMPLARS: Final = frozenset(
    {
        "gen_ai_server_request_duration_seconds",
        "gen_ai_server_time_to_first_token_seconds",
    }
)
_ACROSS: Final = {"livesum": "sum", "livemax": "greatest", "livemin": "least", None: ""}


def rendered() -> str:
    """The page, in Markdown."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield _HEAD
    yield from _table(FAMILIES)
    yield "\n## Of the workers\n\nWhere `workers` is above 1. `process_*` of the process itself are prometheus-client's.\n"
    yield from _table(SUPERVISED)
    yield "\n## Values of labels\n"
    for label, named in _configured().items():
        yield f"- `{label}`: {named}"
    meanings = _meanings()
    for values, places in _closed():
        yield f"- {', '.join(places)}: {_told(values)}." + meanings.get(id(values), "")
    yield "\n## Buckets\n"
    for family in (*FAMILIES, *SUPERVISED):
        if family.buckets:
            yield f"- `{family.name}`: {' '.join(f'{bound:.10g}' for bound in family.buckets)}"
    yield ""


def _table(rows: Sequence[Family]) -> Iterator[str]:
    yield "| metric | type | labels | what it says | of several workers |"
    yield "|---|---|---|---|---|"
    for family in rows:
        star = r"\*" if family.name in _EXEMPLARS else ""
        labels = ", ".join(f"`{label}`" for label in family.labels)
        across = _ACROSS[family.across]
        yield f"| `{family.name}`{star} | {family.type} | {labels} | {family.help} | {across} |"


def _configured() -> dict[str, str]:
    """What the values are of the labels that the configuration names."""
    labels = (pair for family in (*FAMILIES, *SUPERVISED) for pair in family.labels.items())
    return {label: values.what for label, values in labels if isinstance(values, Configured)}


def _closed() -> Iterator[tuple[Sequence[str], list[str]]]:
    """Every other closed set, with the labels that have it."""
    places: dict[int, list[str]] = defaultdict(list)
    sets = {}
    for family in (*FAMILIES, *SUPERVISED):
        for label, values in family.labels.items():
            if not isinstance(values, Configured):
                sets[id(values)] = values
                places[id(values)].append(f"`{family.name}{{{label}}}`")
    return ((values, places[key]) for key, values in sets.items())


def _meanings() -> dict[int, str]:
    """What is written under a closed set in the table's source, by the set's id."""
    body = ast.parse(Path(families.__file__).read_text(encoding="utf-8")).body
    return {
        id(getattr(families, name)): " " + " ".join(text.split())
        for statement, below in pairwise(body)
        for name, text in _documented(statement, below)
    }


def _documented(statement: ast.stmt, below: ast.stmt) -> Iterator[tuple[str, str]]:
    match statement, below:
        case ast.Assign([ast.Name(name)]), ast.Expr(ast.Constant(str(text))):
            yield name, text


def _told(values: Sequence[str]) -> str:
    return ", ".join(f"`{value}`" if value else "empty" for value in values)


if __name__ == "__main__":
    sys.stdout.write(rendered())
