"""The training loop, the same for NASRecNet, SuperNet and TorchRec's DLRM."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.train_pipeline import TrainPipelineSparseDist
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader
from nasrec_torchrec.distributed.checkpoint import load_checkpoint, save_checkpoint
from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.files import write_text
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.search_space import Strategy
from nasrec_torchrec.training.log import RunLog
from nasrec_torchrec.training.metrics import ClickMetrics, click_metrics, gather_rows, windowed_metrics
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad
from nasrec_torchrec.training.schedules import cosine_with_warmup, full_path_probability


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. The defaults are the paper's recipe for a supernet on Criteo.

    Args:
        epochs: passes over the training split.
        batch_size: rows of a global batch, over all ranks.
        learning_rate: of the dense part and the tables at the end of the warm-up.
        min_learning_rate: where the schedule starts and ends.
        warmup_fraction: share of the steps that warm up linearly; a cosine follows.
        adagrad_eps: added to Adagrad's denominator.
        gradient_clip: largest norm of the dense part's gradient; the tables update in backward, unclipped.
        seed: of the initial weights, the order of the rows and the sampled paths.
        strategy: how a supernet draws its path.
        full_path_steps: steps over which the chance of a supernet's full path decays from 1 to 0.
        sharding_type: of all tables; unset, the planner chooses.
        log_every: steps between two log lines.
        background_reader: read in a process beside each rank; unset, on CUDA alone. On the CPU reading takes under a
            hundredth of a step, and the process a core.
    """

    epochs: int = 1
    batch_size: int = 512
    learning_rate: float = 0.12
    min_learning_rate: float = 1e-8
    warmup_fraction: float = 0.1
    adagrad_eps: float = 1e-2
    gradient_clip: float = 5.0
    seed: int = 0
    strategy: Strategy = "single_operator_any_connection"
    full_path_steps: int = 15_000
    sharding_type: str | None = None
    log_every: int = 20
    background_reader: bool | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate", "adagrad_eps", "gradient_clip", "log_every"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a positive number, found {getattr(self, name)}")
        if not 0 <= self.warmup_fraction <= 1:
            raise ValueError(f"warmup_fraction: expected 0..1, found {self.warmup_fraction}")


class Trainer:
    """Trains one model over the current process group.

    Args:
        description: the model to build.
        config: how to train it.
        run_dir: receives the log, the checkpoint and the metrics.
        device: this rank's device.
    """

    def __init__(self, description: ModelDescription, config: TrainConfig, run_dir: Path, device: torch.device) -> None:
        self.description = description
        self.config = config
        self.run_dir = run_dir
        self.device = device
        self.step = 0
        self.gradient_norm = torch.tensor(0.0)
        self.bytes_reduced = 0
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        # On the CPU the weights start alike whatever the number of ranks. On CUDA, where the tables may not fit into
        # one host's memory, each rank initialises its own shards.
        torch.manual_seed(config.seed if device.type == "cpu" else config.seed + self.rank)
        self.model = description.build(torch.device("cpu" if device.type == "cpu" else "meta"))
        optimizer_options = {"lr": config.learning_rate, "eps": config.adagrad_eps}
        tables = self.model.sparse_arch.embedding_bag_collection.parameters()
        apply_optimizer_in_backward(torch.optim.Adagrad, tables, optimizer_options)
        self.dmp = parallelize(DLRMTrain(self.model), device, config.sharding_type)
        dense = dict(in_backward_optimizer_filter(self.dmp.named_parameters()))
        self._dense = list(dense.values())
        self.dense_optimizer = KeyedOptimizerWrapper(dense, self._make_dense_optimizer)
        self.optimizer = CombinedOptimizer([self.dmp.fused_optimizer, self.dense_optimizer])
        # Every rank draws the same paths.
        self._paths = torch.Generator().manual_seed(config.seed)

    def train(self, data: ClickFiles, validation: ClickFiles | None = None) -> ClickMetrics | None:
        """Trains for the configured epochs and leaves a checkpoint.

        With a validation split the model is evaluated after every epoch, and the epoch of the lowest validation log
        loss is kept and restored; a supernet is kept as it ends.

        Returns:
            ClickMetrics | None: on the validation split, of the kept model.
        """
        config = self.config
        cuda = self.device.type == "cuda"
        reader = TrainingReader(
            data,
            config.batch_size,
            config.seed,
            self.rank,
            self.world_size,
            background=cuda if config.background_reader is None else config.background_reader,
            pin_memory=cuda,
        )
        if self.rank == 0:
            write_text(self.run_dir / "config.json", json.dumps(asdict(config), indent=2))
        total_steps = config.epochs * reader.steps_per_epoch
        best: tuple[ClickMetrics, Path] | None = None
        with RunLog(self.run_dir, total_steps, self.run_dir.name) as log:
            for _ in range(config.epochs):
                self._train_epoch(iter(reader), total_steps, log)
                if validation is None:
                    continue
                metrics = self.evaluate(validation)
                log.write("validation", self.step, **asdict(metrics))
                if best is None or metrics.log_loss < best[0].log_loss:
                    best = metrics, self._save()
        if best is None:
            self._save()
            return None
        if not best[1].name.endswith(f"{self.step:08d}"):
            load_checkpoint(best[1], self.dmp, self.optimizer)
        return best[0]

    def _save(self) -> Path:
        return save_checkpoint(self.run_dir, self.step, self.description, self.dmp, self.optimizer)

    def _train_epoch(self, batches: Iterator[Batch], total_steps: int, log: RunLog) -> None:
        config = self.config
        windowed = windowed_metrics(config.batch_size // self.world_size, self.device)
        pipeline = TrainPipelineSparseDist(self.dmp, self.optimizer, self.device, execute_all_batches=True)
        self.dmp.train()
        logged_at = time.monotonic()
        logged_step = self.step
        while True:
            self._prepare_step(total_steps)
            try:
                loss, logits, labels = pipeline.progress(batches)
            except StopIteration:
                break
            self.step += 1
            log.advance()
            probabilities = logits.sigmoid()
            model_out = {"prediction": probabilities, "label": labels, "weight": torch.ones_like(labels)}
            windowed.update(model_out)
            if self.step % config.log_every == 0:
                mean_loss = loss.clone()
                dist.all_reduce(mean_loss)
                mean_loss /= self.world_size
                if not math.isfinite(float(mean_loss)):
                    raise RuntimeError(
                        f"step {self.step}: the loss is {float(mean_loss)}; a lower learning_rate may help"
                    )
                now = time.monotonic()
                rows = (self.step - logged_step) * config.batch_size
                log.write(
                    "train",
                    self.step,
                    loss=float(mean_loss),
                    learning_rate=self._learning_rate(total_steps),
                    gradient_norm=float(self.gradient_norm),
                    samples_per_second=rows / (now - logged_at),
                    **_window_values(windowed.compute()),
                )
                logged_at, logged_step = now, self.step
        pipeline.detach()

    @torch.no_grad()
    def evaluate(self, data: ClickFiles) -> ClickMetrics:
        """Exact metrics over all rows of a split, each counted once; collective."""
        self.dmp.eval()
        logits, labels = [], []
        for batch in data.evaluation_batches(8 * self.config.batch_size, self.rank, self.world_size):
            _, (_, batch_logits, batch_labels) = self.dmp(batch.to(self.device))
            logits.append(batch_logits.float())
            labels.append(batch_labels.float())
        gathered = (data.restore(gather_rows(torch.cat(rows))).cpu() for rows in (logits, labels))
        return click_metrics(*gathered)

    def _prepare_step(self, total_steps: int) -> None:
        """Learning rates and, in a supernet, the path of the coming step."""
        learning_rate = self._learning_rate(total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The tables are updated within backward: they must learn their rate before it.
        self.dmp.fused_optimizer.step()
        if isinstance(self.model, SuperNet):
            full = full_path_probability(self.step, self.config.full_path_steps)
            take_full = float(torch.rand((), generator=self._paths)) < full
            strategy: Strategy = "full" if take_full else self.config.strategy
            self.model.set_architecture(self.model.search_space.sample(self._paths, strategy))

    def _learning_rate(self, total_steps: int) -> float:
        config = self.config
        return cosine_with_warmup(
            self.step, total_steps, config.learning_rate, config.warmup_fraction, config.min_learning_rate
        )

    def _make_dense_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        config = self.config
        optimizer: torch.optim.Optimizer
        if isinstance(self.model, SuperNet):
            optimizer = ActiveSliceAdagrad(
                parameters, self.model.active_parameters, config.learning_rate, config.adagrad_eps
            )
        else:
            optimizer = torch.optim.Adagrad(parameters, config.learning_rate, eps=config.adagrad_eps)
        optimizer.register_step_pre_hook(lambda *_: self._average_and_clip())
        return optimizer

    def _average_and_clip(self) -> None:
        trained: list[nn.Parameter] = self._dense
        if isinstance(self.model, SuperNet):
            trained = [view for _, view in self.model.active_parameters()]
        with_gradient = [parameter for parameter in trained if parameter.grad is not None]
        self.bytes_reduced = average_gradients([p.grad for p in with_gradient if p.grad is not None])
        self.gradient_norm = nn.utils.clip_grad_norm_(with_gradient, self.config.gradient_clip)


def _window_values(computed: dict[str, torch.Tensor]) -> dict[str, float]:
    """The windowed NE and AUC among TorchRec's metrics, under short names."""
    wanted = {"window_ne": "ne", "window_auc": "auc"}
    return {
        short: float(value)
        for name, value in computed.items()
        for suffix, short in wanted.items()
        if name.endswith(f"|{suffix}")
    }
