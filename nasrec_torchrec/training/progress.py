"""How far a training run has progressed, and the metrics that were measured on the validation split so far."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nasrec_torchrec.finite import order
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.metrics.several_labels import restored_metrics
from nasrec_torchrec.training.config import Monitor

_BLOCKS = "block_losses"


@dataclass
class Progress:
    """The position of a run.

    Args:
        total_steps: number of steps of the whole run, which determines the schedule.
        step: number of completed steps.
        skipped_steps: number of steps among them that changed nothing because a value was not finite.
        validations: metrics and step of every measurement of the validation split.
        best: the best of these measurements with the losses of its blocks of rows, or None.
        warnings: what went wrong, by name.
    """

    total_steps: int = 0
    step: int = 0
    skipped_steps: int = 0
    validations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    warnings: dict[str, str] = field(default_factory=dict, compare=False)

    def record(self, metrics: ClickMetrics, monitor: Monitor, blocks: Sequence[float] = ()) -> bool:
        """Records a measurement after the current step.

        Args:
            metrics: metrics of the validation split.
            monitor: name of the metric that decides.
            blocks: log losses of consecutive blocks of rows, which are kept of the best measurement alone.

        Returns:
            bool: Whether the measurement is the best so far. One whose metric is not finite is never better than
                another. Without an AUC the log loss decides.
        """
        measured = asdict(metrics) | {"step": self.step}
        self.validations.append(measured)
        best = self.best is None or _rank(measured, monitor) < _rank(self.best, monitor)
        if best:
            self.best = measured | {_BLOCKS: list(blocks)}
        return best

    @property
    def best_metrics(self) -> ClickMetrics | None:
        """Metrics of the best measurement."""
        return None if self.best is None else restored_metrics(self.best)

    def kept(self, epochs: int) -> dict[str, int]:
        """Returns the epoch of the best measurement, and the number of epochs and steps that it may be compared with.

        Args:
            epochs: number of epochs of the whole run.
        """
        assert self.best is not None, "nothing was measured"
        step = self.best["step"]
        epoch = math.ceil(step * epochs / self.total_steps)
        return {"epoch": epoch, "epochs": epochs, "step": step, "steps": self.total_steps}

    @property
    def best_blocks(self) -> tuple[float, ...]:
        """Log losses of consecutive blocks of validation rows at the best measurement; empty if there are none."""
        # Older versions did not store them.
        return () if self.best is None else tuple(self.best.get(_BLOCKS, ()))

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total_steps, self.step = state["total_steps"], state["step"]
        self.skipped_steps, self.best = state["skipped_steps"], _restored(state["best"])
        # Older versions stored neither the validations nor the warnings.
        self.validations = [_restored(measured) for measured in state.get("validations", [])]
        self.warnings = dict(state.get("warnings", {}))


def _rank(measured: dict[str, Any], monitor: Monitor) -> tuple[tuple[bool, float], ...]:
    """Returns the sort key of a measurement; the lowest is the best."""
    log_loss, auc = measured["log_loss"], measured["auc"]
    match monitor:
        case "auc":
            return order(None if auc is None else -auc), order(log_loss)
        case "centered_log_loss":
            return order(measured.get(monitor)), order(log_loss)
    return (order(log_loss),)


def _restored(measured: Any) -> Any:
    """Replaces infinity, which JSON cannot express."""
    if measured is None:
        return None
    if measured["log_loss"] is None:
        measured = measured | {"log_loss": math.inf}
    if "tasks" in measured:
        measured = measured | {"tasks": {name: _restored(one) for name, one in measured["tasks"].items()}}
    return measured
