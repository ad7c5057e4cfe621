"""`python -m relay_plugins.audit PATH…`: whether audit files, or those in folders, are as they were written.

A line for each file; the status is 1 if one of them is not.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from relay_plugins.audit.verify import Checked, verify


def main(words: list[str] | None = None) -> int:
    """Verify what is named on the command line; the status."""
    parser = argparse.ArgumentParser(prog="python -m relay_plugins.audit", description="Verify audit files.")
    parser.add_argument("path", type=Path, nargs="+", help="a file, or a folder of them")
    try:
        found = verify(parser.parse_args(words).path)
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    if not found:
        print("no audit files there", file=sys.stderr)
        return 1
    names = {checked.path.name for checked in found}
    for checked in found:
        print(_line(checked, names))
    return int(any(checked.problem for checked in found))


def _line(checked: Checked, names: set[str]) -> str:
    if checked.problem:
        return f"BROKEN {checked.path}: {checked.problem}"
    said = [f"lines {checked.first} to {checked.next - 1}"]
    if checked.after is not None and checked.after not in names:
        said.append(f"goes on from {checked.after}, which is not here")
    if not checked.ended:
        said.append("has no end, as while it is written, or if its process was killed")
    if checked.torn:
        said.append(f"{checked.torn} bytes of half a line behind it")
    if checked.lost:
        said.append(f"{checked.lost} records were lost and counted")
    said.append(f"last {checked.last}")
    return f"OK {checked.path}: {'; '.join(said)}"


if __name__ == "__main__":
    sys.exit(main())
