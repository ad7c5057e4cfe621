"""Where the admin listener of a relay that runs is, and the token that it takes."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import click

from relay.commands.attached import PartlySet, fail
from relay.config import ADMIN_TOKEN, Config, load, parse, text_of
from relay.options import ConfigError
from relay.secret import Secret

_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - where one listens, not binds


url_option = click.option("--url", help=f"The admin listener of another relay, whose token is in {ADMIN_TOKEN}.")


def addressed(path: Path, url: str | None) -> tuple[str, str]:
    """Where the admin listener is, that of relay.toml if no URL is given, and its token."""
    if url is None:
        return _configured(path)
    if not re.match(r"https?://[^/?#]", url):
        fail(f"--url: {url!r} is none; write it as in http://127.0.0.1:8081", status=2)
    return url, _token_of_environment()


def _token_of_environment() -> str:
    token = os.environ.get(ADMIN_TOKEN, "")
    if not token:
        fail(f"Set {ADMIN_TOKEN} to the admin token of the relay at --url.", status=2)
    return token


def _configured(path: Path) -> tuple[str, str]:
    """Where the admin listener of relay.toml is, and its token."""
    try:
        config, token = _read(path)
    except ConfigError as error:
        fail(str(error), status=2)
    if token is None:
        fail(
            f"{path}: /admin/ is closed because no token is configured; write "
            f'[admin] token = {{ env = "{ADMIN_TOKEN}" }}, and set that variable here and where the relay runs',
            status=2,
        )
    if config.admin.port == 0:
        fail(f"{path}: admin.port is 0, which is any free port; say which by --url http://HOST:PORT", status=2)
    host = _WILDCARDS.get(config.admin.host, config.admin.host)
    return (
        f"http://[{host}]:{config.admin.port}" if ":" in host else f"http://{host}:{config.admin.port}",
        token.reveal(),
    )


def _read(path: Path) -> tuple[Config, Secret | None]:
    """The configuration and the token. The relay's other secrets need not be in the variables of an operator's shell."""
    try:
        config = load(path)
    except ConfigError:
        partly = PartlySet()
        config = parse(text_of(path), path, partly)
        token = config.admin.token
        if token is not None and (name := partly.made_up.get(token.reveal())):
            raise ConfigError(f"{path}: the admin token is in the variable {name}; set that here too") from None
    return config, config.admin.token
