"""`relay quota …`: what keys have left, and what became of the rest."""

from __future__ import annotations

import secrets
from pathlib import Path

import click

from relay.admin_api import EntriesReply
from relay.administration import TopUpOrder
from relay.commands.attached import checked, print_json, run, who
from relay.commands.options import config_option, json_option
from relay.commands.table import card, moment, table
from relay.keyring import MAX_PAGE

_unit_option = click.option("--unit", help="Needed where balances are kept in several.")


@click.group("quota")
def quota() -> None:
    """Balances of keys, in the units of the plugin quota."""


@quota.command("show")
@click.argument("name")
@_unit_option
@config_option
@json_option
def show(name: str, unit: str | None, path: Path, as_json: bool) -> None:
    """How the account of a key stands."""
    stands = run(path, lambda relay: relay.quota(name, unit))
    if as_json:
        print_json(stands)
        return
    numbers = ("balance", "available", "reserved", "used", "granted")
    shown = [("key", name), ("unit", stands.unit), *((number, f"{getattr(stands, number):,}") for number in numbers)]
    if stands.fresh:
        shown.append(("", "not used yet: this is what it begins with"))
    click.echo(card(shown))


@quota.command("top-up", context_settings={"ignore_unknown_options": True})
@click.argument("name")
@click.argument("amount", type=int)
@click.option(
    "--idempotency-key", "given", help="Said again with the same key, it takes effect once. Without: a new one."
)
@click.option("--note", default="", help="Stands in the entry.")
@_unit_option
@config_option
@json_option
def top_up(name: str, amount: int, given: str | None, note: str, unit: str | None, path: Path, as_json: bool) -> None:
    """Add AMOUNT to a balance; below zero it takes away."""
    key = given or f"cli-{secrets.token_hex(8)}"
    order = checked(TopUpOrder, amount=amount, idempotency_key=key, note=note)
    if given is None:
        click.echo(f"If you do not see how this ends, say it again with --idempotency-key {key}", err=True)
    done = run(path, lambda relay: relay.top_up(name, order, who(), unit))
    if as_json:
        print_json(done)
    elif done.repeated:
        click.echo(f"This was done before. The balance of {name} is {done.balance:,} {done.unit}.")
    else:
        click.echo(f"{amount:+,} {done.unit}. The balance of {name} is {done.balance:,}.")


@quota.command("entries")
@click.argument("name")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True)
@click.option("--before", default="", help="The id of an entry: show older ones.")
@_unit_option
@config_option
@json_option
def entries(name: str, limit: int, before: str, unit: str | None, path: Path, as_json: bool) -> None:
    """What changed a balance, the latest first."""
    page = run(path, lambda relay: relay.entries(name, unit, before, limit))
    if as_json:
        print_json(EntriesReply(unit=page.unit, entries=page.entries, next=page.next))
        return
    rows = (
        (
            moment(entry.at),
            entry.kind,
            f"{entry.amount:+,}",
            f"{entry.balance:,}",
            entry.reference,
            ", ".join(f"{name}={value}" for name, value in entry.note.items()),
        )
        for entry in page.entries
    )
    click.echo(table(("TIME", "KIND", page.unit.upper(), "BALANCE", "REFERENCE", "NOTE"), rows))
    if page.next:
        click.echo(f"Older ones: --before {page.next}", err=True)
