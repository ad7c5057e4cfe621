"""`relay audit`: who changed what, and when."""

from __future__ import annotations

from pathlib import Path

import click
import orjson

from relay.admin_api import AuditReply
from relay.commands.attached import print_json, run
from relay.commands.options import config_option, json_option
from relay.commands.table import moment, table
from relay.keyring import MAX_PAGE


@click.command("audit")
@click.option("--limit", type=click.IntRange(1, MAX_PAGE), default=50, show_default=True)
@click.option("--before", default="", help="The id of an entry: show older ones.")
@config_option
@json_option
def audit(limit: int, before: str, path: Path, as_json: bool) -> None:
    """Who changed keys and balances, the latest change first."""
    page = run(path, lambda relay: relay.audit(before, limit))
    if as_json:
        print_json(AuditReply(entries=page.entries, next=page.next))
        return
    if not page.entries:
        click.echo("Nothing was changed yet.")
        return
    rows = (
        (
            moment(entry.at),
            entry.who,
            entry.what,
            entry.name,
            ", ".join(f"{field}: {_text(value)}" for field, value in entry.details.items()),
        )
        for entry in page.entries
    )
    click.echo(table(("TIME", "WHO", "WHAT", "NAME", "DETAILS"), rows))
    if page.next:
        click.echo(f"Older ones: --before {page.next}", err=True)


def _text(value: object) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
