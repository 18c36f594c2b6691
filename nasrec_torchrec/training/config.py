"""How a model is trained."""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from nasrec_torchrec.distributed.config import QuantizedComms, TableMemory, TableOptimizer
from nasrec_torchrec.search_space import Strategy

# Settings that may change when a run is resumed.
_FREE = (
    *("log_every", "checkpoint_every", "keep_checkpoints", "resume", "background_reader", "max_skipped_steps"),
    *("sharding_type", "table_memory", "pipeline", "quantized_comms", "profile", "accumulate", "cuda_graphs"),
    *("sharding_group_size", "table_sync_every"),
)
_LATER: dict[str, Any] = {
    **{"ema_decay": None, "freeze": None, "replicate_mib": 0.0},
    **dict.fromkeys(("table_optimizers", "table_learning_rates", "table_weight_decay")),
}
# What stands for all tables that are not named.
ALL_TABLES = "*"
FrozenPart = Literal["tables", "interaction"]
Monitor = Literal["log_loss", "centered_log_loss", "auc"]
Optimizer = Literal["adagrad", "adam"]
RecipeName = Literal["fitted", "paper"]
TrainPrecision = Literal["fp32", "tf32", "bf16"]
_RANGE = re.compile(r"(\d+):(\d+)")


@dataclass(frozen=True)
class TrainFlags:
    """How a model is trained. What is unset follows from the data, see :mod:`~nasrec_torchrec.training.recipes`.

    Args:
        epochs: largest number of passes over the training split. If unset, it follows from the rows.
        batch_size: number of rows in a global batch, summed over all ranks. If unset, it follows from the rows.
        learning_rate: learning rate of the dense part and the tables at the end of the warm-up. If unset, it follows
            from the optimizer.
        min_learning_rate: learning rate at which the schedule starts and ends.
        warmup_fraction: fraction of the steps during which the learning rate warms up linearly.
        schedule: course of the learning rate after the warm-up. ``cosine`` lowers it over all remaining steps.
            ``plateau`` keeps it constant, divides it by ten whenever ``patience`` epochs in a row have not improved on
            the best one, and ends the run instead of dividing it a third time.
        patience: number of epochs without improvement after which ``plateau`` acts.
        monitor: metric on the validation split that decides which epoch is the best. ``centered_log_loss`` is the log
            loss after a constant is added to all logits so that their mean probability is the click rate. It suits
            validation rows whose click rate differs from that of the training rows: otherwise an epoch whose
            predictions happen to be too low or too high in all may seem the best. If unset, it is used where these
            rates differ by more than chance explains, and ``log_loss`` elsewhere.
        optimizer: ``adagrad`` is fused into the backward pass of the tables and updates only the rows that were looked
            up. ``adam`` updates whole tables and keeps a full copy on every rank, which suits tables of a few thousand
            rows. If unset, it follows from the size of the tables.
        table_optimizers: optimizers of tables by name, such as ``t_user=rowwise_adagrad``; ``*`` names all others.
            Where it is given, every table is updated in the backward pass by a kernel of FBGEMM, and sharded, whatever
            the optimizer of the dense part; a table without an entry takes the optimizer of the dense part. On the CPU
            there are ``sgd``, ``adagrad`` and ``rowwise_adagrad``; the others are for CUDA.
        table_learning_rates: learning rates of tables at the end of the warm-up, by name, such as ``t_user=0.02``;
            ``*`` names all others. A table without an entry takes ``learning_rate``, whose course all of them follow.
        table_weight_decay: weight decay of tables by name, such as ``t_user=1e-5``, on the rows that a step looks up;
            ``*`` names all others. It is for CUDA and for the optimizers ``rowwise_adagrad``, to whose gradient it is
            added, ``adam``, ``rowwise_adam``, ``lamb`` and ``rowwise_lamb``.
        embedding_l2: strength of the L2 penalty; this value times half the sum of squares of all embeddings is added to
            the loss. Requires ``adam``. If unset, it follows from the optimizer.
        embedding_std: standard deviation of the tables' initial weights. If unset, Xavier initialization determines it.
        dropout: fraction of the outputs of dense operators, or of a baseline's hidden layers, that a training step
            drops. Not available for a supernet.
        adagrad_eps: constant that is added to Adagrad's denominator.
        gradient_clip: largest norm of the dense part's gradient. The tables are updated during the backward pass,
            unclipped.
        ema_decay: decay of an exponential moving average of the dense part's weights, such as 0.999, which averages
            about the last 1,000 steps. Validation, the choice of the best epoch, checkpoints and exports take the
            average in place of the weights, with which training continues. The tables, which change where rows are
            looked up, are not averaged. If unset, nothing is averaged. Not available for a supernet.
        freeze: part of the model that keeps the weights of the earlier run that the training begins with: the embedding
            ``tables``, or the ``interaction`` part, which is everything above them. The other part is trained. A part
            with anything new in it is refused, except for rows of tables, which keep their initial weights.
        seed: seed of the initial weights, the order of the rows and the sampled paths.
        strategy: how a supernet samples its path.
        full_path_steps: number of steps over which the probability of a supernet's full path decays from 1 to 0. If
            unset, 15,000 steps or a quarter of the run's steps, whichever is less.
        accumulate: number of micro-batches into which a step divides the rows of each rank, to need less memory. The
            dense part computes one after the other and sums their gradients; the weights are updated once, and so are
            the tables: they are looked up, and updated in the backward pass, for the whole batch at once. The step is
            that of the whole batch but for rounding and the masks of dropout, so ``batch_size``, the learning rate and
            the number of steps mean what they mean without it.
        precision: precision of the dense part. ``bf16`` runs it under autocast; weights and tables stay in float32.
            ``tf32`` rounds the factors of matrix products on a GPU. Either is worth it for large batches only.
        compile: whether to compile the dense part with torch.compile. Not available for a supernet, whose path changes
            from step to step.
        cuda_graphs: whether training steps on a GPU launch all kernels of the dense part at once, as CUDA graphs, which
            takes a half to a third of the time where launching them takes longer than running them: up to some thousand
            rows. The first step captures them, and evaluation and batches of another size do without. Requires one rank
            and no ``accumulate``; not available for a supernet. If unset, they are used where they are possible.
        sharding_type: sharding type of all tables. If unset, the planner chooses.
        table_memory: where tables may be on CUDA. ``device`` is the memory of the GPUs; ``host`` is that of their
            hosts, from which rows are read as they are needed (FBGEMM's UVM); ``host_cached`` also keeps the rows that
            are used most on the GPU; ``auto`` lets the planner choose among these. On the CPU there is one memory.
        replicate_mib: size in MiB up to which a table is held whole by every rank (``data_parallel``), which saves
            sending its ids and embeddings and costs an all-reduce of its gradient. Such tables are updated by a dense
            Adagrad, which gives the same weights as the fused one of the others; 0 shards all tables. Requires
            ``adagrad``.
        pipeline: ``sparse_dist`` sends the ids of the next batch while the current one is computed; ``base`` does not.
        quantized_comms: whether to send embeddings and their gradients between ranks in 16 bits. Requires CUDA.
        sharding_group_size: number of ranks that share a copy of the tables. Of several copies, each is sharded over
            its own ranks and learns from their rows (TorchRec's ``DMPCollection``, 2D parallelism), which sends less
            between the ranks of a large cluster. It must divide the number of ranks. Requires CUDA, tables in the
            memory of the GPUs, and ``adagrad`` or ``rowwise_adagrad`` for them. If unset, all ranks share one copy.
        table_sync_every: number of steps after which the copies of the tables are averaged. They also are before every
            evaluation and checkpoint.
        log_every: number of steps between two log lines.
        checkpoint_every: number of steps between two checkpoints. A checkpoint is also written after every epoch.
        keep_checkpoints: number of most recent checkpoints to keep, in addition to the best one. A finished run that
            has a best one keeps that alone.
        resume: ``auto`` resumes from the newest checkpoint in the run folder if there is one; ``never`` starts from
            scratch.
        profile: range of steps, ``first:last``, that every rank profiles. Traces and tables are written to ``profile/``
            in the run folder.
        max_skipped_steps: number of skipped steps in a row after which the run ends with an error. A step is skipped,
            and changes nothing, if its loss or gradient is not finite.
        background_reader: whether to read batches in a separate process beside each rank. If unset, only with CUDA: on
            the CPU, reading takes less than a hundredth of a step, and the process would occupy a core.
    """

    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    min_learning_rate: float = 1e-8
    warmup_fraction: float = 0.1
    schedule: Literal["cosine", "plateau"] = "cosine"
    patience: int = 2
    monitor: Monitor | None = None
    optimizer: Optimizer | None = None
    table_optimizers: dict[str, str] | None = None
    table_learning_rates: dict[str, float] | None = None
    table_weight_decay: dict[str, float] | None = None
    embedding_l2: float | None = None
    embedding_std: float | None = None
    dropout: float = 0.0
    adagrad_eps: float = 1e-2
    gradient_clip: float = 5.0
    ema_decay: float | None = None
    freeze: FrozenPart | None = None
    seed: int = 0
    strategy: Strategy = "single_operator_any_connection"
    full_path_steps: int | None = None
    accumulate: int = 1
    precision: TrainPrecision = "fp32"
    compile: bool = False
    cuda_graphs: bool | None = None
    sharding_type: str | None = None
    table_memory: TableMemory = "device"
    replicate_mib: float = 0.0
    pipeline: Literal["sparse_dist", "base"] = "sparse_dist"
    quantized_comms: QuantizedComms = "none"
    sharding_group_size: int | None = None
    table_sync_every: int = 10
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
            *("checkpoint_every", "keep_checkpoints", "max_skipped_steps", "patience", "accumulate"),
            *("sharding_group_size", "table_sync_every"),
        ):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name}: expected a positive number, found {value}")
        if not self.gradient_clip > 0:
            raise ValueError(
                f"gradient_clip: expected a positive number (inf clips nothing), found {self.gradient_clip}"
            )
        for name in ("min_learning_rate", "embedding_l2", "embedding_std", "full_path_steps", "replicate_mib"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected 0 or a positive number, found {value}")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay: expected more than 0 and less than 1, found {self.ema_decay}")
        if self.freeze not in (None, "tables", "interaction"):
            raise ValueError(f"freeze: expected tables or interaction, found {self.freeze!r}")
        if self.ema_decay is not None and self.freeze == "interaction":
            raise ValueError("ema_decay: expected none with freeze interaction, whose weights do not change")
        if self.cuda_graphs and self.accumulate > 1:
            raise ValueError(
                f"cuda_graphs: expected accumulate 1, found {self.accumulate}: a graph writes the gradients of "
                "every part into the same memory"
            )
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction: expected 0..1, found {self.warmup_fraction}")
        if self.profile is not None:
            parse_steps(self.profile)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: expected 0 or more and less than 1, found {self.dropout}")
        if self.replicate_mib and self.optimizer == "adam":
            raise ValueError(
                f"replicate_mib: expected 0 with optimizer adam, with which every rank holds all tables, found "
                f"{self.replicate_mib:g}"
            )
        self._check_tables()
        if self.embedding_l2 and (self.optimizer == "adagrad" or self.table_optimizers):
            updating = self.optimizer if self.optimizer == "adagrad" else "table_optimizers"
            raise ValueError(
                f"embedding_l2: expected a positive number with optimizer adam, or 0, found {self.embedding_l2} with "
                f"{updating}, which updates looked-up rows alone"
            )

    @property
    def whole_tables(self) -> bool:
        """Whether the optimizer of the dense part updates the tables too, of which every rank then holds all."""
        return self.optimizer == "adam" and not self.table_optimizers

    def _check_tables(self) -> None:
        """Checks what is set for single tables, as far as that goes without knowing them."""
        given: dict[str, Mapping[str, Any]] = {
            "table_optimizers": self.table_optimizers or {},
            "table_learning_rates": self.table_learning_rates or {},
            "table_weight_decay": self.table_weight_decay or {},
        }
        for table, optimizer in given["table_optimizers"].items():
            if optimizer not in get_args(TableOptimizer):
                found = ", ".join(get_args(TableOptimizer))
                raise ValueError(f"table_optimizers: {table}: expected one of {found}, found {optimizer!r}")
        for table, rate in given["table_learning_rates"].items():
            if not 0 < rate < math.inf:
                raise ValueError(f"table_learning_rates: {table}: expected a positive number, found {rate}")
        for table, decay in given["table_weight_decay"].items():
            if not 0 <= decay < math.inf:
                raise ValueError(f"table_weight_decay: {table}: expected 0 or a positive number, found {decay}")
        for name, values in given.items():
            if values and self.replicate_mib:
                raise ValueError(
                    f"replicate_mib: expected 0 with {name}, found {self.replicate_mib:g}: a table that every rank "
                    "holds whole has no optimizer of its own"
                )
            if values and self.whole_tables:
                raise ValueError(
                    f"{name}: expected none with optimizer adam, which updates all tables with the dense part; "
                    "table_optimizers, or optimizer adagrad, gives tables optimizers of their own"
                )


@dataclass(frozen=True)
class TrainConfig(TrainFlags):
    """How a model is trained. The defaults are the paper's recipe for a supernet on Criteo.

    See :class:`TrainFlags` for the settings.
    """

    epochs: int = 1
    batch_size: int = 512
    learning_rate: float = 0.12
    monitor: Monitor = "log_loss"
    optimizer: Optimizer = "adagrad"
    embedding_l2: float = 0.0
    full_path_steps: int = 15_000


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that a resumed run must share with its beginning."""
    settings = {name: value for name, value in asdict(config).items() if name not in _FREE}
    # What earlier versions did not have, and runs of theirs did not use.
    return {name: value for name, value in settings.items() if name not in _LATER or value != _LATER[name]}


def parse_steps(text: str) -> range:
    """Parses ``first:last`` into the range of steps from first to last, both included.

    Raises:
        ValueError: If the text has any other form.
    """
    match = _RANGE.fullmatch(text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or not steps[0]:
        raise ValueError(f"profile: expected first:last, two steps from 1 on, such as 10:15, found {text!r}")
    return steps
