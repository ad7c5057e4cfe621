"""`relay keys …`: the keys of the store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from relay.admin_api import IssuedReply, KeysReply
from relay.administration import Administration
from relay.commands.attached import checked, print_json, run, who
from relay.commands.options import F, Number, Pair, Span, When, config_option, json_option, yes_option
from relay.commands.table import card, labels, moment, table
from relay.keyring import MAX_PAGE, Issued
from relay.keys import KeyChange, KeyView, Limits, NewKey

_LIMITS: Final = Limits.__struct_fields__


def _limit_options(*, default: bool) -> Callable[[F], F]:
    def add(command: F) -> F:
        for name in reversed(_LIMITS):
            text = f"In place of what rate_limit says for all{', or default for that' if default else ''}."
            command = click.option(f"--{name.replace('_', '-')}", type=Number(default=default), help=text)(command)
        return command

    return add


@click.group("keys")
def keys() -> None:
    """Keys of the store: who may ask, for how long, what and how much."""


@keys.command("create")
@click.argument("name")
@click.option("--expires", type=When(), help="How long from now (30d), or a date (2030-12-31 is its beginning in UTC).")
@click.option("--model", "models", multiple=True, help="One that it may ask; may be repeated. Without: all.")
@click.option("--label", "given", type=Pair(), multiple=True, help="NAME=VALUE, for yourself; may be repeated.")
@_limit_options(default=False)
@config_option
@json_option
def create(
    name: str,
    expires: datetime | None,
    models: tuple[str, ...],
    given: tuple[tuple[str, str], ...],
    path: Path,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Make a key and print its secret, this once."""
    new = checked(
        NewKey,
        name=name,
        expires_at=expires,
        models=models or None,
        labels=dict(given),
        limits={limit: number for limit, number in limits.items() if number is not None},
    )
    _print_issued(run(path, lambda relay: relay.create(new, who())), as_json, f"The key {name} is made.")


@keys.command("list")
@config_option
@json_option
def list_keys(path: Path, as_json: bool) -> None:
    """All keys of the store, by name."""

    async def all_of_them(relay: Administration) -> tuple[KeyView, ...]:
        found: list[KeyView] = []
        after: str | None = ""
        while after is not None:
            page = await relay.keys(after, MAX_PAGE)
            found += page.keys
            after = page.next
        return tuple(found)

    found = run(path, all_of_them)
    if as_json:
        print_json(KeysReply(keys=found, next=None))
    elif not found:
        click.echo("There are no keys in the store; `relay keys create NAME` makes one.")
    else:
        rows = (
            (key.name, key.state, moment(key.created_at), moment(key.expires_at), _models(key), labels(key.labels))
            for key in found
        )
        click.echo(table(("NAME", "STATE", "CREATED", "EXPIRES", "MODELS", "LABELS"), rows))


@keys.command("show")
@click.argument("name")
@config_option
@json_option
def show(name: str, path: Path, as_json: bool) -> None:
    """One key, all that is known of it."""
    _print_key(run(path, lambda relay: relay.key(name)), as_json)


@keys.command("set")
@click.argument("name")
@click.option("--expires", type=When(never=True), help="How long from now (30d), a date (2030-12-31), or never.")
@click.option("--model", "models", multiple=True, help="Those that it may ask instead of the ones until now.")
@click.option("--all-models", is_flag=True, help="It may ask all models.")
@click.option("--label", "given", type=Pair(), multiple=True, help="NAME=VALUE; the others stay.")
@click.option("--drop-label", "dropped", multiple=True, help="The name of one to take away.")
@_limit_options(default=True)
@config_option
@json_option
@click.pass_context
def set_fields(
    ctx: click.Context,
    /,
    name: str,
    models: tuple[str, ...],
    all_models: bool,
    given: tuple[tuple[str, str], ...],
    dropped: tuple[str, ...],
    path: Path,
    as_json: bool,
    **options: Any,
) -> None:
    """Change what is named, and leave the rest as it is."""
    if models and all_models:
        raise click.UsageError("give --model or --all-models, not both")
    said = {option for option in options if ctx.get_parameter_source(option) is click.core.ParameterSource.COMMANDLINE}
    fields: dict[str, object] = {}
    if "expires" in said:
        fields["expires_at"] = options["expires"]
    if models or all_models:
        fields["models"] = models or None
    if given or dropped:
        fields["labels"] = {**dict.fromkeys(dropped), **dict(given)}
    if limits := {limit: options[limit] for limit in _LIMITS if limit in said}:
        fields["limits"] = limits
    if not fields:
        raise click.UsageError("say what to change; --help lists it")
    change = checked(KeyChange, **fields)
    _print_key(run(path, lambda relay: relay.change(name, change, who())), as_json)


@keys.command("disable")
@click.argument("name")
@config_option
@json_option
def disable(name: str, path: Path, as_json: bool) -> None:
    """Let nobody in with this key, within a second, until it is enabled again."""
    _print_key(run(path, lambda relay: relay.change(name, KeyChange(disabled=True), who())), as_json)


@keys.command("enable")
@click.argument("name")
@config_option
@json_option
def enable(name: str, path: Path, as_json: bool) -> None:
    """Take a disabled key again."""
    _print_key(run(path, lambda relay: relay.change(name, KeyChange(disabled=False), who())), as_json)


@keys.command("rotate")
@click.argument("name")
@click.option(
    "--overlap",
    type=Span(),
    default="24h",
    show_default=True,
    help="For how long the old secret still works. 0, as for one that has leaked: it ends at once.",
)
@yes_option
@config_option
@json_option
def rotate(name: str, overlap: int, yes: bool, path: Path, as_json: bool) -> None:
    """Give a key a new secret and print it, this once."""
    if not overlap and not yes:
        click.confirm(f"All secrets that {name} has end at once. Go on?", abort=True, err=True)
    issued = run(path, lambda relay: relay.rotate(name, overlap, who()))
    ends = [secret.ends_at for secret in issued.key.secrets if secret.ends_at is not None]
    until = f"works until {moment(max(ends))}" if ends else "works no longer"
    _print_issued(issued, as_json, f"The key {name} has a new secret; the old one {until}.")


@keys.command("delete")
@click.argument("name")
@yes_option
@config_option
def delete(name: str, yes: bool, path: Path) -> None:
    """Delete a key with all of its secrets. What its account holds stays, for a later key of the same name."""
    if not yes:
        click.confirm(f"Delete the key {name}? Whoever uses it is turned away from now on.", abort=True, err=True)
    run(path, lambda relay: relay.delete(name, who()))
    click.echo(f"The key {name} is deleted.", err=True)


def _print_issued(issued: Issued, as_json: bool, sentence: str) -> None:
    """Only the secret on standard output, so that it can be piped to where it belongs."""
    if as_json:
        print_json(IssuedReply(key=issued.key, secret=issued.secret.reveal()))
        return
    click.echo(f"{sentence} Its secret, shown this once and kept nowhere:", err=True)
    click.echo(issued.secret.reveal())


def _print_key(key: KeyView, as_json: bool) -> None:
    if as_json:
        print_json(key)
        return
    limits = {name: number for name, number in msgspec.structs.asdict(key.limits).items() if number is not None}
    click.echo(
        card(
            [
                ("name", key.name),
                ("state", key.state),
                ("created", moment(key.created_at)),
                ("expires", moment(key.expires_at) or "never"),
                ("models", _models(key)),
                ("limits", ", ".join(f"{name.replace('_', ' ')}: {number:,}" for name, number in limits.items())),
                ("labels", labels(key.labels)),
            ]
        )
    )
    click.echo()
    rows = (
        (secret.hint, moment(secret.created_at), moment(secret.ends_at) or "with the key") for secret in key.secrets
    )
    click.echo(table(("SECRET", "CREATED", "ENDS"), rows))


def _models(key: KeyView) -> str:
    return "all" if key.models is None else ", ".join(key.models)
