"""The settings of a search; importable without torch."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

from nasrec_torchrec.search.cost_values import COST_NAMES, Cost, CostName, Latency

if TYPE_CHECKING:
    from nasrec_torchrec.search.candidate import Candidate

Precision = Literal["fp32", "bf16"]
# Candidates of a search on however few rows.
_FEWEST = 32
# Rows in a forward pass, unless memory is short. Their activations stay in the caches of a CPU.
MOST_ON_CPU, MOST_ON_GPU = 1024, 8192


@dataclass(frozen=True)
class EvaluationConfig:
    """How a candidate is evaluated. The defaults are the paper's for Criteo.

    Args:
        finetune_steps: number of steps for which the last layer is fine-tuned; 0 leaves it as it is in the supernet.
        finetune_batch_size: number of rows in a fine-tuning step.
        finetune_learning_rate: learning rate of Adagrad, which follows a cosine schedule.
        evaluation_rows: largest number of validation rows. All candidates see the same rows.
        chunk_size: number of rows in a forward pass; unset, up to 1,024 on a CPU and 8,192 on a GPU, as its memory
            allows.
        together: largest number of candidates in one pass over the rows. Blocks on which they agree are computed once.
        finetune_seed: seed of the fine-tuning rows and of the order of the validation rows. It is the same for every
            candidate.
        finetune_rows: largest number of distinct rows among those of all steps, which take turns. The features of these
            rows are computed once per candidate, which is what fine-tuning costs. If unset, every step has rows of its
            own, as in the paper.
        race_tolerance: standard error of a difference from the best one so far with which the loss of a candidate that
            is not better is known well enough, so that it sees no more rows. With 0 every candidate sees all rows, as
            in the paper. Candidates race only if nothing but the loss is minimized.
        race_confidence: confidence, such as 0.999, with which a candidate must be behind the best one so far to be
            stopped early, however well its loss is known. If unset, no candidate is stopped.
        latency_batch_size: number of rows in the batch whose latency is measured.
        cache_precision: precision of the cached embeddings; bf16 halves their memory.
        cache_memory: bytes of embeddings that a rank keeps in memory; further rows are mapped from a temporary file.
            Unset, a quarter of what is free when the search starts.
    """

    finetune_steps: int = 500
    finetune_batch_size: int = 512
    finetune_learning_rate: float = 0.04
    evaluation_rows: int = 150 * 8192
    chunk_size: int | None = None
    together: int = 8
    finetune_seed: int = 0
    finetune_rows: int | None = 65_536
    race_tolerance: float = 2e-4
    race_confidence: float | None = None
    latency_batch_size: int = 512
    cache_precision: Precision = "fp32"
    cache_memory: int | None = None

    def __post_init__(self) -> None:
        lowest = {"finetune_steps": 0, "finetune_batch_size": 1, "evaluation_rows": 1, "chunk_size": 1, "together": 1}
        for name, least in (lowest | {"latency_batch_size": 1, "cache_memory": 0}).items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, found {value}")
        if not 0 < self.finetune_learning_rate < math.inf:
            raise ValueError(f"finetune_learning_rate: expected a positive number, found {self.finetune_learning_rate}")
        if self.finetune_rows is not None and self.finetune_rows < 1:
            raise ValueError(f"finetune_rows: expected 1 or more, found {self.finetune_rows}")
        if self.race_confidence is not None and not 0.5 < self.race_confidence < 1:
            raise ValueError(f"race_confidence: expected a number between 0.5 and 1, found {self.race_confidence}")
        if not 0 <= self.race_tolerance < math.inf:
            raise ValueError(f"race_tolerance: expected 0 or a positive number, found {self.race_tolerance}")

    @property
    def pass_rows(self) -> int:
        """Number of rows in a forward pass, where it is not left to the machine."""
        return self.chunk_size or MOST_ON_CPU

    @property
    def races(self) -> bool:
        """Whether a candidate may be compared with the best one so far before it has seen all rows."""
        return self.race_tolerance > 0 or self.race_confidence is not None


@dataclass(frozen=True)
class EvolutionFlags:
    """How the search proceeds.

    Args:
        population: number of architectures that are sampled at random at the start, and the size of the population
            from then on. If unset, it follows from the validation rows.
        generations: number of generations of children. If unset, it follows from the validation rows.
        children: number of architectures per generation. They replace the oldest members of the population, or the
            worst if costs are traded off.
        tournament: number of members that are drawn for each generation; the best of them is the parent. If unset, half
            of the population. If costs are traded off, every child has two parents instead, each the better of two
            members.
        seed: seed of the whole search.
        asynchronous: whether a free worker draws its next children at once, from the candidates that are finished then,
            instead of waiting for the end of the generation. It keeps many workers busy; but what is drawn depends on
            who finishes first, so that only the log of a search can be repeated, not the search.
    """

    population: int | None = None
    generations: int | None = None
    children: int = 8
    tournament: int | None = None
    seed: int = 0
    asynchronous: bool = False

    def __post_init__(self) -> None:
        for name, least in {"population": 1, "generations": 0, "children": 1, "tournament": 1}.items():
            if (value := getattr(self, name)) is not None and value < least:
                raise ValueError(f"{name}: expected {least} or more, found {value}")
        if self.tournament and self.population and self.tournament > self.population:
            raise ValueError(
                f"tournament: expected at most the population of {self.population}, found {self.tournament}"
            )

    def fitted(self, rows: int) -> "EvolutionConfig":
        """Fills in what is unset, so that a search looks at no more candidates than its rows can tell apart.

        The losses of two candidates can be told apart if they differ by more than about 1/sqrt(rows). The best of more
        candidates is more and more the one that these rows favor by chance. So there are 2 sqrt(rows) of them, and the
        paper's 2,048 from a million rows on.

        Args:
            rows: number of validation rows that a candidate sees.
        """
        evaluations = min(EvolutionConfig().evaluations, max(_FEWEST, 2 * math.isqrt(rows)))
        usual = min(EvolutionConfig.population, max(_FEWEST // 4, evaluations // 8))
        population = self.population or max(self.tournament or 1, usual)
        generations = self.generations
        if generations is None:
            generations = max(0, evaluations - population) // self.children
        tournament = self.tournament or max(1, population // 2)
        return EvolutionConfig(population, generations, self.children, tournament, self.seed, self.asynchronous)

    def as_paper(self) -> "EvolutionConfig":
        """Fills in what is unset with the paper's settings."""
        return EvolutionConfig(**{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class EvolutionConfig(EvolutionFlags):
    """How the search proceeds. The defaults are the paper's, 2,048 evaluations.

    See :class:`EvolutionFlags` for the settings.
    """

    population: int = 128
    generations: int = 240
    tournament: int = 64

    def fitted(self, rows: int) -> "EvolutionConfig":
        """Returns it as it is, since nothing is unset."""
        return self

    @property
    def evaluations(self) -> int:
        return self.population + self.generations * self.children


@dataclass(frozen=True)
class Limits:
    """What a candidate may cost; None sets no limit.

    Args:
        max_flops: largest number of FLOPs per example in the interaction part; a multiply-add counts as two.
        max_parameters: largest number of parameters of the interaction part.
        max_activation_bytes: largest number of bytes per example that the forward pass computes.
        max_latency_us: largest latency of the fused interaction part for a batch, in microseconds, as measured on this
            machine.
        max_table_bytes: largest number of bytes of the embedding tables, in float32. Where their widths are a choice,
            what is drawn gets narrower tables until it fits.
    """

    max_flops: int | None = None
    max_parameters: int | None = None
    max_activation_bytes: int | None = None
    max_latency_us: float | None = None
    max_table_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, limit in asdict(self).items():
            if limit is not None and not 0 < limit < math.inf:
                raise ValueError(f"{name}: expected a positive number, found {limit}")

    def excess(self, cost: Cost, latency: Latency | None) -> dict[str, float]:
        """Returns the limits that are exceeded, with the exceeding values. A latency of None exceeds no limit."""
        found = {
            "max_flops": 2 * cost.multiply_adds,
            "max_parameters": cost.parameters,
            "max_activation_bytes": cost.activation_bytes,
            "max_latency_us": None if latency is None else latency.median_us,
            "max_table_bytes": cost.table_bytes,
        }
        limits = asdict(self)
        return {
            name: value for name, value in found.items() if value is not None and value > (limits[name] or math.inf)
        }

    def to_dict(self) -> dict[str, float | None]:
        """Returns the fields as JSON values; what is not used looks the same as in older versions."""
        return {name: value for name, value in asdict(self).items() if value or name != "max_table_bytes"}

    def allow(self, cost: Cost, latency: Latency | None) -> bool:
        """Returns whether the costs are within the limits."""
        return not self.excess(cost, latency)


@dataclass(frozen=True)
class Objective:
    """What a search minimizes; by default the validation log loss.

    Args:
        trade_off: costs to weigh against the loss, among multiply_adds, parameters, activation_bytes, table_bytes and
            latency_us. If there is one, the search looks for the whole Pareto front of loss and costs.
        latency_target_us: target in microseconds for a batch. If set, the search minimizes loss + latency_weight *
            (latency / target - 1).
        latency_weight: weight of this penalty.
    """

    trade_off: tuple[CostName, ...] = ()
    latency_target_us: float | None = None
    latency_weight: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "trade_off", tuple(self.trade_off))
        unknown = [name for name in self.trade_off if name not in COST_NAMES]
        if unknown or len(set(self.trade_off)) != len(self.trade_off):
            raise ValueError(f"trade_off: expected some of {list(COST_NAMES)}, each once, found {list(self.trade_off)}")
        if self.latency_target_us is not None and not 0 < self.latency_target_us < math.inf:
            raise ValueError(f"latency_target_us: expected a positive number, found {self.latency_target_us}")
        if not 0 <= self.latency_weight < math.inf:
            raise ValueError(f"latency_weight: expected 0 or a positive number, found {self.latency_weight}")
        if self.latency_target_us is not None and self.trade_off:
            raise ValueError("latency_target_us: is a penalty on the loss alone, and does not go with trade_off")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the values to minimize."""
        return ("log_loss" if self.latency_target_us is None else "penalized_log_loss", *self.trade_off)

    @property
    def needs_latency(self) -> bool:
        return self.latency_target_us is not None or "latency_us" in self.trade_off

    def values(self, candidate: "Candidate") -> tuple[float, ...]:
        """Returns the values to minimize, in the order of :attr:`names`."""
        loss = candidate.loss
        if self.latency_target_us is not None:
            assert candidate.latency is not None
            loss += self.latency_weight * (candidate.latency.median_us / self.latency_target_us - 1)
        costs = [candidate.cost_of(name) for name in self.trade_off]
        return (loss, *(cost for cost in costs if cost is not None))
