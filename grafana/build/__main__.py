"""Write grafana/dashboards/*.json: `python -m grafana.build`, or `make dashboards`."""

from __future__ import annotations

from pathlib import Path

from grafana.build.files import files

HERE = Path(__file__).parents[1] / "dashboards"

for name, content in files().items():
    (HERE / name).write_bytes(content)
