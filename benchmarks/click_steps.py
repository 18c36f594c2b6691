"""Training steps and scoring of click models on random rows, as measured by throughput.py and scale.py."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.distributed.gradient_sync import average_gradients
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.models.description import ClickModel, ModelDescription, dense_parameters

DIM = 16


def click_schema(num_dense: int = 13, num_sparse: int = 26, rows: int = 100_000) -> Schema:
    """Builds a schema with Criteo's columns in which all tables have the same size."""
    sparse = tuple(SparseFeature(f"f{i}", rows) for i in range(num_sparse))
    return Schema("label", tuple(DenseFeature(f"d{i}") for i in range(num_dense)), sparse, DIM)


def random_batch(schema: Schema, batch_size: int, device: torch.device, seed: int = 0) -> Batch:
    """Generates rows with one id for every feature."""
    generator = torch.Generator().manual_seed(seed)
    rows = schema.sparse[0].num_embeddings
    assert rows is not None
    count = batch_size * len(schema.sparse)
    ids = torch.randint(rows, (count,), generator=generator)
    return Batch(
        torch.randn(batch_size, len(schema.dense), generator=generator),
        KeyedJaggedTensor(schema.feature_names, ids, lengths=torch.ones(count, dtype=torch.int32), stride=batch_size),
        (torch.rand(batch_size, generator=generator) < 0.25).float(),
    ).to(device)


class ClickSteps:
    """A model under DistributedModelParallel with fused Adagrad in the tables, as the trainer sets it up.

    Args:
        description: The description of the model.
        batch: The batch that every step uses.
        device: The device of this rank.
        precision: ``bf16`` runs the dense part under autocast.
        compile: Whether to compile the dense part with torch.compile.
    """

    def __init__(
        self,
        description: ModelDescription,
        batch: Batch,
        device: torch.device,
        precision: str = "fp32",
        compile: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model: ClickModel = description.build(torch.device("cpu"))
        self.parameters = dense_parameters(self.model)
        tables = self.model.sparse_arch.embedding_bag_collection.parameters()
        apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": 0.01, "eps": 1e-2})
        for name, child in self.model.named_children():
            if name != "sparse_arch":
                if compile:
                    child.compile()
                if precision == "bf16":
                    child.forward = torch.autocast(device.type, torch.bfloat16)(child.forward)
        self.dmp = parallelize(DLRMTrain(self.model), device)
        self.dense = list(dict(in_backward_optimizer_filter(self.dmp.named_parameters())).values())
        self.optimizer = torch.optim.Adagrad(self.dense, 0.01, eps=1e-2)
        self.batch = batch

    def flops(self) -> int:
        """Returns the FLOPs of the matrix products in a forward pass over the batch."""
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.dmp(self.batch)
        return counter.get_total_flops()

    def train(self) -> None:
        self.dmp.train()
        self.optimizer.zero_grad()
        loss, _ = self.dmp(self.batch)
        loss.backward()
        average_gradients([parameter.grad for parameter in self.dense if parameter.grad is not None])
        nn.utils.clip_grad_norm_(self.dense, 5.0)
        self.optimizer.step()

    @torch.no_grad()
    def score(self) -> Tensor:
        self.dmp.eval()
        _, (_, logits, _) = self.dmp(self.batch)
        return logits


def in_turns(calls: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Measures the seconds of every call. All of them take turns, after one warm-up call each."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def gemm(device: torch.device) -> tuple[Callable[[], Tensor], int]:
    """Builds the yardstick for this machine: a float32 product of two 1,024 x 1,024 matrices, and its FLOPs."""
    left, right = torch.rand(1024, 1024, device=device), torch.rand(1024, 1024, device=device)
    return lambda: left @ right, 2 * 1024**3


def spread(seconds: Sequence[float]) -> str:
    """Formats the median and the first and last decile."""
    ordered = sorted(seconds)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.9))
    return f"{1e3 * statistics.median(ordered):8.2f} ms ({1e3 * low:.2f}-{1e3 * high:.2f})"
