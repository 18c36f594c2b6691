"""What an architecture costs, as values; importable without torch."""

from dataclasses import dataclass, field
from typing import Literal, get_args

CostName = Literal["multiply_adds", "parameters", "activation_bytes", "table_bytes", "latency_us"]
COST_NAMES: tuple[CostName, ...] = get_args(CostName)


@dataclass(frozen=True)
class Cost:
    """Cost of the interaction part, and the size of the embedding tables, which cost look-ups, not multiply-adds.

    Args:
        multiply_adds: per example, in matrix products, those of attention included. Half of PyTorch's FLOP count.
        parameters: number of parameters of the interaction part.
        activation_bytes: per example, of everything that the forward pass computes (views are free), in float32.
        table_bytes: of the weights of all embedding tables, in float32; None if the tables are not known.
        by_module: ``(multiply-adds, parameters)`` of every module, by its path.
    """

    multiply_adds: int
    parameters: int
    activation_bytes: int
    table_bytes: int | None = None
    by_module: dict[str, tuple[int, int]] = field(default_factory=dict, compare=False, repr=False)


@dataclass(frozen=True)
class Latency:
    """How long a forward pass of the interaction part took.

    Args:
        median_us: microseconds for a batch.
        iqr_us: between the first and the third quarter of the measurements.
    """

    median_us: float
    iqr_us: float
