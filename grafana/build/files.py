"""The dashboards as files."""

from __future__ import annotations

import json

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.build import keys, moderation, overview, process, upstreams


def files() -> dict[str, bytes]:
    """Name → content, the same bytes whenever and wherever it is asked: keys are sorted."""
    made = [module.made() for module in (overview, moderation, upstreams, process, keys)]
    return {
        f"{(each.uid or '').removeprefix('relay-')}.json": json.dumps(
            each, cls=JSONEncoder, indent=2, sort_keys=True, ensure_ascii=False
        ).encode()
        + b"\n"
        for each in made
    }
