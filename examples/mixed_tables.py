"""Tables of 8 to 64 columns whose ids are weighted by position, from training on two ranks to a package.

    torchrun --nproc-per-node 2 examples/mixed_tables.py train --out build/mixed     # several ranks
    python examples/mixed_tables.py resume --out build/mixed                         # one process goes on
    python examples/mixed_tables.py package --out build/mixed                        # quantize and export

TorchRec's DLRM needs tables of one dimension. Here everything except the model is what a TorchRec user already has: a
FeatureProcessedEmbeddingBagCollection, a fused optimizer for its tables, DistributedModelParallel with its default
planner, TrainPipelineSparseDist, and checkpoints of torch.distributed.checkpoint.
"""

import argparse
import copy
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRMTrain
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Request

DENSE, POSITIONS, ROWS = 4, 5, 1_000
# Two features share the table of users.
TABLES = {"user": (16, ["user", "author"]), "item": (64, ["item"]), "word": (32, ["word"]), "day": (8, ["day"])}
FEATURES = [feature for _, features in TABLES.values() for feature in features]


def make_model(device: torch.device) -> NASRecNet:
    tables = [
        EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=ROWS, feature_names=features)
        for name, (dim, features) in TABLES.items()
    ]
    ebc = EmbeddingBagCollection(tables=tables, is_weighted=True, device=device)
    weights = PositionWeightedModuleCollection(dict.fromkeys(FEATURES, POSITIONS), device=device)
    return NASRecNet(FeatureProcessedEmbeddingBagCollection(ebc, weights), DENSE, "criteo-small", interaction_dim=16)


def make_batches(seed: int, steps: int, rows: int = 128) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        lengths = torch.randint(0, POSITIONS + 1, (len(FEATURES) * rows,), generator=generator)
        ids = torch.randint(0, ROWS, (int(lengths.sum()),), generator=generator)
        dense = torch.randn(rows, DENSE, generator=generator)
        labels = (dense.sum(1) + torch.randn(rows, generator=generator) > 0).float()
        sparse = KeyedJaggedTensor(FEATURES, ids, lengths=lengths)
        yield Batch(dense, sparse, labels)


def train(checkpoint: Path, resume: bool, steps: int) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = make_model(device)
    tables = model.sparse_arch.embedding_bag_collection.split()[1]
    apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.02, "eps": 1e-2})
    dmp = DistributedModelParallel(DLRMTrain(model), device=device)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())), lambda p: torch.optim.Adagrad(p, lr=0.02, eps=1e-2)
    )
    optimizer = CombinedOptimizer([dmp.fused_optimizer, dense])
    state = {"model": dmp.state_dict(), "optimizer": optimizer.state_dict()}
    if resume:
        dcp.load(state, checkpoint_id=checkpoint)
        dmp.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    pipeline = TrainPipelineSparseDist(dmp, optimizer, device, execute_all_batches=True)
    batches = make_batches(100 * resume + dist.get_rank(), steps)
    losses = [float(pipeline.progress(batches)[0]) for _ in range(steps)]
    if dist.get_rank() == 0:
        what = "resumed" if resume else "trained"
        print(f"{what} on {dist.get_world_size()} ranks: loss {losses[0]:.4f} to {losses[-1]:.4f}", flush=True)
    dcp.save({"model": dmp.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint_id=checkpoint)
    dist.barrier()
    dist.destroy_process_group()


def package(checkpoint: Path, folder: Path) -> None:
    wrapped = DLRMTrain(make_model(torch.device("cpu")))
    state = {"model": wrapped.state_dict()}
    dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
    wrapped.load_state_dict(state["model"])
    model = wrapped.model.eval()
    (batch,) = make_batches(7, 1)
    sparse = batch.sparse_features
    with torch.no_grad():
        expected = model(batch.dense_features, sparse).flatten()
        quantized = quantize_inference_model(copy.deepcopy(model))(batch.dense_features, sparse).flatten()
    largest = expected.abs().max()
    print(f"quantized tables: logits up to {largest:.2f} differ by {(quantized - expected).abs().max():.1e}")
    schema = Schema(
        "click",
        tuple(DenseFeature(f"d{number}") for number in range(DENSE)),
        tuple(
            SparseFeature(feature, ROWS, multi_hot=True, table=table, embedding_dim=dim)
            for table, (dim, features) in TABLES.items()
            for feature in features
        ),
    )
    predictor = export(model, schema, folder)
    lengths = sparse.lengths().view(len(FEATURES), -1)
    logits = predictor.logits(Request(ids=sparse.values(), lengths=lengths, dense=batch.dense_features))
    print(f"package: logits differ by {(logits - expected).abs().max():.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "resume", "package"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    checkpoint = arguments.out / "checkpoint"
    if arguments.what == "package":
        package(checkpoint, arguments.out / "package")
    else:
        train(checkpoint, arguments.what == "resume", arguments.steps)


if __name__ == "__main__":
    main()
