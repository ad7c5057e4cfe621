"""What all dashboards have in common: variables, links to one another, time and refresh."""

from __future__ import annotations

from collections.abc import Iterable

from grafana_foundation_sdk.builders.dashboard import Dashboard, DashboardLink, DatasourceVariable, QueryVariable
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import dashboard as schema

from grafana.build.panels import DATASOURCE, TITLES

ALL = schema.VariableOption(selected=True, text=["All"], value=["$__all"])


def framed(uid: str, purpose: str, panels: Iterable[Builder[schema.Panel]]) -> schema.Dashboard:
    """A dashboard of `panels`, laid from left to right and from top to bottom. purpose: its description."""
    board = (
        Dashboard(f"Relay: {TITLES[uid]}")
        .uid(uid)
        .description(purpose)
        .tags(["relay"])
        .readonly()
        .refresh("30s")
        .time("now-1h", "now")
        .annotations([])
        .tooltip(schema.DashboardCursorSync.CROSSHAIR)
        .link(
            DashboardLink("Relay")
            .type(schema.DashboardLinkType.DASHBOARDS)
            .tags(["relay"])
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_targets("job", "Job", "label_values(relay_build_info, job)"))
        .with_variable(_targets("instance", "Instance", 'label_values(relay_build_info{job=~"$job"}, instance)'))
    )
    for panel in panels:
        board.with_panel(panel)
    built = board.build()
    # The SDK leaves the numbers to Grafana, which would give them anew whenever the file is read; links to a panel
    # hang on its number.
    for number, each in enumerate(built.panels or [], start=1):
        each.id_val = number
    return built


def _targets(name: str, label: str, query: str) -> QueryVariable:
    """A choice among what is scraped; any number of them. Taken from the metric that every relay has from its start."""
    return (
        QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": name})
        .refresh(schema.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(schema.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".+")
        .current(ALL)
    )
