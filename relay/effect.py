"""What a configuration comes to: which chain a request would meet, and which of them none would."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec.structs import replace

from relay.chain import Chain
from relay.config import ANY_MODEL, Branch, Config
from relay.exchange import CALLER
from relay.keys import API_KEY
from relay.match import Match, fits
from relay.options import suggestion
from relay.routes import CHAT, ROUTES
from relay.section import Link


def branch_problems(config: Config, chain: Chain) -> list[str]:
    """What is wrong with the `[[chains]]` of a configuration: those that no request would come to, above all."""
    problems: list[str] = []
    routes = [*ROUTES, *chain.routes]
    for position, branch in enumerate(config.chains):
        where = f"chains[{position}]"
        before = config.chains[:position]
        if any(other.name == branch.name for other in before):
            problems.append(f"{where}.name: {branch.name!r} is taken; give each its own")
        if hidden := _hidden(branch, before, routes):
            problems.append(f"{where}.match: {hidden}")
        if branch.match is not None:
            problems += (f"{where}.match.{problem}" for problem in _unmatched(branch.match, config, chain, routes))
    if config.chains and config.chains[-1].match is not None and not problems:
        problems.append(
            f"chains[{len(config.chains) - 1}].match: a request that fits no match would meet nothing more; add a last "
            "[[chains]] without match that says what is done then, with no plugins if nothing is to be"
        )
    return problems


def _hidden(branch: Branch, before: Sequence[Branch], routes: Sequence[str]) -> str:
    """Why nothing comes to a branch; "" if something does."""
    match = _served(branch.match, routes)
    for other in before:
        if other.match is None:
            return f"the chain {other.name!r} before it takes all requests, as it has no match; move that to the end"
        wider = _served(other.match, routes)
        if match is not None and wider is not None and wider.covers(match):
            return f"the chain {other.name!r} before it takes all of these; move this one up, or remove one of them"
    return ""


def _served(match: Match | None, routes: Sequence[str]) -> Match | None:
    """The same, with those of the routes that it takes written out; None: it takes none of them, or is none."""
    if match is None:
        return None
    taken = tuple(route for route in routes if any(fits(route, pattern) for pattern in match.routes or ("*",)))
    return replace(match, routes=taken) if taken else None


def _unmatched(match: Match, config: Config, chain: Chain, routes: Sequence[str]) -> Iterator[str]:
    """What of it nothing would fit."""
    sure = [link.plugin for link in chain.head.links if link.plugin.over_budget == "refuse"]
    given = {key for plugin in sure for key in plugin.gives}
    if match.keys and CALLER not in given:
        yield "keys: no plugin of [[plugins]] that may not be passed over says whose key a request came with; add `auth` there"
    if match.labels and API_KEY not in given:
        yield "labels: no plugin of [[plugins]] that may not be passed over says what is known of a key; add `auth` there"
    for route in match.routes or ():
        if not any(fits(served, route) for served in routes):
            yield f"routes: nothing is served at {route!r}; {suggestion(route, routes)}"
    met_at = [served for served in routes if any(fits(served, route) for route in match.routes or ())]
    if match.models and met_at and all(ROUTES.get(served, CHAT) is not CHAT for served in met_at):
        yield f"models: a request at {' or '.join(met_at)} asks no model, so none fits both; leave models or routes out"
    models = sorted({name for upstream in config.upstreams for name in upstream.model_map})
    for model in match.models or ():
        if ANY_MODEL not in models and not any(fits(served, model) for served in models):
            yield f"models: no upstream serves {model!r}; {suggestion(model, models)}"


def met(
    chain: Chain, *, route: str, caller: str, labels: Mapping[str, str], model: str | None
) -> tuple[str, Sequence[Link]]:
    """What such a request would meet: the name of its chain ("" without one), and the plugins in order."""
    operation = ROUTES[route].operation if route in ROUTES else "chat"
    branch = chain.branch(route=route, caller=caller, labels=labels, model=model if operation == "chat" else None)
    links = chain.head.taking_part[operation]
    return ("", links) if branch is None else (branch.name, (*links, *branch.taking_part[operation]))
