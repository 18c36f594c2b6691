"""What a user would pick instead of a NASRecNet: TorchRec's models, and an MLP, behind one description."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, SparseArch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

BaselineKind = Literal["dlrm", "dcn", "deepfm", "mlp"]
BASELINES: tuple[BaselineKind, ...] = get_args(BaselineKind)


@dataclass(frozen=True)
class Baseline:
    """A model of fixed structure to compare with.

    Args:
        kind: ``dlrm`` (TorchRec's DLRM), ``dcn`` (TorchRec's DLRM_DCN: DCN-V2 with low-rank cross layers), ``deepfm``
            (an MLP beside a factorization machine) or ``mlp``; the last two over dense features and embeddings.
        dense_layers: over the dense features, of dlrm and dcn; the last must be the embedding dimension.
        over_layers: before the logit; the last must be 1.
        cross_layers: of dcn.
        cross_rank: of dcn's cross layers.

    Raises:
        ValueError: for an unknown kind, or layers of no width.
    """

    kind: BaselineKind = "dlrm"
    dense_layers: tuple[int, ...] = (64, 16)
    over_layers: tuple[int, ...] = (128, 64, 1)
    cross_layers: int = 3
    cross_rank: int = 64

    def __post_init__(self) -> None:
        if self.kind not in BASELINES:
            raise ValueError(f"kind: expected one of {list(BASELINES)}, found {self.kind!r}")
        for name in ("dense_layers", "over_layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes = (*self.dense_layers, *self.over_layers, self.cross_layers, self.cross_rank)
        if min(sizes) < 1 or self.over_layers[-1:] != (1,):
            raise ValueError(
                f"expected positive sizes and over_layers that end in 1, found dense_layers {self.dense_layers}, "
                f"over_layers {self.over_layers}, cross_layers {self.cross_layers}, cross_rank {self.cross_rank}"
            )

    def build(
        self, embedding_bag_collection: EmbeddingBagCollection, dense_in_features: int, device: torch.device | None
    ) -> "DLRM | FlatModel":
        """The model over a collection of tables; ``device`` is the dense part's."""
        dense, over = list(self.dense_layers), list(self.over_layers)
        if self.kind == "dlrm":
            return DLRM(embedding_bag_collection, dense_in_features, dense, over, device)
        if self.kind == "dcn":
            return DLRM_DCN(
                *(embedding_bag_collection, dense_in_features, dense, over),
                *(self.cross_layers, self.cross_rank, device),
            )
        return FlatModel(embedding_bag_collection, dense_in_features, over, self.kind == "deepfm", device)


class FlatModel(nn.Module):
    """An MLP over the dense features and all embeddings, beside a factorization machine over them if asked for.

    Args:
        embedding_bag_collection: tables of one embedding dimension E.
        dense_in_features: columns of the dense features.
        over_layers: widths of the layers; the last is 1.
        factorization_machine: add one: DeepFM (arXiv 1703.04247). The logit is a linear over the dense features, the
            MLP's last hidden layer and the sum of the products of all pairs of embeddings.
        device: of the dense part.
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        dense_in_features: int,
        over_layers: list[int],
        factorization_machine: bool,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.sparse_arch = SparseArch(embedding_bag_collection)
        configs = embedding_bag_collection.embedding_bag_configs()
        embedded = sum(config.embedding_dim * len(config.feature_names) for config in configs)
        *hidden, last = over_layers
        self.interaction_arch = FlatInteraction(
            dense_in_features, embedded, hidden, last, factorization_machine, device
        )

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``(B, F_dense)`` and ids to logits ``(B, 1)``."""
        return self.interaction_arch(dense_features, self.sparse_arch(sparse_features))


class FlatInteraction(nn.Module):
    """Everything of a :class:`FlatModel` above the tables: a leaf for TorchRec's pipelines."""

    def __init__(
        self,
        dense_in_features: int,
        embedded: int,
        hidden: list[int],
        out_features: int,
        factorization_machine: bool,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        inputs = dense_in_features + embedded
        self.deep = MLP(inputs, hidden, device=device) if hidden else nn.Identity()
        self.factorization_machine = factorization_machine
        read_by_logit = hidden[-1] if hidden else inputs
        if factorization_machine:
            read_by_logit += dense_in_features + 1
        self.over_arch = nn.Linear(read_by_logit, out_features, device=device)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """``(B, F_dense)`` and ``(B, F_sparse, E)`` to logits ``(B, 1)``."""
        deep = self.deep(torch.cat([dense_features, embedded_features.flatten(1)], dim=1))
        if not self.factorization_machine:
            return self.over_arch(deep)
        pairs_BE = (embedded_features.sum(1).square() - embedded_features.square().sum(1)) / 2
        return self.over_arch(torch.cat([dense_features, deep, pairs_BE.sum(1, keepdim=True)], dim=1))
