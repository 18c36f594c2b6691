"""Notices when a training goes wrong, and says so once, with what to do about it."""

import math
import statistics
from collections.abc import Mapping, Sequence

from nasrec_torchrec.datasets.split_counts import FEWEST, SplitCounts, split_warnings
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.training.config import TrainConfig

# A window of training rows is worse than its own click rate for certain: chance, and a loss that is still falling from
# its start, stay below the first factor, or exceed it once; nothing but divergence exceeds the second.
_WORSE, _MUCH_WORSE = 1.05, 2.0
# Share of a run after which a model should know more than the click rate; the paths of a supernet share its steps.
_PATIENCE, _SUPERNET_PATIENCE = 0.1, 0.3
# Growth of the gradient's norm, over the median of what was logged before, that is called an explosion.
_EXPLOSION = 100.0
# Numbers of standard deviations: of an AUC from .5 that may be chance.
_CHANCE = 2.0
# Share of an average that may be the weights of the first step.
_LEFT = 0.05
# Tables that a warning names.
_SHOWN = 10


class TrainingWatch:
    """Says what is wrong with a run, each thing once.

    Args:
        config: how the model is trained.
        supernet: whether the model is a supernet.
        total_steps: number of steps of the run.
        validation: rows and clicks of the validation split, if they are known.
        said: warnings by name that were already said; new ones are added to it.
    """

    def __init__(
        self,
        config: TrainConfig,
        supernet: bool,
        total_steps: int,
        validation: SplitCounts | None,
        said: dict[str, str],
    ) -> None:
        self._config, self._supernet, self._total_steps = config, supernet, total_steps
        self._validation, self._said = validation, said
        self._worse_before = False
        self._norms: list[float] = []

    def at_start(self) -> list[str]:
        """Returns warnings about settings that the run cannot honour."""
        decay = self._config.ema_decay
        if decay is not None and self._total_steps and (left := decay**self._total_steps) > _LEFT:
            return self._say(
                "ema_decay",
                f"ema_decay: the run has only {self._total_steps:,} steps, after which {left:.0%} of the average is "
                f"still the weights of its first step; set it to {max(0.1, 1 - 10 / self._total_steps):.4g}, or train "
                "for more epochs",
            )
        steps = self._config.full_path_steps
        if self._supernet and steps > self._total_steps > 0:
            left = 1 - self._total_steps / steps
            return self._say(
                "full_path_steps",
                f"full_path_steps: the probability of the full path decays over {steps:,} steps, but the run has only "
                f"{self._total_steps:,}, so that {left:.0%} of the last steps still take the full path and most "
                f"architectures are hardly trained; set it to {self._total_steps // 4:,}, or train for more epochs",
            )
        return []

    def of_data(self, prepared: Sequence[str], train: SplitCounts | None) -> list[str]:
        """Returns warnings about the data.

        Args:
            prepared: what the preparation has warned of.
            train: rows and clicks of the training split, if they are known.
        """
        known = {"train": train, "validation": self._validation}
        counted = split_warnings({name: counts for name, counts in known.items() if counts}) if train else []
        found = [message for message in [*prepared, *counted] if message not in self._said.values()]
        return [said for message in found for said in self._say(message, message)]

    def after_steps(self, step: int, norm: float, entropy: float) -> list[str]:
        """Returns warnings about what was measured of the last training rows.

        Args:
            step: last step.
            norm: norm of the gradient in that step.
            entropy: normalized entropy of the last training rows, or NaN if there are too few to judge.
        """
        found: list[str] = []
        usual = statistics.median(self._norms or [math.inf])
        if norm > max(_EXPLOSION * usual, self._config.gradient_clip) and len(self._norms) > 2:
            found += self._say(
                "gradient_norm",
                f"step {step:,}: the gradient's norm is {norm:.3g}, {norm / usual:,.0f} times its usual {usual:.3g}; "
                f"it is clipped to {self._config.gradient_clip:g}, but the training is unstable: lower learning_rate "
                f"(now {self._config.learning_rate:g}), and look for extreme numbers among the dense features "
                "(nasrec prepare describe)",
            )
        if math.isfinite(norm):
            self._norms.append(norm)
        late = step > (_SUPERNET_PATIENCE if self._supernet else _PATIENCE) * self._total_steps
        if late and not math.isnan(entropy):
            worse = entropy > _WORSE
            if worse and (self._worse_before or entropy > _MUCH_WORSE):
                found += self._say(
                    "training_loss",
                    f"step {step:,} of {self._total_steps:,}: on the last training rows the model is worse than always "
                    f"predicting their click rate (normalized entropy {entropy:.3g}; below 1 is better than that); "
                    f"learning_rate {self._config.learning_rate:g} is probably too high: try a tenth, then a hundredth "
                    "of it",
                )
            self._worse_before = worse
        return found

    def after_epoch(self, step: int, idle: Mapping[str, Sequence[str]]) -> list[str]:
        """Returns warnings about the tables.

        Args:
            step: last step.
            idle: columns by the name of their table, of tables of which no row has received a gradient so far.
        """
        if not idle:
            return []
        shown = [f"{table} (column {', '.join(columns)})" for table, columns in idle.items()]
        more = f" and {len(shown) - _SHOWN} more" if len(shown) > _SHOWN else ""
        return self._say(
            "idle_tables",
            f"step {step:,}: no row of these tables has received a gradient yet: {'; '.join(shown[:_SHOWN])}{more}: "
            "the model has learned nothing from them. If the columns are empty in the training rows (nasrec prepare "
            "describe), leave them out of the schema; otherwise the model does not react to them: lower learning_rate "
            f"(now {self._config.learning_rate:g}), or choose another architecture",
        )

    def after_validation(self, step: int, metrics: ClickMetrics) -> list[str]:
        """Returns warnings about a measurement of the validation split."""
        found: list[str] = []
        # So many rows have this AUC by chance about never.
        collapsed = metrics.auc == 0.5 and self._validation is not None and self._validation.rarer >= FEWEST
        if collapsed:
            found += self._say(
                "collapsed",
                f"step {step:,}: all validation rows get the same prediction (AUC exactly 0.5): the model has "
                f"collapsed, as one does whose learning rate is too high: it is {self._config.learning_rate:g} now; "
                "try a tenth, then a hundredth of it",
            )
        if 2 * step < self._total_steps:  # it may still learn
            return found
        entropy, rate = metrics.normalized_entropy, self._config.learning_rate
        if entropy is None and math.isfinite(metrics.log_loss):
            return found
        if entropy is None or entropy > 1:
            shown = "not a number" if entropy is None else f"{entropy:.4g}"
            found += self._say(
                "validation_loss",
                f"step {step:,}: on the validation split the model is worse than always predicting its click rate "
                f"(normalized entropy {shown}; below 1 is better than that): its probabilities are of no use yet; if "
                f"this stays so, lower learning_rate (now {rate:g}), train for fewer epochs, or compare the click "
                "rates of the splits (nasrec prepare describe)",
            )
        if metrics.auc is not None and self._validation is not None and not collapsed:
            deviation = self._validation.auc_deviation
            if abs(metrics.auc - 0.5) <= _CHANCE * deviation:
                found += self._say(
                    "auc",
                    f"step {step:,}: the validation AUC is {metrics.auc:.4f}, which cannot be told from guessing (0.5 "
                    f"± {_CHANCE * deviation:.4f}): the features say nothing about the label, or the model does not "
                    f"learn: try learning_rate {rate / 10:g} and {rate * 10:g}, more epochs, and check the label",
                )
            elif metrics.auc < 0.5:
                found += self._say(
                    "auc",
                    f"step {step:,}: the validation AUC is {metrics.auc:.4f}, below that of guessing by more than "
                    f"chance (0.5 ± {_CHANCE * deviation:.4f}): what the model learned is reversed in the "
                    "validation rows; check that the label means the same in both, and how the rows were divided",
                )
        return found

    def _say(self, name: str, message: str) -> list[str]:
        if name in self._said:
            return []
        self._said[name] = message
        return [message]
