"""Baselines that a user might pick instead of a searched network: TorchRec's models, and later ones."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchrec.models import dlrm as torchrec_dlrm
from torchrec.models.dlrm import DLRM, DLRM_DCN
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.modules.mlp import MLP
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.models import reference
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.streams import FinalMLPInteraction, FinalNetInteraction
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.modules.token_projection import TokenProjection


def build_baseline(
    baseline: Baseline,
    embedding_bag_collection: EmbeddingBagCollection,
    dense_in_features: int,
    device: torch.device | None = None,
    interaction_dim: int | None = None,
    label_weights: Sequence[float] = (1.0,),
    attention: Mapping[str, str] | None = None,
) -> "DLRM | FlatModel | NASRecNet":
    """Builds a baseline from its description.

    Args:
        baseline: The description of the model.
        embedding_bag_collection: The tables.
        dense_in_features: Number of dense features.
        device: Device of the dense part.
        interaction_dim: Width E of the tokens; see :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.
        label_weights: Weight of the loss of each of the T labels that are predicted. They share all but the last layer.
        attention: For sequences; see :class:`~nasrec_torchrec.models.nasrecnet.NASRecNet`.

    Returns:
        A model that maps dense features and ids to logits ``(B, T)``.

    Raises:
        ValueError: If another kind than finalnet is to normalize batches.
    """
    if baseline.batch_norm and baseline.kind != "finalnet":
        raise ValueError(f"batch_norm: expected false for {baseline.kind}; of the baselines, finalnet alone has it")
    # The last layer has an output for each label.
    dense, over = list(baseline.dense_layers), [*baseline.over_layers[:-1], len(label_weights)]
    sparse_arch = SparseArch(embedding_bag_collection, interaction_dim, attention, device)
    embedding_dim, num_fields = sparse_arch.embedding_dim, len(sparse_arch.feature_names)
    # What TorchRec's models read by themselves.
    plain = isinstance(embedding_bag_collection, EmbeddingBagCollection) and not sparse_arch.tables
    if baseline.kind in ("dlrm", "dcn"):
        layers = dense_in_features, dense, over
        tables = embedding_bag_collection
        if not plain:
            # TorchRec's models read the width from their tables, and then stack the embeddings in their inter_arch.
            configs = [
                EmbeddingBagConfig(c.num_embeddings, embedding_dim, c.name, feature_names=c.feature_names)
                for c in sparse_arch.configs
            ]
            tables = EmbeddingBagCollection(tables=configs, device=torch.device("meta"))
        if baseline.kind == "dlrm":
            model = DLRM(tables, *layers, device)
        else:
            model = DLRM_DCN(tables, *layers, baseline.cross_layers, baseline.cross_rank, device)
        if not plain:
            model.sparse_arch = sparse_arch
        if sparse_arch.tables:
            projection = TokenProjection(sparse_arch.tables, embedding_dim, device)
            model.inter_arch = ProjectedInteraction(projection, model.inter_arch)
        return model
    *hidden, last = over
    sizes = dense_in_features, num_fields, embedding_dim
    if baseline.kind in ("masknet", "gdcn", "wukong"):
        architecture = {
            "masknet": lambda: reference.masknet(*sizes, hidden),
            "gdcn": lambda: reference.gdcn(*sizes, hidden, baseline.cross_layers),
            "wukong": lambda: reference.wukong(*sizes, hidden),
        }[baseline.kind]()
        return NASRecNet(
            embedding_bag_collection,
            dense_in_features,
            architecture,
            dense_device=device,
            interaction_dim=embedding_dim,
            attention=attention,
            num_labels=last,
        )
    interaction_arch: FlatInteraction | FinalNetInteraction | FinalMLPInteraction
    if baseline.kind == "finalnet":
        interaction_arch = FinalNetInteraction(*sizes, hidden, device, baseline.batch_norm, label_weights)
    elif baseline.kind == "finalmlp":
        interaction_arch = FinalMLPInteraction(*sizes, hidden, device, last)
    else:
        columns, with_machine = num_fields * embedding_dim, baseline.kind == "deepfm"
        interaction_arch = FlatInteraction(dense_in_features, columns, hidden, last, with_machine, device)
    if plain:
        return FlatModel(torchrec_dlrm.SparseArch(embedding_bag_collection), interaction_arch)
    if not sparse_arch.tables:
        return FlatModel(sparse_arch, interaction_arch)
    projection = TokenProjection(sparse_arch.tables, embedding_dim, device)
    return FlatModel(sparse_arch, ProjectedInteraction(projection, interaction_arch))


class ProjectedInteraction(nn.Module):
    """The interaction part of a baseline behind the projection of embeddings of different dimensions.

    Args:
        projection: The projection.
        interaction: A module that maps dense features and tokens ``(B, F_sparse, E)`` to anything.
    """

    def __init__(self, projection: TokenProjection, interaction: nn.Module) -> None:
        super().__init__()
        self.projection, self.interaction = projection, interaction
        self.dense_in_features: int | None = getattr(interaction, "dense_in_features", None)

    def forward(self, dense_features: Tensor, sparse_features: Tensor) -> Tensor:
        """Projects the embeddings ``(B, columns)`` and calls the interaction part."""
        return self.interaction(dense_features, self.projection(sparse_features))


class FlatModel(nn.Module):
    """A model that reads the dense features and all embeddings as one row of columns.

    Args:
        sparse_arch: The part that looks up embeddings.
        interaction_arch: The part above the tables, which maps dense features ``(B, F_dense)`` and embeddings
            ``(B, F_sparse, E)``, or ``(B, columns)`` if dimensions differ, to logits.
    """

    def __init__(
        self,
        sparse_arch: "SparseArch | torchrec_dlrm.SparseArch",
        interaction_arch: "FlatInteraction | FinalNetInteraction | FinalMLPInteraction | ProjectedInteraction",
    ) -> None:
        super().__init__()
        self.sparse_arch = sparse_arch
        self.interaction_arch = interaction_arch

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Computes logits ``(B, T)`` from dense features ``(B, F_dense)`` and ids."""
        return self.interaction_arch(dense_features, self.sparse_arch(sparse_features))


class FlatInteraction(nn.Module):
    """An MLP over all columns, optionally combined with a factorization machine.

    It is a module of its own so that TorchRec's pipelines do not trace into it.

    Args:
        dense_in_features: Number of dense features.
        embedded: Number of columns of all embeddings.
        hidden: Layer widths of the MLP.
        out_features: Number of logits.
        factorization_machine: Whether to add a factorization machine, which makes the model DeepFM (arXiv
            1703.04247). The logit is then a linear function of the dense features, the last hidden layer of the MLP,
            and the sum of the products of all pairs of embeddings.
        device: Device of the parameters.
    """

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
        """Computes logits ``(B, T)`` from ``(B, F_dense)`` and ``(B, F_sparse, E)``."""
        deep = self.deep(torch.cat([dense_features, embedded_features.flatten(1)], dim=1))
        if not self.factorization_machine:
            return self.over_arch(deep)
        pairs_BE = (embedded_features.sum(1).square() - embedded_features.square().sum(1)) / 2
        return self.over_arch(torch.cat([dense_features, deep, pairs_BE.sum(1, keepdim=True)], dim=1))
