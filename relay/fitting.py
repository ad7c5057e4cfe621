"""Whether plugins fit together: their hooks, the keys that they need of each other, the routes that they add."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from relay.exchange import CALLER, Key
from relay.keys import API_KEY
from relay.plugin import hook_problems
from relay.routes import ROUTES
from relay.section import Link, Section


def misfits(head: Section, branches: Sequence[Section]) -> list[str]:
    """Sentences about plugins that cannot do what they promise where they stand, each with its place and what to do."""
    behind = [link for branch in branches for link in branch.links]
    problems = [*_routes_of(head.links), *_problems(head.links, behind=behind)]
    problems += (
        f"{_at(link)}plugin {link.name!r} gives the replies of one chain to the requests of another; put it last in each of [[chains]]"
        for link in head.links
        if link.plugin.repeats and branches
    )
    for branch in branches:
        problems += _problems(branch.links, before=head.links)
        problems += (
            f"{_at(link)}plugin {link.name!r} adds {', '.join(link.plugin.routes)}, and which chain a request goes on in is "
            "found out later; move it to [[plugins]]"
            for link in branch.links
            if link.plugin.routes
        )
    return problems


def _at(link: Link) -> str:
    return f"{link.place}: " if link.place else ""


def _routes_of(links: Sequence[Link]) -> Iterator[str]:
    """What is wrong with the routes that they add."""
    routes = dict.fromkeys(ROUTES, "the relay itself")
    for link in links:
        for route in link.plugin.routes:
            if route in routes:
                yield f"{_at(link)}plugin {link.name!r}: {route} is served by {routes[route]}; remove one of them"
            routes[route] = f"plugin {link.name!r}"


def _problems(links: Sequence[Link], *, before: Sequence[Link] = (), behind: Sequence[Link] = ()) -> Iterator[str]:
    """What is wrong with plugins, and with their order behind others."""
    for position, link in enumerate(links):
        wrong = hook_problems(type(link.plugin))
        yield from (f"{_at(link)}plugin {link.name!r}: {problem}" for problem in wrong)
        if any("is no Key" in problem for problem in wrong):
            continue
        if link.plugin.guards and link.plugin.over_budget == "pass":
            yield f'{_at(link)}plugin {link.name!r} may not be passed over: write over_budget = "refuse", or leave it out'
        earlier = (*before, *links[:position])
        sure = {key for other in earlier if other.plugin.over_budget == "refuse" for key in other.plugin.gives}
        for giver in earlier:
            if missed := set(giver.plugin.gives).intersection(link.plugin.needs) - sure:
                names = ", ".join(sorted(key.name for key in missed))
                yield (
                    f"{_at(giver)}plugin {giver.name!r} may be passed over, and {link.name!r} needs {names} of it; "
                    'write over_budget = "refuse"'
                )
        for key in link.plugin.needs:
            for problem in _unmet(link, key, earlier, links[position + 1 :]):
                yield f"{_at(link)}{problem}"
        used = {*link.plugin.uses} - {*link.plugin.needs}
        for other in (*links[position + 1 :], *behind):
            if used.intersection((*other.plugin.gives, *other.plugin.tells)):
                yield f"{_at(link)}plugin {link.name!r} has to stand behind {other.name!r}: move it down"


def _unmet(link: Link, key: Key[object], before: Sequence[Link], after: Sequence[Link]) -> Iterator[str]:
    """What is wrong with a need, if anything."""
    givers = [other for other in before if key in other.plugin.gives]
    if not givers:
        later = any(key in other.plugin.gives for other in after)
        who = "`auth`, or another plugin that does" if key in (CALLER, API_KEY) else "a plugin that does"
        hint = "a later one does; move it up" if later else f"add {who}"
        yield f"plugin {link.name!r} needs {key.name!r} and no plugin before it gives it: {hint}"
    elif bare := link.plugin.serves.difference(*(giver.plugin.serves for giver in givers)):
        names = " and ".join(repr(giver.name) for giver in givers)
        yield (
            f"plugin {link.name!r} needs {key.name!r} and serves {', '.join(sorted(bare))}, "
            f"where {names}, which gives it, takes no part"
        )
