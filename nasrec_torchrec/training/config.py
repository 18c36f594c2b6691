"""How a model is trained."""

import math
import re
from dataclasses import asdict, dataclass
from typing import Any, Literal

from nasrec_torchrec.distributed.config import QuantizedComms
from nasrec_torchrec.search_space import Strategy

# Settings that may differ between a run and its continuation.
_FREE = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "resume", "background_reader", "max_skipped_steps"),
    *("sharding_type", "pipeline", "quantized_comms", "profile"),
)
Monitor = Literal["log_loss", "auc"]
TrainPrecision = Literal["fp32", "bf16"]
_RANGE = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's recipe for a supernet on Criteo.

    Args:
        epochs: passes over the training split, at most.
        batch_size: rows of a global batch, over all ranks.
        learning_rate: of the dense part and the tables at the end of the warm-up.
        min_learning_rate: where the schedule starts and ends.
        warmup_fraction: share of the steps that warm up linearly.
        schedule: of the learning rate after the warm-up: ``cosine`` falls over all steps; ``plateau`` stays, is divided
            by ten whenever ``patience`` epochs in a row did not improve on the best, and ends the run the third time.
        patience: epochs.
        monitor: what decides which epoch is the best, on the validation split.
        optimizer: ``adagrad`` is fused into the tables' backward and updates the rows that were looked up. ``adam``
            updates whole tables, which every rank then holds whole: for tables of some thousand rows.
        embedding_l2: this times half of the sum of squares of all embeddings is added to the loss; with adam alone.
        embedding_std: deviation of the tables' initial weights; unset, that of Xavier's rule.
        dropout: share of the outputs of dense operators, or of a baseline's hidden layers, that a training step drops;
            not for a supernet.
        adagrad_eps: added to Adagrad's denominator.
        gradient_clip: largest norm of the dense part's gradient; the tables update in backward, unclipped.
        seed: of the initial weights, the order of the rows and the sampled paths.
        strategy: how a supernet draws its path.
        full_path_steps: steps over which the chance of a supernet's full path decays from 1 to 0.
        precision: of the dense part; ``bf16`` runs it under autocast, weights and tables stay float32.
        compile: the dense part with torch.compile; not for a supernet, whose paths change from step to step.
        sharding_type: of all tables; unset, the planner chooses.
        pipeline: ``sparse_dist`` sends the ids of the next batch while this one is computed, ``base`` does not.
        quantized_comms: sends embeddings and their gradients between ranks in 16 bits; for CUDA.
        log_every: steps between two log lines.
        checkpoint_every: steps between two checkpoints, which are also written after every epoch.
        keep_checkpoints: how many of the last ones stay, beside the best.
        resume: ``auto`` goes on from the run folder's newest checkpoint if there is one, ``never`` starts anew.
        profile: ``first:last``, steps that every rank profiles; traces and tables go to the run folder's ``profile/``.
        max_skipped_steps: a step with a non-finite loss or gradient changes nothing; after so many in a row the run
            ends with an error.
        background_reader: read in a process beside each rank; unset, on CUDA alone. On the CPU reading takes under a
            hundredth of a step, and the process a core.
    """

    epochs: int = 1
    batch_size: int = 512
    learning_rate: float = 0.12
    min_learning_rate: float = 1e-8
    warmup_fraction: float = 0.1
    schedule: Literal["cosine", "plateau"] = "cosine"
    patience: int = 2
    monitor: Monitor = "log_loss"
    optimizer: Literal["adagrad", "adam"] = "adagrad"
    embedding_l2: float = 0.0
    embedding_std: float | None = None
    dropout: float = 0.0
    adagrad_eps: float = 1e-2
    gradient_clip: float = 5.0
    seed: int = 0
    strategy: Strategy = "single_operator_any_connection"
    full_path_steps: int = 15_000
    precision: TrainPrecision = "fp32"
    compile: bool = False
    sharding_type: str | None = None
    pipeline: Literal["sparse_dist", "base"] = "sparse_dist"
    quantized_comms: QuantizedComms = "none"
    log_every: int = 20
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2
    resume: Literal["auto", "never"] = "auto"
    profile: str | None = None
    max_skipped_steps: int = 10
    background_reader: bool | None = None

    def __post_init__(self) -> None:
        for name in (
            *("epochs", "batch_size", "learning_rate", "adagrad_eps", "log_every"),
            *("checkpoint_every", "keep_checkpoints", "max_skipped_steps", "patience"),
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")
        if not self.gradient_clip > 0:
            raise ValueError(
                f"gradient_clip: expected a positive number (inf clips nothing), found {self.gradient_clip}"
            )
        for name in ("min_learning_rate", "embedding_l2", "embedding_std", "full_path_steps"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected 0 or a positive number, found {value}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction: expected 0..1, found {self.warmup_fraction}")
        if self.profile is not None:
            parse_steps(self.profile)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and less than 1, found {self.dropout}")
        if self.embedding_l2 and self.optimizer != "adam":
            raise ValueError(
                f"embedding_l2: expected a positive number with optimizer adam, or 0, found {self.embedding_l2} with "
                f"{self.optimizer}, which updates looked-up rows alone"
            )


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """What a continued run must share with its beginning."""
    return {name: value for name, value in asdict(config).items() if name not in _FREE}


def parse_steps(text: str) -> range:
    """``first:last`` as the steps from first to last.

    Raises:
        ValueError: for anything else.
    """
    match = _RANGE.fullmatch(text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or not steps[0]:
        raise ValueError(f"profile: expected first:last, two steps from 1 on, such as 10:15, found {text!r}")
    return steps
