"""Baselines that a user might pick instead of a NASRecNet: TorchRec's models, DeepFM and an MLP."""

import torch
from torch import Tensor, nn
from torchrec.models.dlrm import DLRM, DLRM_DCN, SparseArch
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.models.config import Baseline


def build_baseline(
    baseline: Baseline,
    embedding_bag_collection: EmbeddingBagCollection,
    dense_in_features: int,
    device: torch.device | None = None,
) -> "DLRM | FlatModel":
    """Builds a baseline from its description.

    Args:
        baseline: The description of the model.
        embedding_bag_collection: Tables with a common embedding dimension.
        dense_in_features: Number of dense features.
        device: Device of the dense part.

    Returns:
        A model that maps dense features and ids to logits ``(B, 1)``.
    """
    dense, over = list(baseline.dense_layers), list(baseline.over_layers)
    if baseline.kind == "dlrm":
        return DLRM(embedding_bag_collection, dense_in_features, dense, over, device)
    if baseline.kind == "dcn":
        return DLRM_DCN(
            *(embedding_bag_collection, dense_in_features, dense, over),
            *(baseline.cross_layers, baseline.cross_rank, device),
        )
    return FlatModel(embedding_bag_collection, dense_in_features, over, baseline.kind == "deepfm", device)


class FlatModel(nn.Module):
    """An MLP over the dense features and all embeddings, optionally combined with a factorization machine.

    Args:
        embedding_bag_collection: Tables with a common embedding dimension E.
        dense_in_features: Number of dense features.
        over_layers: Layer widths of the MLP; the last one is 1.
        factorization_machine: Whether to add a factorization machine, which makes the model DeepFM (arXiv
            1703.04247). The logit is then a linear function of the dense features, the last hidden layer of the MLP,
            and the sum of the products of all pairs of embeddings.
        device: Device of the dense part.
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
        """Computes logits ``(B, 1)`` from dense features ``(B, F_dense)`` and ids."""
        return self.interaction_arch(dense_features, self.sparse_arch(sparse_features))


class FlatInteraction(nn.Module):
    """The part of a :class:`FlatModel` above the tables, a module that TorchRec's pipelines do not trace into."""

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
        self.dense_in_features = dense_in_features
        inputs = dense_in_features + embedded
        self.deep = MLP(inputs, hidden, device=device) if hidden else nn.Identity()
        self.factorization_machine = factorization_machine
        read_by_logit = hidden[-1] if hidden else inputs
        if factorization_machine:
            read_by_logit += dense_in_features + 1
        self.over_arch = nn.Linear(read_by_logit, out_features, device=device)

    def forward(self, dense_features: Tensor, embedded_features: Tensor) -> Tensor:
        """Computes logits ``(B, 1)`` from ``(B, F_dense)`` and ``(B, F_sparse, E)``."""
        deep = self.deep(torch.cat([dense_features, embedded_features.flatten(1)], dim=1))
        if not self.factorization_machine:
            return self.over_arch(deep)
        pairs_BE = (embedded_features.sum(1).square() - embedded_features.square().sum(1)) / 2
        return self.over_arch(torch.cat([dense_features, deep, pairs_BE.sum(1, keepdim=True)], dim=1))
