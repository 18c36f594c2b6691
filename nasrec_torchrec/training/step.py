"""One training step, from the path that it takes to the weights that it updates."""

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchrec.datasets.utils import Batch
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.guard import StepGuard
from nasrec_torchrec.training.paths import Paths
from nasrec_torchrec.training.task import ClickTask


class TrainingStep:
    """What every rank does in a step.

    Between path and update a TorchRec pipeline is in charge, which sends the ids of the next batches meanwhile: it
    calls forward and backward, and then :meth:`step`, since it takes this object for its optimizer.

    Args:
        dmp: the sharded task.
        task: inside of it.
        paths: through the model.
        guard: which holds back the gradients of the tables.
        config: how to train.
        rank: of this process.
        device: of this rank.
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
    ) -> None:
        self._dmp, self._task, self._paths, self._guard = dmp, task, paths, guard
        self._config, self._rank, self._device = config, rank, device
        dense = dict(in_backward_optimizer_filter(dmp.named_parameters()))
        self.dense_optimizer = KeyedOptimizerWrapper(dense, paths.make_optimizer)
        self.optimizer = CombinedOptimizer([dmp.fused_optimizer, self.dense_optimizer])
        self.gradient_norm = torch.tensor(0.0)
        self.bytes_reduced = 0
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
        """Lets the model be called outside of the pipeline; batches that the pipeline holds stay there."""
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.detach()

    def attach(self) -> None:
        """Continues to train after :meth:`detach`."""
        self._dmp.train()
        if isinstance(self._pipeline, TrainPipelineSparseDist):
            self._pipeline.attach()

    def run(self, step: int, learning_rate: float, batches: Iterator[Batch]) -> tuple[Tensor, Tensor, Tensor]:
        """Makes a step; collective.

        Args:
            step: 0-based number in the run.
            learning_rate: in force.
            batches: the pipeline takes one or more of them.

        Returns:
            Loss ``()``, logits ``(B,)`` and labels ``(B,)`` of this rank's rows.

        Raises:
            StopIteration: when there is no batch left.
        """
        if self._config.dropout:
            # Seeded by the step alone, so that a resumed run drops what the undisturbed one dropped.
            torch.manual_seed((self._config.seed << 40) + (step << 12) + self._rank)
        self._paths.draw(step)
        self._set_learning_rate(learning_rate)
        return self._pipeline.progress(batches)  # zero_grad, forward, loss, backward of the dense part; then step

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Finishes what backward has begun: averages, clips, agrees with the other ranks, and updates the weights."""
        trained = [parameter for parameter in self._paths.parameters() if parameter.grad is not None]
        self.bytes_reduced = average_gradients([p.grad for p in trained if p.grad is not None])
        self.gradient_norm = nn.utils.clip_grad_norm_(trained, self._config.gradient_clip)
        if self._guard.agree(self._task.loss, self.gradient_norm):
            self._guard.finish_backward()
            self.optimizer.step()

    def _set_learning_rate(self, learning_rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        # The tables are updated within backward: they must learn their rate before it.
        self._dmp.fused_optimizer.step()
