"""A TorchRec pipeline as teams have it, whose model is a NASRecNet: from two ranks to a package.

    torchrun --nproc-per-node 2 examples/pipeline.py train --out build/pipeline      # two ranks
    torchrun --nproc-per-node 4 examples/pipeline.py resume --out build/pipeline     # four resume, or one:
    python examples/pipeline.py resume --out build/pipeline
    python examples/pipeline.py package --out build/pipeline                         # quantize and export

Tables have 8, 16, 32 and 64 columns. Two features share a table, ids of ``word`` are weighted, ``tags`` are averaged,
and the ids of ``user`` and ``author`` are not known beforehand (ZCH). What is not TorchRec's is the line of the model,
the map of those ids, and the sharders, without which no such map can be sharded on the CPU.
"""

from collections.abc import Iterator

import torch
import torch.distributed as dist
from stages import Example, main
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.distributed.sharding import table_sharders
from nasrec_torchrec.id_space import ID_SPACE
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, with_dynamic_ids

DENSE, ROWS, DYNAMIC = 4, 1_000, "user"
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


def describe(dmp: DistributedModelParallel) -> str:
    ids = next(module for module in dmp.modules() if isinstance(module, DynamicIds))
    counts = torch.tensor([*ids.counts().values()])
    dist.all_reduce(counts)
    return f", {int(counts[0])} of {rows_of(DYNAMIC)} rows in use, {int(counts[1])} evictions"


EXAMPLE = Example(
    make_model,
    make_batches,
    DENSE,
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
    learning_rate=0.005,
    sharders=table_sharders(),
    report=describe,
)

if __name__ == "__main__":
    main(EXAMPLE, __doc__)
