"""The contract of a plugin (docs/plugins.md), tried out: each promise that its author gives, in every way that is known of breaking it.

    async def test_the_contract():
        await keeps_contract(Swap(word="cat", by="dog"), answer="A cat, two cats.")

One instance of the plugin has all the conversations, one after another and two at once, as in a relay; a fresh one is taken
where that one would not let a request through any more, as limits do. No socket is opened, and nothing is waited for but
what the plugin itself waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from relay.plugin import Plugin
from relay.testing.finding import Promise, Report
from relay.testing.replies import TEXT
from relay.testing.reply import CHAT, Lent
from relay.testing.trial import Trial


async def keeps_contract(
    plugin: Plugin | Callable[[], Plugin],
    request: Mapping[str, object] = CHAT,
    *,
    but: Collection[Promise] = (),
    **options: Any,
) -> Report:
    """As `contract`, and raises AssertionError with all that was found. but: promises that it breaks, and may."""
    report = await contract(plugin, request, **options)
    if broken := [finding for finding in report.findings if finding.promise not in but]:
        raise AssertionError("\n".join(("the contract is broken", *map(str, broken))))
    return report


async def contract(
    plugin: Plugin | Callable[[], Plugin],
    request: Mapping[str, object] = CHAT,
    *,
    answer: str | Iterable[str] = TEXT,
    headers: Mapping[str, str] | None = None,
    before: Iterable[Plugin] = (),
    lent: Callable[[], Lent] | Lent | None = None,
    patience_s: float = 3.0,
    **changed: object,
) -> Report:
    """Try the plugin's promises out. `plugin`: one, or what makes one.

    request, changed, headers, before: as for `run`; the plugin should let this request through. answer: the text of the
    replies: one in which the plugin finds what it is for. lent: what it is lent, or what makes that. patience_s: how long a
    reply may take that the plugin holds by waiting for something.

    Raises ConfigError where the plugins do not fit together, ValueError for one that needs a store and is lent none, and
    whatever opening one raises: TimeoutError, if that or its closing takes longer than in a relay.
    """
    trial = Trial(plugin, request, headers, tuple(before), lent, patience_s, changed)
    return await trial.run(answer if isinstance(answer, str) else "".join(answer))
