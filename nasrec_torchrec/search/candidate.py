"""An evaluated architecture, and how it is stored."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.finite import finite
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.config import CostName
from nasrec_torchrec.search.cost import Cost, Latency


@dataclass(frozen=True)
class Candidate:
    """An evaluated architecture.

    Args:
        architecture: the candidate.
        metrics: on the validation rows it has seen, with weights from the supernet.
        loss: log loss on all validation rows; of a stopped candidate it is estimated: the loss of the one it raced,
            and their mean difference on the rows that it has seen. Infinite when it is not a number.
        cost: of the interaction part.
        seconds: that the evaluation took.
        stopped: lost its race before it had seen all rows.
        latency: of the interaction part, where it was measured.
    """

    architecture: Architecture
    metrics: ClickMetrics
    loss: float
    cost: Cost
    seconds: float
    stopped: bool = False
    latency: Latency | None = None

    @property
    def failed(self) -> bool:
        """Whether its loss is not a number: it is recorded, and is never among the best."""
        return not math.isfinite(self.loss)

    def cost_of(self, name: CostName) -> float | None:
        """A cost by its name; None for a latency that was not measured."""
        if name == "latency_us":
            return None if self.latency is None else self.latency.median_us
        return getattr(self.cost, name)

    def to_record(self) -> dict[str, Any]:
        """JSON values from which :meth:`from_record` makes the candidate again."""
        latency = self.latency
        record = {
            "architecture": json.loads(self.architecture.to_json()),
            "metrics": asdict(self.metrics),
            "loss": self.loss,
            "multiply_adds": self.cost.multiply_adds,
            "parameters": self.cost.parameters,
            "activation_bytes": self.cost.activation_bytes,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "latency_us": None if latency is None else latency.median_us,
            "latency_iqr_us": None if latency is None else latency.iqr_us,
        }
        return finite(record)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Candidate":
        """Reads what :meth:`to_record` gave.

        Raises:
            ValueError: when it is no such record.
        """
        try:
            metrics = dict(record["metrics"])
            if metrics["log_loss"] is None:
                metrics["log_loss"] = math.inf
            costs = (record[name] for name in ("multiply_adds", "parameters", "activation_bytes"))
            latency = record["latency_us"], record["latency_iqr_us"]
            return cls(
                Architecture.from_json(json.dumps(record["architecture"])),
                ClickMetrics(**metrics),
                math.inf if record["loss"] is None else record["loss"],
                Cost(*costs),
                record["seconds"],
                record["stopped"],
                None if None in latency else Latency(*latency),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an evaluated candidate: {error!r}") from None
