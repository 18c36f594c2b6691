"""The first sentence of a verdict: whether to adopt what a race found instead of the best tuned baseline."""

from collections.abc import Mapping, Sequence
from typing import Any


def adoption(measured: Mapping[str, Any], split: str, leaderboard: Sequence[Mapping[str, Any]] = ()) -> str:
    """Returns whether the winner is better than the best baseline, by the interval of the difference.

    Nothing is said where no baseline took part. A race that had time for one configuration, or for baselines alone, has
    compared nothing that an adoption could rest on, and says so.

    Args:
        measured: what was measured of the winner and of the baseline.
        split: split that is read for it.
        leaderboard: configurations that were trained, as in the results of a race.
    """
    if len(leaderboard) == 1:
        only = leaderboard[0]
        seeds = "training" if only["seeds"] == 1 else f"configuration, with {only['seeds']} seeds"
        return (
            f"Nothing was compared: the race held only one {seeds}, of {only['model']}, so it cannot say whether "
            "another model or recipe is better. Take it as a first model, and give the race more budget or trials to "
            "compare."
        )
    if "baseline" not in measured:
        return ""
    found = measured["baseline"].get("difference")
    if found is None and leaderboard and all(row["baseline"] for row in leaderboard):
        return (
            f"Only baselines were compared: the race held {len(leaderboard)} configurations, and no searched network "
            "among them. Adopt the best tuned baseline for now; more budget or trials would say whether a searched "
            "network is better."
        )
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
