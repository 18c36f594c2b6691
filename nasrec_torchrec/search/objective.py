"""What a search minimizes: the loss, the loss with a penalty for latency, or the loss and costs at once."""

from dataclasses import dataclass

from nasrec_torchrec.search.cost import COST_NAMES, CostName
from nasrec_torchrec.search.evaluator import Candidate


@dataclass(frozen=True)
class Objective:
    """What a search minimizes; by default the validation log loss.

    Args:
        trade_off: costs to weigh against the loss: multiply_adds, parameters, activation_bytes, latency_us. With any
            of them the search looks for the whole front of architectures that no other beats in everything.
        latency_target_us: instead minimize loss + latency_weight * (latency / target - 1), microseconds for a batch.
        latency_weight: of that penalty.
    """

    trade_off: tuple[CostName, ...] = ()
    latency_target_us: float | None = None
    latency_weight: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "trade_off", tuple(self.trade_off))
        unknown = [name for name in self.trade_off if name not in COST_NAMES]
        if unknown or len(set(self.trade_off)) != len(self.trade_off):
            raise ValueError(f"trade_off: expected some of {list(COST_NAMES)}, each once, found {list(self.trade_off)}")
        if self.latency_target_us is not None and not self.latency_target_us > 0:
            raise ValueError(f"latency_target_us: expected a positive number, found {self.latency_target_us}")
        if self.latency_target_us is not None and self.trade_off:
            raise ValueError("latency_target_us: is a penalty on the loss alone, and does not go with trade_off")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the values to minimize."""
        return ("log_loss" if self.latency_target_us is None else "penalized_log_loss", *self.trade_off)

    @property
    def needs_latency(self) -> bool:
        return self.latency_target_us is not None or "latency_us" in self.trade_off

    def values(self, candidate: Candidate) -> tuple[float, ...]:
        """What to minimize, by :attr:`names`."""
        loss = candidate.loss
        if self.latency_target_us is not None:
            assert candidate.latency_us is not None
            loss += self.latency_weight * (candidate.latency_us / self.latency_target_us - 1)
        return (loss, *(getattr(candidate, name) for name in self.trade_off))
