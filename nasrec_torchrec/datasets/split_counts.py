"""What the numbers of rows and clicks of the splits allow to say about a model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

# Clicks, and rows without one, below which metrics of a split say little.
FEWEST = 100
# Click rates of two splits are called different beyond this many standard errors, if one is also so many times another.
_ERRORS, _RATIO = 4.0, 1.25


@dataclass(frozen=True)
class SplitCounts:
    """The rows and clicks of a split.

    Args:
        rows: number of rows.
        clicks: number of them whose label is 1.
    """

    rows: int
    clicks: int

    def before_sampling(self, keep_negatives: float) -> "SplitCounts":
        """Returns about how many there were before a share of the rows without a click was drawn."""
        return SplitCounts(self.clicks + round((self.rows - self.clicks) / keep_negatives), self.clicks)

    @property
    def rate(self) -> float:
        return self.clicks / max(1, self.rows)

    @property
    def rarer(self) -> int:
        """The number of rows with the rarer label."""
        return min(self.clicks, self.rows - self.clicks)

    @property
    def auc_deviation(self) -> float:
        """The standard deviation of the AUC of a model that guesses; infinite if all labels are equal."""
        others = self.rows - self.clicks
        return math.sqrt((self.rows + 1) / (12 * self.clicks * others)) if self.rarer else math.inf


def split_warnings(splits: Mapping[str, SplitCounts]) -> list[str]:
    """Returns a sentence for each split with too few clicks to judge a model by, or with another click rate.

    Args:
        splits: counts by the name of the split; one without rows is not judged.
    """
    found: list[str] = []
    train = splits.get("train", SplitCounts(0, 0))
    for name, counts in splits.items():
        if not counts.rows:
            continue
        if counts.rarer < FEWEST:
            what = f"{name}: {counts.rarer:,} of {counts.rows:,} rows are {_kind(counts)}"
            if name == "train":
                found.append(f"{what}, too few to learn from: collect more data, or look at the label")
            elif counts.rarer:
                found.append(
                    f"{what}: an AUC of this split is uncertain by about {2 * counts.auc_deviation:.2g} either way, "
                    "and models that differ by less cannot be told apart; prepare the data with a larger share for "
                    "this split, or collect more"
                )
            else:
                found.append(f"{what}: the split has no AUC, and nothing can be said of a model by it")
        if name != "train" and train.rows:
            both = (counts.clicks + train.clicks) / (counts.rows + train.rows)
            error = math.sqrt(both * (1 - both) * (1 / counts.rows + 1 / train.rows))
            low, high = sorted((counts.rate, train.rate))
            if high - low > _ERRORS * error and high > _RATIO * low:
                found.append(
                    f"{name}: {counts.rate:.2%} of the rows are clicks, in the training rows {train.rate:.2%}: "
                    "predicted probabilities will be off by about as much; if clicks arrive late or the sampling "
                    "changed, leave out those days, else expect this in production too"
                )
    return found


def _kind(counts: SplitCounts) -> str:
    return "clicks" if 2 * counts.clicks <= counts.rows else "no clicks"
