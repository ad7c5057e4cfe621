"""What is drawn: figures, lines and tables, each with the one question that it answers.

What they return is the SDK's own builder, so what only one panel needs is said in the SDK's words where it is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import table as tables
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models import dashboard as schema
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue as Property
from grafana_foundation_sdk.models.prometheus import PromQueryFormat, QueryEditorMode

from grafana.build.colours import COLOURS, GREY
from grafana.build.promql import promql, quantile

DATASOURCE = schema.DataSourceRef(type_val="prometheus", uid="${datasource}")

Limits = Mapping[float, str]
"""From which value on which colour."""

TITLES = {
    "relay-overview": "Overview",
    "relay-moderation": "Moderation",
    "relay-upstreams": "Upstreams",
    "relay-process": "Plugins and process",
    "relay-keys": "Keys and quota",
}
"""The dashboards, uid → title. A uid is an address that people keep: it does not change."""


class Query(NamedTuple):
    """expr: as `promql.promql` takes it. legend: what its series are called; a label as `{{label}}`."""

    expr: str
    legend: str = ""


class Ask(NamedTuple):
    """A question and how its answer is read.

    reading: what is normal, and what to make of the rest. then: where to look next, uids of dashboards.
    runbook: the alert that is about the same; docs/runbooks has a page of that name. empty: what stands in the place of
    no data; Grafana's own words if it is empty.
    """

    question: str
    reading: str
    then: str | tuple[str, ...] = ()
    runbook: str = ""
    empty: str = "no relay"


def quantiles(histogram: str, *by: str, of: Iterable[float] = (0.5, 0.95, 0.99)) -> list[Query]:
    """From `p50` to `p99`, of each `by`."""
    labels = "".join(f" {{{{{label}}}}}" for label in by)
    return [Query(quantile(q, histogram, *by), f"p{q * 100:.0f}{labels}") for q in of]


def figures(
    title: str, ask: Ask, unit: str, queries: Iterable[Query], limits: Limits | None = None, base: str = "green"
) -> stat.Panel:
    """Values of this moment, none below 0, large; on coloured ground if they can be judged. base: below all limits.

    Of this moment: the last value of a range would still stand there an hour after the last relay has died.
    """
    asked = list(queries)
    ground = models.BigValueColorMode.NONE if limits is None else models.BigValueColorMode.BACKGROUND
    text = models.BigValueTextMode.VALUE_AND_NAME if len(asked) > 1 else models.BigValueTextMode.VALUE
    return (
        _asked(stat.Panel(), title, ask, unit)
        .span(6)
        .height(4)
        .thresholds(_grounds(limits, base))
        .color_scheme(dashboard.FieldColor().mode(schema.FieldColorModeId.THRESHOLDS))
        .color_mode(ground)
        .text_mode(text)
        .graph_mode(models.BigValueGraphMode.NONE)
        .justify_mode(models.BigValueJustifyMode.CENTER)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .targets([_target(number, query).instant() for number, query in enumerate(asked)])
    )


def lines(
    title: str,
    ask: Ask,
    unit: str,
    queries: Iterable[Query],
    *,
    colours: Iterable[str] = (),
    limits: Limits | None = None,
    axis: str = "",
    ranked: bool = False,
) -> timeseries.Panel:
    """How something went in the time that is looked at.

    colours: words of `COLOURS`, for the series that are called so or have it for their last word. limits: dashed lines.
    axis: what is counted, where the unit does not say it. ranked: for many series: a legend with their last and
    largest values, the largest first, without those that never were.
    """
    panel = (
        _asked(timeseries.Panel(), title, ask, unit)
        .span(12)
        .height(8)
        .min(0)
        .line_width(1)
        .show_points(models.VisibilityMode.AUTO)
        .legend(ranking("last", "max") if ranked else _named())
        .tooltip(common.VizTooltipOptions().mode(models.TooltipDisplayMode.MULTI).sort(models.SortOrder.DESCENDING))
        .targets(
            [_target(number, query).range().exemplar("_bucket{" in query.expr) for number, query in enumerate(queries)]
        )
        .color_scheme(dashboard.FieldColor().mode(schema.FieldColorModeId.PALETTE_CLASSIC))
    )
    if axis:
        panel.axis_label(axis)
    if limits is not None:
        panel.thresholds(_thresholds(limits, "transparent"))
        panel.thresholds_style(common.GraphThresholdsStyleConfig().mode(models.GraphThresholdsStyleMode.DASHED))
    for name in colours:
        panel.override_by_regexp(f"/(^| ){name}( |$)/", [colour(COLOURS[name])])
    return sparse(panel) if ranked else panel


def stacked(panel: timeseries.Panel) -> timeseries.Panel:
    """One upon the other: what they are together counts too. Without lines: the topmost would go round all of them."""
    panel.line_width(0).fill_opacity(70).show_points(models.VisibilityMode.NEVER)
    return panel.stacking(common.StackingConfig().mode(models.StackingMode.NORMAL).group("A"))


def sparse(panel: timeseries.Panel) -> timeseries.Panel:
    """Keep out of the legend what never was: of a closed set the relay tells every value, and most of them stay 0."""
    never = schema.MatcherConfig(id_val="byValue", options={"reducer": "allIsZero", "op": "gte", "value": 0})
    hidden = Property(id_val="custom.hideFrom", value={"legend": True, "tooltip": True, "viz": False})
    return panel.with_override(never, [hidden])


def events(panel: timeseries.Panel) -> timeseries.Panel:
    """Bars for what should not happen: an empty panel is a good one. How much at most tells more than how much at last."""
    return sparse(stacked(panel.draw_style(models.GraphDrawStyle.BARS)).legend(ranking("max")))


def bars(panel: timeseries.Panel, series: str) -> timeseries.Panel:
    """Bars for those series (a regular expression) that are events among lines."""
    drawn = {"custom.drawStyle": "bars", "custom.fillOpacity": 70, "custom.lineWidth": 0}
    return panel.override_by_regexp(
        f"/^({series})$/", [Property(id_val=name, value=value) for name, value in drawn.items()]
    )


def states(panel: timeseries.Panel, *named: tuple[str, str]) -> timeseries.Panel:
    """Steps between states, which are numbered from 0: what each is called, and its colour."""
    nothing = schema.ValueMappingResult(text="\N{NO-BREAK SPACE}")
    # The axis has marks between the states too.
    between = [
        schema.RangeMap(schema.DashboardRangeMapOptions(from_val=low + 0.01, to=low + 0.99, result=nothing))
        for low in range(len(named) - 1)
    ]
    names = called({str(number): name for number, name in enumerate(named)})
    panel.line_interpolation(models.LineInterpolation.STEP_AFTER).line_width(2).fill_opacity(30)
    panel.legend(_named("lastNotNull"))
    # A colour for each state, not for each series: the line has that of where it is, its name that of where it is last.
    panel.color_scheme(dashboard.FieldColor().mode(schema.FieldColorModeId.THRESHOLDS))
    panel.gradient_mode(models.GraphGradientMode.SCHEME)
    # What lies under a state is filled in its colour, down to the one before; the line of that stays as it is.
    (_, lowest), *higher = named
    panel.thresholds(_thresholds({number + 0.05: shade for number, (_, shade) in enumerate(higher)}, lowest))
    return panel.max(len(named) - 1).mappings([*names, *between])


def logarithmic(panel: timeseries.Panel, linear_below: float) -> timeseries.Panel:
    """For values of many sizes; linear below one that nobody asks about, since 0 has a place there.

    Such a panel has no `Ask.empty`: Grafana would write it at each mark of the axis that has no number.
    """
    scale = common.ScaleDistributionConfig().type(models.ScaleDistribution.SYMLOG).log(10)
    return panel.scale_distribution(scale.linear_threshold(linear_below))


def on_the_right(panel: timeseries.Panel, series: str, axis: str) -> timeseries.Panel:
    """Series (a regular expression) that are counted in something else: of the axis on the right, called `axis`."""
    right = [Property(id_val="custom.axisPlacement", value="right"), Property(id_val="custom.axisLabel", value=axis)]
    return panel.override_by_regexp(f"/^({series})$/", [*right, Property(id_val="unit", value="short")])


def table(
    title: str, ask: Ask, unit: str, queries: Iterable[Query], labels: Mapping[str, str], worst: Sequence[str] = ()
) -> tables.Panel:
    """One row for each combination of labels, one column for each query with a legend, called by it. Of this moment.

    labels: label → what its column is called. worst: the columns whose largest values come first; rows that are alike in them are in the order of the first label.
    """
    asked = list(queries)
    # What Grafana calls a column of values: it is numbered where several queries have some.
    values = (
        {f"Value #{_letter(number)}": query.legend for number, query in enumerate(asked)}
        if len(asked) > 1
        else {"Value": asked[0].legend}
    )
    shown = {
        **labels,
        **{key: legend for key, legend in values.items() if legend},
    }
    columns = {
        "excludeByName": {name: True for name in ("Time", "Value", *values) if name not in shown},
        "indexByName": {name: index for index, name in enumerate(shown)},
        "renameByName": shown,
    }
    return (
        _asked(tables.Panel(), title, ask, unit)
        .span(12)
        .height(8)
        .cell_height(models.TableCellHeight.SM)
        .targets([_target(number, query).instant().format(PromQueryFormat.TABLE) for number, query in enumerate(asked)])
        .with_transformation(schema.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(schema.DataTransformerConfig(id_val="organize", options=columns))
        .sort_by(
            [
                common.TableSortByFieldState().display_name(column).desc(column in worst)
                for column in (*worst, next(iter(labels.values())))
            ]
        )
    )


def colour(name: str) -> Property:
    return Property(id_val="color", value={"mode": "fixed", "fixedColor": name})


def dashed() -> Property:
    return Property(id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]})


def unit(name: str, decimals: int | None = None) -> list[Property]:
    """For one series or column. decimals: None for as many as make three figures."""
    digits = [] if decimals is None else [Property(id_val="decimals", value=decimals)]
    return [Property(id_val="unit", value=name), *digits]


def cell() -> Property:
    """The ground of a table's cell has the colour of its threshold."""
    return Property(id_val="custom.cellOptions", value={"type": "color-background", "mode": "basic"})


def inked() -> Property:
    """The text of a table's cell has the colour of its threshold: for what may be meant so."""
    return Property(id_val="custom.cellOptions", value={"type": "color-text"})


def judged(limits: Limits, base: str = "green") -> Property:
    """Thresholds for one value of `figures`, or column of a `table`."""
    return Property(id_val="thresholds", value=_grounds(limits, base).build())


def called(names: Mapping[str, tuple[str, str]]) -> list[schema.ValueMapping]:
    """What a value stands for: value → what it is called, and the colour of that."""
    options = {
        value: schema.ValueMappingResult(text=text, color=shade, index=index)
        for index, (value, (text, shade)) in enumerate(names.items())
    }
    return [schema.ValueMap(options=options)]


def link(title: str, uid: str) -> dashboard.DashboardLink:
    """To another dashboard, with the time and the variables of this one."""
    url = f"/d/{uid}?${{__url_time_range}}&${{__all_variables}}"
    return dashboard.DashboardLink(title).type(schema.DashboardLinkType.LINK).url(url)


class _Builder(Protocol):
    """What the builders of all kinds of panel have in common, as far as all panels here are alike."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: schema.DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def no_value(self, no_value: str) -> Self: ...
    def links(self, links: list[Builder[schema.DashboardLink]]) -> Self: ...


B = TypeVar("B", bound=_Builder)


def _asked(panel: B, title: str, ask: Ask, unit: str) -> B:
    text = f"**{ask.question}**\n\n{ask.reading}" + (
        f"\n\nRunbook: docs/runbooks/{ask.runbook}.md" if ask.runbook else ""
    )
    panel.title(title).description(text).datasource(DATASOURCE).unit(unit)
    if ask.empty:
        panel.no_value(ask.empty)
    if ask.then:
        uids = (ask.then,) if isinstance(ask.then, str) else ask.then
        panel.links([link(f"Next: {TITLES[uid]}", uid) for uid in uids])
    return panel


def _target(number: int, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().ref_id(_letter(number)).expr(promql(query.expr)).datasource(DATASOURCE)
    return target.legend_format(query.legend).editor_mode(QueryEditorMode.CODE)


def _letter(number: int) -> str:
    return chr(ord("A") + number)


def _grounds(limits: Limits | None, base: str) -> dashboard.ThresholdsConfig:
    """From 0 on `base`. Below it is what there is no data of: that is grey, unless `base` is no colour of its own."""
    below = base if base in ("transparent", "text") else GREY
    return _thresholds({} if limits is None else {0: base, **limits}, "text" if limits is None else below)


def _thresholds(limits: Limits, base: str) -> dashboard.ThresholdsConfig:
    below = schema.Threshold(value=None, color=base)
    above = [schema.Threshold(value=value, color=shade) for value, shade in limits.items()]
    return dashboard.ThresholdsConfig().mode(schema.ThresholdsMode.ABSOLUTE).steps([below, *above])


def _named(*calcs: str) -> common.VizLegendOptions:
    legend = common.VizLegendOptions().show_legend(True).calcs(list(calcs))
    return legend.display_mode(models.LegendDisplayMode.LIST).placement(models.LegendPlacement.BOTTOM)


def ranking(*calcs: str) -> common.VizLegendOptions:
    """A legend with what Grafana calls calculations of each series, the largest first.

    "last" is of the points that there are: of what has ended it is old.
    """
    legend = common.VizLegendOptions().show_legend(True).calcs(list(calcs)).sort_by("Max").sort_desc(True)
    return legend.display_mode(models.LegendDisplayMode.TABLE).placement(models.LegendPlacement.RIGHT)
