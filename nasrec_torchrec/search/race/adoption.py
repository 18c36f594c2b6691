"""The first sentence of a verdict: whether to adopt what a race found instead of the best tuned baseline."""

from collections.abc import Mapping
from typing import Any


def adoption(measured: Mapping[str, Any], split: str) -> str:
    """Returns whether the winner is better than the best baseline, by the interval of the difference.

    Nothing is said where no baseline took part.

    Args:
        measured: what was measured of the winner and of the baseline.
        split: split that is read for it.
    """
    if "baseline" not in measured:
        return ""
    found = measured["baseline"].get("difference")
    if found is None:
        return "No difference: the best tuned baseline won the race itself. Adopt it."
    name, other = measured["winner"]["title"], measured["baseline"]["title"]
    gain, low, high = -found["mean"], -found["high"], -found["low"]
    chance = f"over {found['rows']:,} paired rows and {' and '.join(map(str, found['seeds']))} seeds"
    if high < 0:
        return (
            f"Worse: {name} won on validation, but its {split} log loss is higher than that of the best tuned "
            f"baseline, {other}, by {-gain:.5f} (95 % interval {-high:.5f} to {-low:.5f}, {chance}). "
            "Adopt the baseline."
        )
    compared = (
        f"its {split} log loss is lower than that of the best tuned baseline, {other}, by {gain:.5f} (95 % interval "
        f"{low:.5f} to {high:.5f}, {chance})."
    )
    if low > 0:
        return f"Adopt {name}: {compared}"
    return f"No difference shown: {name} won, and {compared} More rows to measure, or more seeds, would tell."
