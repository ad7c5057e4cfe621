"""`make bench`: what the relay costs beside nginx and vllm-router, neither of which moderates, on the same work in one run.

    python -m bench [--quick] [--router [VENV]] [--chain short] [--only GROUP …] [--json FILE]
    python -m bench --write-docs [FILE]

What each row means and how it is measured stands in docs/performance.md. A run of all groups leaves bench/out/table.json and
bench/out/cost.png; --write-docs puts them into README.md and docs/, and measures nothing.
"""

import argparse
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from bench import table as pages
from bench.lab import FULL, QUICK, Lab
from bench.plot import Curve, plot
from bench.proxies import CHAINS, install_router
from bench.row import Row, Table
from bench.rows import GROUPS

ROOT: Final = Path(__file__).parent.parent
OUT: Final = ROOT / "bench" / "out"
TABLE: Final = OUT / "table.json"
PICTURE: Final = OUT / "cost.png"
PICTURE_OF_THE_PAGES: Final = ROOT / "docs" / "pictures" / "cost.png"
# Each page that shows the table, and whether it shows the main rows only.
PAGES: Final = {ROOT / "README.md": True, ROOT / "docs" / "performance.md": False}


def run(lab: Lab, groups: Iterable[str]) -> Table:
    """Measure these groups."""
    rows: list[Row] = []
    began = time.monotonic()
    with lab.open():
        for group in groups:
            print(f"{time.monotonic() - began:5.0f} s  {group}", file=sys.stderr, flush=True)
            rows += GROUPS[group](lab)
    made = {"on": time.strftime("%Y-%m-%d"), "chain": lab.chain, "seconds": round(time.monotonic() - began)}
    return Table(rows, foot(lab, made["seconds"]), made)


def foot(lab: Lab, seconds: object) -> list[str]:
    """How the table was made, in lines."""
    effort, loop = lab.effort, f"Python {platform.python_version()}"
    lines = [
        f"{time.strftime('%d %B %Y')}, {seconds} s on {_processors()}, {loop}; medians of {effort.rounds} rounds, chain "
        f"“{lab.chain}” ({', '.join(CHAINS[lab.chain])})."
    ]
    if lab.harness_us:
        clients, model = (statistics.median(each) for each in zip(*lab.harness_us, strict=True))
        lines.append(
            f"On the same processors, charged to nobody: the clients took {clients:.1f} µs an event, the model server "
            f"{model:.1f} µs."
        )
    if lab.wrong:
        lines.append(f"Not as it should be: {'; '.join(dict.fromkeys(lab.wrong))}.")
    return lines


def curves(table: Table) -> dict[str, Curve]:
    """By whose they are: the points of the rows that were measured for the curve."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in table.rows:
        for who in row.figures if row.streams else ():
            median = row.median(who)
            if median is not None:
                found.setdefault(who, []).append((row.streams, median))
    return dict(found)


def draw(table: Table, path: Path) -> None:
    """The picture, if its rows were measured."""
    points = curves(table)
    if points:
        plot(points, "CPU for one event, in microseconds; each stream has one every 20 ms", path)


def write_docs(table: Table) -> None:
    for page, headline in PAGES.items():
        pages.write(page, table, headline=headline)
    draw(table, PICTURE_OF_THE_PAGES)


def _processors() -> str:
    count = len(_lines("/proc/cpuinfo", "processor"))
    models = {line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo", "model name")}
    return f"{count} processors ({', '.join(sorted(models)) or platform.machine()})"


def _lines(path: str, begin: str) -> list[str]:
    return [line for line in Path(path).read_text().splitlines() if line.startswith(begin)]


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        "python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="two short rounds")
    options.add_argument("--only", action="append", choices=GROUPS, metavar="GROUP", help=f"of {', '.join(GROUPS)}")
    options.add_argument("--chain", choices=CHAINS, default="whole", help="the relay's plugins (default: whole)")
    options.add_argument("--rounds", type=int, help="how many (default: 5)")
    options.add_argument("--json", type=Path, metavar="FILE", help="where every round's figures go")
    options.add_argument(
        "--router",
        type=Path,
        nargs="?",
        const=OUT / "router",
        metavar="VENV",
        help="measure vllm-router too: the one in this virtual environment, or one that is installed in bench/out",
    )
    options.add_argument(
        "--write-docs",
        type=Path,
        nargs="?",
        const=TABLE,
        metavar="FILE",
        help="put the last run's table into the pages, or that of a --json",
    )
    return options


def main() -> None:
    args = parser().parse_args()
    if args.write_docs:
        write_docs(pages.load(args.write_docs))
        return
    allow_many_files()
    if args.router:
        install_router(args.router)
    effort = QUICK if args.quick else FULL
    if args.rounds:
        effort = replace(effort, rounds=args.rounds)
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        lab = Lab(Path(folder), effort, args.chain, args.router)
        table = run(lab, args.only or GROUPS)
    print(pages.text(table))
    if args.json:
        pages.save(table, args.json)
    if not args.only:
        pages.save(table, TABLE)
        draw(table, PICTURE)


def allow_many_files() -> None:
    """Each of 5,000 streams is an open file of the clients', and two of a proxy's."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
