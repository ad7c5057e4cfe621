"""`relay check`: everything built and nothing opened, and what a request would meet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from relay.assembly import assemble
from relay.chain import Chain
from relay.commands.options import Pair, config_option
from relay.config import ANY_MODEL, Config, Upstream, load
from relay.effect import met
from relay.options import ConfigError, suggestion
from relay.routes import CHAT, ROUTES
from relay.section import Link, Section, hooks

CHAT_ROUTE = next(path for path, route in ROUTES.items() if route is CHAT)


@click.command("check")
@config_option
@click.option("--key", metavar="NAME", help="Say what a request of the key with this name would meet.")
@click.option("--label", "labels", type=Pair(), multiple=True, help="A label of that key.")
@click.option("--model", metavar="NAME", help="Say what a request for this model would meet.")
@click.option("--route", metavar="PATH", help=f"Where that request comes to.  [default: {CHAT_ROUTE}]")
def check(path: Path, key: str | None, labels: Sequence[tuple[str, str]], model: str | None, route: str | None) -> None:
    """Build everything and say what would run, without serving.

    With --key, --model or --route: what such a request would meet, in order.
    """
    try:
        config = load(path)
        chain = assemble(config)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    if key is None and model is None and route is None and not labels:
        click.echo("\n".join(_whole(config, chain)))
    else:
        click.echo("\n".join(_effect(config, chain, key, dict(labels), model, route or CHAT_ROUTE)))


def _effect(
    config: Config, chain: Chain, key: str | None, labels: dict[str, str], model: str | None, route: str
) -> Iterable[str]:
    """What one request would meet, for people. Raises UsageError where too little of it is known."""
    matches = [branch.match for branch in chain.branches if branch.match is not None]
    served = [*ROUTES, *chain.routes]
    if route not in served:
        raise click.UsageError(f"nothing is served at {route!r}; {suggestion(route, served)}")
    chats = route in chain.routes or ROUTES[route] is CHAT
    if model is None and chats and any(match.models for match in matches):
        raise click.UsageError("which chain a request goes on in depends on its model; give --model")
    if key is None and any(match.keys or match.labels for match in matches):
        raise click.UsageError("which chain a request goes on in depends on its key; give the key's name as --key")
    named, links = met(chain, route=route, caller=key or "", labels=labels, model=model)
    asked = (
        f"of the key {key!r}" if key is not None else "",
        f"for {model!r}" if model is not None else "",
        f"at {route}",
    )
    yield f"A request {' '.join(filter(None, asked))} meets"
    if named:
        match = next(branch.match for branch in chain.branches if branch.name == named)
        yield f"the chain {named!r} ({match or 'all that no other chain takes'}):"
    for link in links:
        yield f"  {link.name:<24} {', '.join(hook for hook in hooks(link) if hook.startswith('on_'))}"
    if not links:
        yield "  no plugin: everybody may ask, and nothing is moderated"
    if chats:
        yield "and then, in this order until one answers:"
        upstreams = [upstream for upstream in _ordered(config) if model is None or _serves(upstream, model)]
        for upstream in upstreams:
            names = upstream.model_map
            name = "" if model is None else f"as {names.get(model, model)}"
            yield f"  {upstream.name:<24} {upstream.base_url} {name}".rstrip()
        if not upstreams:
            yield f"  no upstream: none serves {model!r}, so the answer is a refusal"


def _serves(upstream: Upstream, model: str) -> bool:
    return model in upstream.model_map or ANY_MODEL in upstream.model_map


def _ordered(config: Config) -> list[Upstream]:
    return sorted(config.upstreams, key=lambda upstream: upstream.priority)


def _store(config: Config) -> str:
    """Where it is, without who may enter."""
    if config.store.address is not None:
        return config.store.address.place
    if config.store.scheme == "embedded":
        return f"in {config.store.data(config.folder)}"
    return "(limits of each process alone; no keys but those of the configuration, and no balances)"


def _whole(config: Config, chain: Chain) -> Iterable[str]:
    """What would run, for people."""
    workers = config.server.workers
    yield f"{config.path} is sound."
    yield f"public  http://{config.server.host}:{config.server.port}"
    yield f"workers {workers}{' behind one socket, and a supervisor' if workers > 1 else ', the process itself'}"
    closed = "" if config.admin.token else "  (no token: /admin is closed)"
    yield f"admin   http://{config.admin.host}:{config.admin.port}{closed}"
    yield f"store   {config.store.scheme}:  {_store(config)}"
    yield ""
    yield "chain, in the order in which requests meet it:"
    yield from _links(chain.head.links)
    if not chain.links:
        yield "  (no plugins: everybody may ask, and nothing is moderated)"
    for branch in chain.branches:
        yield from _branch(branch)
    yield ""
    yield "upstreams, in the order in which they are asked:"
    for upstream in _ordered(config):
        models = ", ".join(
            public if public == name else f"{public} as {name}" for public, name in upstream.model_map.items()
        )
        yield f"  {upstream.name}  {upstream.base_url}  priority {upstream.priority}, weight {upstream.weight}"
        yield f"    models   {models}"


def _branch(branch: Section) -> Iterable[str]:
    yield ""
    yield f"behind it, for {branch.match or 'all others'}: {branch.name}"
    yield from _links(branch.links)
    if not branch.links:
        yield "  (no more plugins)"


def _links(links: Iterable[Link]) -> Iterable[str]:
    for link in links:
        plugin = link.plugin
        yield f"  {link.name}"
        yield f"    runs in  {', '.join(hooks(link)) or 'nothing'}; serves {', '.join(sorted(plugin.serves))}"
        if plugin.routes:
            yield f"    adds     POST {', POST '.join(plugin.routes)}"
        if plugin.needs:
            yield f"    needs    {', '.join(key.name for key in plugin.needs)}"
        if plugin.gives or plugin.tells:
            yield f"    gives    {', '.join(key.name for key in (*plugin.gives, *plugin.tells))}"
