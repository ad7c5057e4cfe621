"""How queries are read by the tests with a Prometheus: what an alert compares, and what a time lapse makes of it."""

import pytest
from proof.promql import compared, filled, lapsed, unfiltered


@pytest.mark.parametrize(
    ("query", "sides"),
    [
        ("up == 0", ["up"]),
        ('absent(up{job="a and b > 1"})', ['absent(up{job="a and b > 1"})']),
        ("(a > (14.4 * 0.001) and b > 14.4 * 0.001)", ["a", "b"]),
        ("sum by (job) (rate(a[5m])) / b > 0.5 and on (job) (c >= bool 3)", ["sum by (job) (rate(a[5m])) / b", "c"]),
        ('a > on (job) group_left () (b + 1) unless c{l!="x"} != 1', ["a", "b + 1", 'c{l!="x"}']),
        ("count(a > 1) < 2  # why", ["count(a > 1)"]),
    ],
)
def test_what_is_compared(query, sides):
    """The sides of all comparisons that are not inside a function; numbers are none."""
    assert sides == compared(query)


def test_a_lapse():
    """A minute is a second; what is shorter than four scrapes is as long as those."""
    assert "rate(a[5s] offset 60s) + b[10s:1s] + c[4s]" == lapsed("rate(a[5m] offset 1h) + b[10m:30s] + c[1m]")
    assert "rate(a[4s])" == filled(lapsed("rate(a[$__rate_interval])"))


def test_variables():
    """All that stand in a query have to be known."""
    assert 'a{job=~"relay", x=~".+"} $1' == filled('a{job=~"$job", x=~"${x:regex}"} $1', job="relay", x=".+")
    with pytest.raises(KeyError, match="nobody"):
        filled("a{b=$nobody}")


def test_without_its_filter():
    """Noughts are left in."""
    assert "60 * (sum(a)) + (b > 0.5)" == unfiltered("60 * (sum(a) > 0) + (b > 0.5)")
