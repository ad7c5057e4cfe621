"""What the relay executes for a request and for an event, in instructions: `python -m bench.instructions [--write]`.

Timings drift with the machine; how many instructions the same work takes does not, so that a change which makes the relay
slower is seen in one run (`tests/system/test_instructions.py`). Valgrind counts them, in one process that is forked for
each work when it has started and is warm. Python's own build weighs in: figures are told as multiples of a fixed piece
of Python beside which they are counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from bench.inside import WARM, Loop, inside

KEPT: Final = Path(__file__).with_name("instructions.json")
# How many requests of each kind; the differences are what they cost.
COUNTS: Final = {"plain": 40, "stream": 8, "long": 8}
UNITS: Final = 2000
# By so much a figure may grow or shrink before somebody has to look: another build of Python or of a library moves it.
ROOM: Final = 0.15

_REFS: Final = re.compile(r"==(\d+)== I\s+refs:\s+([\d,]+)")


@dataclass(frozen=True)
class Figures:
    """Instructions of a request that is not streamed and of an event of a stream, in thousands of units.

    A unit is a call of a small function that looks up, compares and appends.
    """

    request: float
    event: float


class _Piece:
    __slots__ = ("kept", "size")

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.size = 0

    def unit(self, names: dict[str, int], name: str) -> None:
        value = names.get(name)
        if value is not None and self.size < 1_000_000:
            self.kept.append(value)
            self.size += 1
        if len(self.kept) > 100:
            self.kept.clear()


def _units() -> None:
    piece, names = _Piece(), {"a": 1, "b": 2}
    for _ in range(UNITS):
        piece.unit(names, "a")


async def _count(plugin: str) -> None:
    """Do each work in a process of its own, whose number is told with its name."""
    loop = asyncio.get_running_loop()
    async with inside(plugin) as relay:
        for kind in COUNTS:
            await relay.ask(kind, WARM)
        _units()
        for kind in ("nothing", "unit", *COUNTS):
            process = os.fork()
            if not process:
                asyncio._set_running_loop(loop)  # it was that of another process
                if kind in COUNTS:
                    await relay.ask(kind, COUNTS[kind])
                elif kind == "unit":
                    _units()
                os._exit(0)
            if os.waitpid(process, 0)[1]:  # noqa: ASYNC222 - nothing else is to run
                raise RuntimeError(f"{kind} could not be done")
            print(kind, process, flush=True)


def counted(plugin: str = "") -> Figures:
    """Count, with one more plugin behind the others if one is named. Raises RuntimeError if valgrind is not installed, or does not count."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise RuntimeError("valgrind is not installed (apt-get install valgrind libc6-dbg)")
    command = [valgrind, "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    run = subprocess.run(
        [*command, sys.executable, "-m", "bench.instructions", "--inside", plugin],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    names = dict(line.split()[::-1] for line in run.stdout.splitlines())
    refs = {
        names[process]: int(count.replace(",", "")) for process, count in _REFS.findall(run.stderr) if process in names
    }
    if run.returncode or refs.keys() != {"nothing", "unit", *COUNTS}:
        raise RuntimeError(f"valgrind did not count:\n{run.stdout}\n{run.stderr[-2000:]}")
    start = refs["nothing"]
    unit = (refs["unit"] - start) / UNITS * 1000
    stream, long = ((refs[kind] - start) / COUNTS[kind] for kind in ("stream", "long"))
    return Figures(round((refs["plain"] - start) / COUNTS["plain"] / unit, 4), round((long - stream) / 200 / unit, 6))


def kept() -> Figures:
    """The figures that were counted last and are kept beside the code."""
    return Figures(**json.loads(KEPT.read_text("utf-8")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the figures beside the code")
    parser.add_argument("--inside", metavar="PLUGIN", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside is not None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(_count(args.inside))
        return
    figures = counted()
    print(
        f"a request {figures.request:.3f}, an event {figures.event:.4f} (thousands of units); kept: {kept() if KEPT.exists() else None}"
    )
    if args.write:
        KEPT.write_text(json.dumps(asdict(figures)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
