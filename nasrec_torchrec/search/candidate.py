"""An evaluated architecture, and how it is stored."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.finite import finite
from nasrec_torchrec.metrics.click_metrics import ClickMetrics
from nasrec_torchrec.search.cost_values import Cost, CostName, Latency


@dataclass(frozen=True)
class Candidate:
    """An evaluated architecture.

    Args:
        architecture: the candidate.
        metrics: metrics on the validation rows that it has seen, with weights from the supernet.
        loss: log loss on all validation rows. For a candidate that has not seen all of them it is an estimate, the loss
            of its rival plus their mean difference on the rows that it has seen. It is infinite if it is not a number.
        cost: cost of the interaction part.
        seconds: duration of the evaluation.
        stopped: whether the candidate lost its race before it had seen all rows.
        latency: latency of the interaction part, if it was measured.
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
        """Whether its loss is not a number. Such a candidate is recorded but is never among the best."""
        return not math.isfinite(self.loss)

    def cost_of(self, name: CostName) -> float | None:
        """Returns a cost by its name; None for a latency that was not measured, or tables that are not known."""
        if name == "latency_us":
            return None if self.latency is None else self.latency.median_us
        return getattr(self.cost, name)

    def to_record(self) -> dict[str, Any]:
        """Returns JSON values from which :meth:`from_record` restores the candidate."""
        latency = self.latency
        record = {
            "architecture": json.loads(self.architecture.to_json()),
            "metrics": asdict(self.metrics),
            "loss": self.loss,
            "multiply_adds": self.cost.multiply_adds,
            "parameters": self.cost.parameters,
            "activation_bytes": self.cost.activation_bytes,
            "table_bytes": self.cost.table_bytes,
            "seconds": self.seconds,
            "stopped": self.stopped,
            "latency_us": None if latency is None else latency.median_us,
            "latency_iqr_us": None if latency is None else latency.iqr_us,
        }
        return finite(record)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Candidate":
        """Restores a candidate from what :meth:`to_record` returned.

        Raises:
            ValueError: If the values are not such a record.
        """
        try:
            metrics = dict(record["metrics"])
            if metrics["log_loss"] is None:
                metrics["log_loss"] = math.inf
            counts = {name: record[name] for name in ("multiply_adds", "parameters", "activation_bytes")}
            latency = record["latency_us"], record["latency_iqr_us"]
            return cls(
                Architecture.from_json(json.dumps(record["architecture"])),
                ClickMetrics(**metrics),
                math.inf if record["loss"] is None else record["loss"],
                Cost(**counts, table_bytes=record.get("table_bytes")),  # older versions did not count it
                record["seconds"],
                record["stopped"],
                None if None in latency else Latency(*latency),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not an evaluated candidate: {error!r}") from None
