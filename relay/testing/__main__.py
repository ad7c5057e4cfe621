"""`python -m relay.testing upstream` and `… load`: a model that talks, and callers that ask, each until a signal comes.

With a relay between them everything that the dashboards show is in motion; compose.yaml puts them together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from relay.testing.load import Callers, Load
from relay.testing.talker import Talker
from relay.testing.upstream import ScriptedUpstream

MODELS = ("demo-large", "demo-small")
KEYS = "RELAY_DEMO_KEYS"


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(
        prog="python -m relay.testing", description="A scripted model and callers, to see a relay at work with."
    )
    commands = options.add_subparsers(dest="command", required=True)
    both = argparse.ArgumentParser(add_help=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    both.add_argument("--model", action="append", metavar="NAME", help=f"may be given again (default: {MODELS})")
    both.add_argument("--phrase", action="append", default=[], help="one that is not wanted; may be given again")
    both.add_argument(
        "--phrase-file", type=Path, metavar="FILE", help="more of them, one a line, UTF-8; # for comments"
    )
    both.add_argument("--seed", type=int, default=0, help="of chance")

    upstream = commands.add_parser("upstream", parents=[both], help="an OpenAI-compatible server of demo models")
    upstream.add_argument("--host", default="127.0.0.1")
    upstream.add_argument("--port", type=int, default=9500, help="0 for any (default: 9500)")
    upstream.add_argument("--phrase-share", type=_share, default=0.03, help="of 1: replies that hold a phrase")
    upstream.add_argument("--break-share", type=_share, default=0.0, help="of 1: replies that break off in the middle")
    upstream.add_argument("--refuse-share", type=_share, default=0.0, help="of 1: requests that get a 503")
    upstream.add_argument("--first-ms", type=_positive, default=250.0, help="to the first chunk, the median")
    upstream.add_argument("--pace-ms", type=_positive, default=50.0, help="between two chunks of four characters")

    load = commands.add_parser(
        "load", parents=[both], help="callers of a relay", epilog=f"Keys: the variable {KEYS}, separated by spaces."
    )
    load.add_argument("--url", default="http://127.0.0.1:8080/v1", help="of the relay (default: %(default)s)")
    load.add_argument("--rate", type=_rate, default=2.0, help="callers a second, at most 50 (default: 2)")
    load.add_argument("--streams", type=_count, default=50, help="at once, at most (default: 50)")
    load.add_argument("--requests", type=_count, help="so many callers, then end (default: until a signal comes)")
    return options


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise argparse.ArgumentTypeError("a share is between 0 and 1")
    return share


def _positive(text: str) -> float:
    if not 0 < (number := float(text)) < math.inf:
        raise argparse.ArgumentTypeError("give a number above 0")
    return number


def _rate(text: str) -> float:
    if not 0 < (rate := float(text)) <= 50:
        raise argparse.ArgumentTypeError("give more than 0 and at most 50 a second; `make bench` is for more")
    return rate


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("give a number from 1")
    return count


def phrases(arguments: argparse.Namespace) -> list[str]:
    """Those of the command line and of the file. Raises OSError or UnicodeError."""
    lines = arguments.phrase_file.read_text(encoding="utf-8").splitlines() if arguments.phrase_file else []
    listed = (line.partition("  #")[0].strip() for line in lines if not line.startswith("#"))
    return [*arguments.phrase, *filter(None, listed)]


async def until_told(work: Coroutine[Any, Any, None]) -> None:
    """Do `work` until it is done, or SIGINT or SIGTERM comes."""
    task = asyncio.ensure_future(work)
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


async def talk(talker: Talker, host: str, port: int, models: Sequence[str]) -> None:
    async with ScriptedUpstream(talker, host=host, port=port, models=models, keep_requests=1) as upstream:
        print(
            f"An upstream with the models {', '.join(models)}: base_url = {json.dumps(upstream.base_url)}", flush=True
        )
        await asyncio.Event().wait()


async def ask(load: Load, requests: int | None) -> None:
    def tell() -> None:
        print(json.dumps(dict(sorted(load.ended.items()))), flush=True)

    try:
        await load.run(requests, on_minute=tell)
    finally:
        tell()


def main(words: Sequence[str] | None = None) -> None:
    options = parser()
    arguments = options.parse_args(words)
    try:
        unwanted = phrases(arguments)
    except (OSError, UnicodeError) as error:
        options.error(f"--phrase-file: {error}")
    models = arguments.model or MODELS
    work: Coroutine[Any, Any, None]
    if arguments.command == "upstream":
        talker = Talker(
            phrases=unwanted,
            phrase_share=arguments.phrase_share,
            break_share=arguments.break_share,
            refuse_share=arguments.refuse_share,
            first_ms=arguments.first_ms,
            pace_ms=arguments.pace_ms,
            seed=arguments.seed,
        )
        work = talk(talker, arguments.host, arguments.port, models)
    else:
        keys = os.environ.get(KEYS, "").split()
        if not keys:
            options.error(f"the variable {KEYS} is not set; give it the keys to ask with, separated by spaces")
        callers = Callers(keys=keys, models=models, phrases=unwanted, seed=arguments.seed)
        load = Load(url=arguments.url.rstrip("/"), callers=callers, rate=arguments.rate, streams=arguments.streams)
        work = ask(load, arguments.requests)
    try:
        asyncio.run(until_told(work))
    except OSError as error:
        sys.exit(f"{arguments.host}:{arguments.port}: {error.strerror}; choose another with --port")


if __name__ == "__main__":
    main()
