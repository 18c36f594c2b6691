"""A TorchRec pipeline as teams have it, whose model is a NASRecNet: from two ranks to a package.

    torchrun --nproc-per-node 2 examples/pipeline.py train --out build/pipeline      # two ranks
    torchrun --nproc-per-node 4 examples/pipeline.py resume --out build/pipeline     # four resume, or one:
    python examples/pipeline.py resume --out build/pipeline
    python examples/pipeline.py package --out build/pipeline                         # quantize and export

Tables have 8, 16, 32 and 64 columns. Two features share a table, ids of ``word`` are weighted, ``tags`` are averaged,
and the ids of ``user`` and ``author`` are not known beforehand (ZCH). What is not TorchRec's is the line of the model,
the map of those ids, and the sharders, without which no such map can be sharded on the CPU.
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
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.distributed.sharding import table_sharders
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.inference.exporting import export
from nasrec_torchrec.inference.predictor import Request
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids

DENSE, ROWS, DYNAMIC, LEARNING_RATE = 4, 1_000, "user", 0.005
TABLES = {"user": (16, ["user", "author"]), "word": (32, ["word"]), "tags": (64, ["tags"]), "day": (8, ["day"])}
FEATURES = [feature for _, features in TABLES.values() for feature in features]


def rows_of(table: str) -> int:
    return 1_024 if table == DYNAMIC else ROWS


def make_model(device: torch.device) -> NASRecNet:
    tables = [
        EmbeddingBagConfig(name=name, embedding_dim=dim, num_embeddings=rows_of(name), feature_names=features)
        for name, (dim, features) in TABLES.items()
    ]
    ebc = EmbeddingBagCollection(tables=tables, is_weighted=True, device=device)
    collection = with_dynamic_ids(ebc, {DYNAMIC: DynamicIds(rows_of(DYNAMIC), device)})
    return NASRecNet(collection, DENSE, "criteo-small", interaction_dim=16)  # instead of DLRM(ebc, DENSE, ...)


def make_batches(seed: int, steps: int, rows: int = 128) -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        lengths = torch.ones(len(FEATURES), rows, dtype=torch.int64)
        weights, ids = [], []
        for place, feature in enumerate(FEATURES):
            if feature in ("word", "tags"):
                lengths[place] = torch.randint(0, 4, (rows,), generator=generator)
            count = int(lengths[place].sum())
            if feature in TABLES[DYNAMIC][1]:  # hashes of some users who come often and many who do not
                often = torch.randint(0, 300, (count,), generator=generator) * (ID_SPACE // 300) + 1
                seldom = torch.randint(1, ID_SPACE, (count,), generator=generator)
                ids.append(torch.where(torch.rand(count, generator=generator) < 0.8, often, seldom))
            else:
                ids.append(torch.randint(0, ROWS, (count,), generator=generator))
            # A collection is weighted as a whole. A sum whose weights are one over the length is a mean.
            weight = {"word": torch.rand(count, generator=generator)}.get(feature, torch.ones(count))
            weights.append(weight / lengths[place].repeat_interleave(lengths[place]) if feature == "tags" else weight)
        dense = torch.randn(rows, DENSE, generator=generator)
        labels = (dense.sum(1) + torch.randn(rows, generator=generator) > 0).float()
        yield Batch(dense, KeyedJaggedTensor(FEATURES, torch.cat(ids), torch.cat(weights), lengths.flatten()), labels)


def train(checkpoint: Path, resume: bool, steps: int) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29536"}.items():
        os.environ.setdefault(name, value)
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    device = torch.device("cpu")
    model = make_model(device)
    tables = [weight for name, weight in model.sparse_arch.named_parameters() if "embedding_bags" in name]
    apply_optimizer_in_backward(torch.optim.Adagrad, tables, {"lr": LEARNING_RATE, "eps": 1e-2})
    dmp = DistributedModelParallel(DLRMTrain(model), device=device, sharders=table_sharders())
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(dmp.named_parameters())),
        lambda p: torch.optim.Adagrad(p, lr=LEARNING_RATE, eps=1e-2),
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
    ids = next(module for module in dmp.modules() if isinstance(module, DynamicIds))
    counts = torch.tensor([*ids.counts().values()])
    dist.all_reduce(counts)
    if dist.get_rank() == 0:
        what = "resumed" if resume else "trained"
        print(
            f"{what} on {dist.get_world_size()} ranks: loss {losses[0]:.4f} to {losses[-1]:.4f}, {int(counts[0])} of "
            f"{rows_of(DYNAMIC)} rows in use, {int(counts[1])} evictions",
            flush=True,
        )
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
            SparseFeature(
                *(feature, rows_of(table), "dynamic" if table == DYNAMIC else "id"),
                multi_hot=True,
                weighted=True,
                table=table,
                embedding_dim=dim,
            )
            for table, (dim, features) in TABLES.items()
            for feature in features
        ),
    )
    predictor = export(model, schema, folder)
    request = Request(sparse.values(), sparse.lengths().view(len(FEATURES), -1), batch.dense_features, sparse.weights())
    print(f"package: logits differ by {(predictor.logits(request) - expected).abs().max():.1e}")


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
