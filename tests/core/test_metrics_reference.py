"""The page about the metrics is what the table says."""

from pathlib import Path

from relay.metrics.families import FAMILIES, SUPERVISED, Configured
from relay.metrics.reference import rendered

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_is_of_this_table():
    """`python -m relay.metrics.reference > docs/metrics.md` has been run since the last change."""
    assert rendered() == PAGE.read_text(encoding="utf-8")


def test_everything_is_on_it():
    """Every metric with its labels, every value of a closed set, every bucket's bound."""
    page = rendered()
    for family in (*FAMILIES, *SUPERVISED):
        [row] = [line for line in page.splitlines() if line.startswith(f"| `{family.name}`")]
        assert family.help in row
        for label, values in family.labels.items():
            assert f"`{label}`" in row
            if isinstance(values, Configured):
                assert f"- `{label}`: {values.what}" in page
            else:
                [line] = [each for each in page.splitlines() if f"`{family.name}{{{label}}}`" in each]
                assert all(f"`{value}`" in line for value in values if value)
