"""What the examples from training to a package share: the commands ``train``, ``resume`` and ``package``.

Everything here is what a TorchRec user already has: a fused optimizer for the tables, DistributedModelParallel,
TrainPipelineSparseDist, and checkpoints of torch.distributed.checkpoint. The model is the example's.
"""

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.types import ModuleSharder
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Request


@dataclass(frozen=True)
class Example:
    """A model and its data.

    Args:
        make_model: Makes the model on a device.
        make_batches: Yields the batches of a seed, a number of them.
        dense: Number of dense features.
        sparse: The sparse features as a package describes them, in the order of the batches.
        learning_rate: Learning rate of Adagrad.
        sharders: Sharders of the tables; by default TorchRec's.
        report: What to print of the trained model besides its loss; called on every rank.
    """

    make_model: Callable[[torch.device], NASRecNet]
    make_batches: Callable[[int, int], Iterator[Batch]]
    dense: int
    sparse: tuple[SparseFeature, ...]
    learning_rate: float = 0.02
    sharders: list[ModuleSharder[nn.Module]] | None = None
    report: Callable[[DistributedModelParallel], str] = lambda _: ""


def train(example: Example, checkpoint: Path, resume: bool, steps: int) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = example.make_model(device)
    tables = [weight for name, weight in model.sparse_arch.named_parameters() if "embedding_bags" in name]
    apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": example.learning_rate, "eps": 1e-2})
    dmp = DistributedModelParallel(DLRMTrain(model), device=device, sharders=example.sharders)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())),
        lambda p: torch.optim.Adagrad(p, example.learning_rate, eps=1e-2),
    )
    optimizer = CombinedOptimizer([dmp.fused_optimizer, dense])
    state = {"model": dmp.state_dict(), "optimizer": optimizer.state_dict()}
    if resume:
        dcp.load(state, checkpoint_id=checkpoint)
        dmp.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    pipeline = TrainPipelineSparseDist(dmp, optimizer, device, execute_all_batches=True)
    batches = example.make_batches(100 * resume + dist.get_rank(), steps)
    losses = [float(pipeline.progress(batches)[0]) for _ in range(steps)]
    report = example.report(dmp)
    if dist.get_rank() == 0:
        what = "resumed" if resume else "trained"
        print(f"{what} on {dist.get_world_size()} ranks: loss {losses[0]:.4f} to {losses[-1]:.4f}{report}", flush=True)
    dcp.save({"model": dmp.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=checkpoint)
    dist.barrier()
    dist.destroy_process_group()


def package(example: Example, checkpoint: Path, folder: Path) -> None:
    wrapped = DLRMTrain(example.make_model(torch.device("cpu")))
    state = {"model": wrapped.state_dict()}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    wrapped.load_state_dict(state["model"])
    model = wrapped.model.eval()
    (batch,) = example.make_batches(7, 1)
    sparse = batch.sparse_features
    with torch.no_grad():
        expected = model(batch.dense_features, sparse).flatten()
        quantized = quantize_inference_model(copy.deepcopy(model))(batch.dense_features, sparse).flatten()
    largest = expected.abs().max()
    print(f"quantized tables: logits up to {largest:.2f} differ by {(quantized - expected).abs().max():.1e}")
    schema = Schema("click", tuple(DenseFeature(f"d{number}") for number in range(example.dense)), example.sparse)
    predictor = export(model, schema, folder)
    lengths = sparse.lengths().view(len(example.sparse), -1)
    logits = predictor.logits(Request(sparse.values(), lengths, batch.dense_features, sparse.weights_or_none()))
    print(f"package: logits differ by {(logits - expected).abs().max():.1e}")


def main(example: Example, description: str | None) -> None:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "resume", "package"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    checkpoint = arguments.out / "checkpoint"
    if arguments.what == "package":
        package(example, checkpoint, arguments.out / "package")
    else:
        train(example, checkpoint, arguments.what == "resume", arguments.steps)
