"""`relay plugin new`: a plugin of one's own, begun; and `relay plugin check`."""

from __future__ import annotations

from pathlib import Path

import click

from relay.assembly import registries
from relay.commands.attached import fail
from relay.commands.plugin_check import check
from relay.scaffold import problem, scaffold


@click.group("plugin")
def plugin() -> None:
    """Write a plugin of your own, and check it."""


plugin.add_command(check)


@plugin.command("new")
@click.argument("name")
def new(name: str) -> None:
    """Write a first plugin NAME, in a package of its own that passes its tests, to the folder relay-NAME."""
    if why := problem(name):
        fail(f"{why}.", status=2)
    known = registries()
    if any(entry.name == name for entry in (*known.plugins.names(), *known.moderators.names())):
        fail(f"{name!r} is installed already; take another name, as two of one name cannot be told apart.", status=2)
    files = scaffold(name)
    folder = Path(f"relay-{name.replace('_', '-')}")
    try:
        folder.mkdir()
        for path, text in files.items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except FileExistsError:
        fail(f"{folder} is there already; nothing was written. Move it away, or take another name.")
    except OSError as error:
        fail(f"{folder} cannot be written ({error.strerror}).")
    click.echo(
        f"{folder} is written. Next:\n  cd {folder}\n  pip install -e '.[dev]'\n  pytest\n"
        f"  relay plugin check {name} -o word=cat -o by=dog"
    )
