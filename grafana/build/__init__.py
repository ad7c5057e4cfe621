"""The dashboards' source: `make dashboards` writes grafana/dashboards/*.json from it. Change this, never the JSON.

Written with `grafana-foundation-sdk`: Grafana Labs' own, generated from Grafana's schemas, so a misspelt option is an
error of mypy's, and the shape of the JSON is theirs to know. Beside it: grafanalib is kept by volunteers, and lags;
Jsonnet with grafonnet is a second language, and a binary that PyPI does not have; JSON by hand repeats each query's
selectors and each panel's colours, and nobody reviews it. Pinned to the schema of Grafana 10.4: newer Grafanas migrate
it when they load it, older ones cannot read a newer one.

A module is a dashboard, from the question that comes first to the ones that follow from its answer. `promql` is how
queries are written, `panels` what is drawn of them, `colours` in what, `frame` what all dashboards have in common.
"""
