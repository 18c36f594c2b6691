"""One training step, from the path that it takes to the weights that it updates."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.distributed.table_copies import average_copies
from nasrec_torchrec.modules.batch_norm import running_statistics
from nasrec_torchrec.training.averaging import DenseAverage
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.guard import StepGuard
from nasrec_torchrec.training.optimizers import adam
from nasrec_torchrec.training.paths import Paths
from nasrec_torchrec.training.task import ClickTask


class TrainingStep:
    """What every rank does in a step.

    Between choosing the path and updating the weights, a TorchRec pipeline is in charge, which sends the ids of the
    next batches in the meantime. It runs forward and backward, and then calls :meth:`step`, since it treats this object
    as its optimizer.

    Args:
        dmp: the sharded task.
        task: the task that ``dmp`` wraps.
        paths: paths through the model.
        guard: guard that holds back the gradients of the tables.
        config: how to train the model.
        rank: rank of this process.
        device: device of this rank.
        rates: learning rate of each table that is updated in backward, as a multiple of that of the dense part.
    """

    def __init__(
        self,
        dmp: DistributedModelParallel,
        task: ClickTask,
        paths: Paths,
        guard: StepGuard,
        config: TrainConfig,
        rank: int,
        device: torch.device,
        rates: Mapping[str, float],
    ) -> None:
        self._dmp, self._task, self._paths, self._guard = dmp, task, paths, guard
        self._config, self._rank, self._device = config, rank, device
        dense = dict(in_backward_optimizer_filter(dmp.named_parameters()))
        # What gets its gradients when the backward pass continues into the tables: small tables that every rank holds.
        late: dict[str, nn.Parameter] = {}
        if not config.whole_tables:
            late = {name: parameter for name, parameter in dense.items() if "sparse_arch." in name}
        # TorchRec averages those of tables by itself.
        self._late = [p for name, p in late.items() if p.requires_grad and "embedding_bags." not in name]
        self.dense_optimizer = KeyedOptimizerWrapper(
            {name: parameter for name, parameter in dense.items() if name not in late}, paths.make_optimizer
        )
        optimizers = [dmp.fused_optimizer, self.dense_optimizer]
        if late:
            optimizers.append(
                KeyedOptimizerWrapper(
                    late,
                    lambda p: (
                        torch.optim.Adagrad(p, config.learning_rate, eps=config.adagrad_eps)
                        if config.optimizer == "adagrad"
                        else adam(p, (), config.learning_rate, 0.0)
                    ),
                )
            )
        self.optimizer = CombinedOptimizer(optimizers)
        fused = {id(weight): name.split(".")[-2] for name, weight in dmp.fused_optimizer.params.items()}
        # Tables of one group share their kernel, and so their settings.
        tables = [next((fused[id(p)] for p in g["params"] if id(p) in fused), "") for g in self.optimizer.param_groups]
        self._rates = [rates.get(table, 1.0) for table in tables]
        self._statistics = running_statistics(task)
        self._statistics_before: list[Tensor] = []
        self.average: DenseAverage | None = None
        if config.ema_decay is not None and self._statistics:
            raise ValueError(
                f"ema_decay: expected none with batch normalization, found {config.ema_decay}: its running statistics "
                "are those of the weights, not of their average"
            )
        if config.ema_decay is not None:
            # With Adam, the tables are dense parameters too.
            above = {name: parameter for name, parameter in dense.items() if "sparse_arch." not in name}
            self.average = DenseAverage(above, config.ema_decay)
        self.gradient_norm = torch.tensor(0.0)
        self.bytes_reduced = 0
        self._step = 0
        self.start_epoch()

    def start_epoch(self) -> None:
        """Starts with an empty pipeline."""
        self._dmp.train()
        optimizer = cast(torch.optim.Optimizer, self)
        if self._config.pipeline == "base":
            self._pipeline: TrainPipelineBase[Batch, Any] | TrainPipelineSparseDist[Batch, Any] = TrainPipelineBase(
                self._dmp, optimizer, self._device
            )
        else:
            self._pipeline = TrainPipelineSparseDist(self._dmp, optimizer, self._device, execute_all_batches=True)

    def detach(self) -> None:
        """Allows calling the model outside the pipeline. Batches that the pipeline has read stay in it."""
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.detach()

    def attach(self) -> None:
        """Resumes training after :meth:`detach`."""
        self._dmp.train()
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.attach()

    def run(self, step: int, learning_rate: float, batches: Iterator[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Runs one training step. This call is collective.

        Args:
            step: number of the step in the run, counted from 0.
            learning_rate: learning rate of the step.
            batches: iterator over batches, of which the pipeline takes one or more.

        Returns:
            Loss ``()``, logits ``(B,)`` and labels ``(B,)`` of this rank's rows.

        Raises:
            StopIteration: If there is no batch left.
        """
        if self._config.dropout:
            # The seed depends on the step alone, so that a resumed run drops the same outputs as an uninterrupted one.
            seed = (self._config.seed << 40) + (step << 12) + self._rank
            # torch.manual_seed seeds every kind of device there may be, which takes longer than a small layer.
            if self._device.type == "cuda":
                torch.cuda.manual_seed(seed)
            else:
                torch.default_generator.manual_seed(seed)
        self._statistics_before = [statistic.clone() for statistic in self._statistics]
        self._step = step
        self._paths.draw(step)
        self._set_learning_rate(learning_rate)
        return self._pipeline.progress(batches)  # zero_grad, forward, loss, backward of the dense part; then step

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Averages and clips the gradients, agrees with the other ranks, and updates the weights."""
        if self._config.accumulate > 1 and self._config.whole_tables:
            # The gradients of the tables, which the optimizer of the dense part updates, stop at their outputs too.
            self._guard.finish_backward()
        trained = [parameter for parameter in self._paths.parameters() if parameter.grad is not None]
        # Each rank has normalized its own rows, and what evaluation uses is the mean over the ranks.
        self.bytes_reduced = average_gradients([*(p.grad for p in trained if p.grad is not None), *self._statistics])
        self.gradient_norm = nn.utils.clip_grad_norm_(trained, self._config.gradient_clip)
        if self._guard.agree(self._task.loss, self.gradient_norm):
            self._guard.finish_backward()
            self._average_late()
            self.optimizer.step()
            if self.average is not None:
                self.average.update()
            if (self._step + 1) % self._config.table_sync_every == 0:
                average_copies(self._dmp)
        elif self._statistics:  # nothing of a step that is skipped remains
            torch._foreach_copy_(self._statistics, self._statistics_before)

    def _average_late(self) -> None:
        """Averages the gradients that came with those of the tables; like those, they are not clipped."""
        for parameter in self._late:
            if parameter.grad is None:  # no row of this rank needed it
                parameter.grad = torch.zeros_like(parameter)
        self.bytes_reduced += average_gradients([p.grad for p in self._late if p.grad is not None])

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * learning_rate
        # The tables are updated during the backward pass, so their learning rate must be set before it.
        self._dmp.fused_optimizer.step()
