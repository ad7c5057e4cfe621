"""The table as text for a terminal, as Markdown, and between the markers of the pages that show it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from bench.proxies import NGINX, RELAY, ROUTER
from bench.row import MEDIAN, TAIL, Row, Table

BEGIN: Final = "<!-- the table of the last `make bench`; python -m bench --write-docs -->"
END: Final = "<!-- the end of the table -->"


def text(table: Table) -> str:
    """For a terminal."""
    lines = _cells(table, [row for row in table.rows if row.shown])
    wide = [max(len(line[column]) for line in lines) for column in range(len(lines[0]) - 1)]
    shown = [
        "  ".join(
            [
                f"{line[0]:{wide[0]}}",
                *(f"{cell:>{size}}" for cell, size in zip(line[1:], wide[1:], strict=False)),
                line[-1],
            ]
        )
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in shown), "", *table.foot])


def markdown(table: Table, *, headline: bool) -> str:
    """For a page. headline: only the rows, and not the notes, for those who do not want to know more."""
    lines = _cells(table, [row for row in table.rows if row.shown and (row.headline or not headline)])
    kept = [line[:-1] if headline else line for line in lines]
    rule = ["---", *["---:"] * (len(lines[0]) - 2), *([] if headline else ["---"])]
    shown = [f"| {' | '.join(line)} |".replace("|  |", "| |") for line in (kept[0], rule, *kept[1:])]
    return "\n".join([*shown, "", *(f"{line}  " for line in table.foot[:-1]), *table.foot[-1:]])


def write(page: Path, table: Table, *, headline: bool) -> None:
    """Put the table between the page's markers. Raises ValueError if there are none."""
    old = page.read_text(encoding="utf-8")
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: no markers; put these two lines where the table belongs:\n{BEGIN}\n{END}")
    new = f"{before}{BEGIN}\n\n{markdown(table, headline=headline)}\n\n{END}{after}"
    page.write_text(new, encoding="utf-8")


def save(table: Table, path: Path) -> None:
    """As JSON, with the figures of every round."""
    told = {"made": table.made, "foot": table.foot, "rows": [row.as_json() for row in table.rows]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")


def load(path: Path) -> Table:
    """What `save` has written."""
    told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**{name: value for name, value in each.items() if name != "medians"}) for each in told["rows"]]
    return Table(rows, told["foot"], told["made"])


def _cells(table: Table, rows: Sequence[Row]) -> list[list[str]]:
    """A line of heads, and one for each row: the name, the relay's figure, each peer's with the ratio, the note."""
    peers = [name for name in (NGINX, ROUTER) if any(name in row.figures for row in table.rows)]
    lines = [["", RELAY, *(word for peer in peers for word in (peer, f"× {peer}")), ""]]
    for line in _together(rows):
        figures = [_joined(_figure(row, RELAY) for row in line)]
        for peer in peers:
            figures += [_joined(_figure(row, peer) for row in line), _joined(_ratio(row, peer) for row in line)]
        name = line[0].name if len(line) == 1 else line[0].name.replace(MEDIAN, f"{MEDIAN} / {TAIL}")
        notes = dict.fromkeys(row.note for row in line if row.note)
        lines.append([f"{name}, {line[0].unit}", *figures, " / ".join(notes)])
    return lines


def _together(rows: Sequence[Row]) -> list[list[Row]]:
    """A median and its 99th percentile are one line."""
    lines: list[list[Row]] = []
    for row in rows:
        if lines and TAIL in row.name and lines[-1][0].name == row.name.replace(TAIL, MEDIAN):
            lines[-1].append(row)
        else:
            lines.append([row])
    return lines


def _joined(cells: Iterable[str]) -> str:
    parts = list(cells)
    return "–" if set(parts) == {"–"} else " / ".join(parts)


def _figure(row: Row, who: str) -> str:
    median = row.median(who)
    return "–" if median is None else f"{median:,.{row.digits}f}"


def _ratio(row: Row, peer: str) -> str:
    ratio = row.ratio(RELAY, peer)
    return "–" if ratio is None else f"{ratio:.2f}"
