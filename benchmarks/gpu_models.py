"""What the steps of ``gpu_steps.py`` measure with: models of Criteo's shape, batches, timers and counters of memory."""

import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchrec.models.dlrm import DLRM
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASREC_FULL, PUBLISHED, NASRecNet, SuperNet
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.training.graphs import graph_dense_part
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

Result = dict[str, Any]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DENSE, SPARSE, DIM = 13, 26, 16


class Step:
    """A training step as the trainer takes it, with fused Adagrad in the tables.

    Args:
        name: a published network, ``dlrm`` or ``supernet-full``, which samples an architecture in every step.
        batch: dense features, ids and labels.
        precision: fp32, tf32 or bf16.
        mode: how the dense part runs: ``eager``, as CUDA ``graphs``, ``compiled``, or as ``compiled graphs``.
        rows: rows of each table.
    """

    def __init__(
        self, name: str, batch: tuple[Tensor, KeyedJaggedTensor, Tensor], precision: str, mode: str, rows: int
    ) -> None:
        torch.manual_seed(0)
        self.precision, self.batch, self.seed = precision, batch, 0
        if name == "supernet-full":
            model: nn.Module = supernet_of(rows)
        elif name == "dlrm":
            model = DLRM(tables_of(rows), DENSE, [512, 256, DIM], [512, 512, 256, 1])
        else:
            model = NASRecNet(tables_of(rows), DENSE, PUBLISHED[name])
        self.supernet = model if isinstance(model, SuperNet) else None
        tables = [parameter for path, parameter in model.named_parameters() if "embedding_bag" in path]
        apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": 0.01, "eps": 1e-2})
        if "graphs" in mode:
            graph_dense_part(model, len(batch[0]), DEVICE, compiled="compiled" in mode)
        elif mode == "compiled":
            for path, child in model.named_children():
                if path != "sparse_arch":
                    child.compile()
        self.model = parallelize(model, DEVICE)
        self.optimizer: torch.optim.Optimizer
        if self.supernet is not None:
            interaction = self.supernet.interaction_arch
            self.optimizer = ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters)
        else:
            self.dense = [value for path, value in self.model.named_parameters() if "embedding_bag" not in path]
            self.optimizer = torch.optim.Adagrad(self.dense, 0.01, eps=1e-2, foreach=True)

    def __call__(self) -> Tensor:
        dense, kjt, labels = self.batch
        parameters = self._active()
        self.optimizer.zero_grad()
        with self._autocast():
            logits = self.model(dense, kjt)
        loss = F.binary_cross_entropy_with_logits(logits.float().flatten(), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        self.optimizer.step()
        return loss.detach()

    def flops(self) -> Result:
        """Model FLOPs of a step. A supernet's steps differ: none then."""
        if self.supernet is not None:
            return {}
        dense, kjt, _ = self.batch
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.model(dense, kjt)
        return {"flops": 3 * counter.get_total_flops()}

    def _active(self) -> list[Tensor]:
        if self.supernet is None:
            return list(self.dense)
        self.seed += 1
        self.supernet.set_architecture(NASREC_FULL.sample(torch.Generator().manual_seed(self.seed)))
        return [view for _, view in self.supernet.interaction_arch.active_parameters()]

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(DEVICE.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()


def tables_of(rows: int, count: int = SPARSE) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(name=f"t_f{i}", embedding_dim=DIM, num_embeddings=rows, feature_names=[f"f{i}"])
            for i in range(count)
        ]
    )


def supernet_of(rows: int) -> SuperNet:
    return SuperNet(tables_of(rows), DENSE, NASREC_FULL).to(DEVICE)


def batch_of(rows: int, embeddings: int, seed: int = 0, skew: int = 1) -> tuple[Tensor, KeyedJaggedTensor, Tensor]:
    """Dense features, ids and labels; with a larger skew, small ids come more often."""
    generator = torch.Generator().manual_seed(seed)
    ids = (torch.rand(rows * SPARSE, generator=generator, dtype=torch.float64) ** skew * embeddings).long()
    lengths = torch.ones(rows * SPARSE, dtype=torch.int64)
    kjt = KeyedJaggedTensor([f"f{i}" for i in range(SPARSE)], ids, lengths=lengths)
    labels = (torch.rand(rows, generator=generator) < 0.25).float()
    return torch.randn(rows, DENSE, generator=generator).to(DEVICE), kjt.to(DEVICE), labels.to(DEVICE)


def by_key(output: Any) -> Any:
    return output.wait() if hasattr(output, "wait") else output


def values_of(output: Any) -> Tensor:
    return by_key(output).values()


def seconds_of(calls: dict[str, Callable[[], object]], quick: bool) -> dict[str, list[float]]:
    """Median and first and last decile of each call's seconds, in turns, after two calls each to warm up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    warm, rounds = (0, 2) if quick else (2, 20)
    for turn in range(warm + rounds):
        for name, call in calls.items():
            wait()
            started = time.perf_counter()
            call()
            wait()
            if turn >= warm:
                found[name].append(time.perf_counter() - started)
    ordered = {name: sorted(seconds) for name, seconds in found.items()}
    last = rounds - 1
    return {
        name: [statistics.median(values), values[round(0.1 * last)], values[round(0.9 * last)]]
        for name, values in ordered.items()
    }


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def start_counting() -> int:
    """Returns the bytes of the device that are in use, and forgets how many were."""
    if DEVICE.type != "cuda":
        return 0
    wait()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def most_memory(before: int) -> int | None:
    """Returns how many bytes of the device were in use at most since :func:`start_counting` gave ``before``."""
    return torch.cuda.max_memory_allocated() - before if DEVICE.type == "cuda" else None


def rate_of(what: str, amount: float, seconds: list[float]) -> Result:
    return {what: amount, f"{what}_per_second": amount / seconds[0]}
