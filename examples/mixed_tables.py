"""Tables of 8 to 64 columns whose ids are weighted by position, from training on two ranks to a package.

    torchrun --nproc-per-node 2 examples/mixed_tables.py train --out build/mixed     # several ranks
    python examples/mixed_tables.py resume --out build/mixed                         # one process resumes
    python examples/mixed_tables.py package --out build/mixed                        # quantize and export

TorchRec's DLRM needs tables of one dimension. Here everything except the model is what a TorchRec user already has: a
FeatureProcessedEmbeddingBagCollection, sharded by the default planner, and what :mod:`stages` does.
"""

from collections.abc import Iterator

import torch
from stages import Example, main
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.modules.feature_processor_ import PositionWeightedModuleCollection
from torchrec.modules.fp_embedding_modules import FeatureProcessedEmbeddingBagCollection

from nasrec_torchrec import NASRecNet
from nasrec_torchrec.datasets.features import SparseFeature

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


EXAMPLE = Example(
    make_model,
    make_batches,
    DENSE,
    tuple(
        SparseFeature(feature, ROWS, multi_hot=True, table=table, embedding_dim=dim)
        for table, (dim, features) in TABLES.items()
        for feature in features
    ),
)

if __name__ == "__main__":
    main(EXAMPLE, __doc__)
