"""NASRecNet: the model that an architecture describes."""

import torch
from torch import Tensor, nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.modules.sparse_arch import SparseArch


class NASRecNet(nn.Module):
    """A click-through-rate model with a searched interaction part (NASRec, arXiv 2207.07187).

    Takes the place of ``torchrec.models.dlrm.DLRM``: the same inputs, logits as output, an
    ``EmbeddingBagCollection`` that DistributedModelParallel shards.

    Args:
        embedding_bag_collection: one table per sparse feature or shared ones, all of one embedding dimension E.
        dense_in_features: columns F_dense of the dense features; 0 when there are none.
        architecture: what the interaction part computes.
        use_layernorm: normalise after each linear. The published final networks do not.
        dense_device: where the interaction part lives; ``meta`` is allowed.

    Raises:
        ValueError: for embedding dimensions that differ, or that an operator cannot use.

    Example::

        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> tables = [EmbeddingBagConfig(name=f"t{i}", embedding_dim=16, num_embeddings=50, feature_names=[f"f{i}"])
        ...           for i in range(26)]
        >>> model = NASRecNet(EmbeddingBagCollection(tables=tables), 13, PUBLISHED["criteo-small"])
        >>> ids = KeyedJaggedTensor.from_lengths_sync(
        ...     keys=[f"f{i}" for i in range(26)], values=torch.arange(52) % 50, lengths=torch.ones(52).int())
        >>> model(torch.rand(2, 13), ids).shape
        torch.Size([2, 1])
    """

    def __init__(
        self,
        embedding_bag_collection: EmbeddingBagCollection,
        dense_in_features: int,
        architecture: Architecture,
        use_layernorm: bool = False,
        dense_device: torch.device | None = None,
    ) -> None:
        super().__init__()
        check_dense_in_features(dense_in_features)
        self.sparse_arch = SparseArch(embedding_bag_collection)
        self.interaction_arch = InteractionArch(
            architecture,
            dense_in_features,
            len(self.sparse_arch.feature_names),
            self.sparse_arch.embedding_dim,
            use_layernorm,
            device=dense_device,
        )

    @property
    def architecture(self) -> Architecture:
        return self.interaction_arch.architecture

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """
        Args:
            dense_features: ``(B, F_dense)``; ``(B, 0)`` without dense features.
            sparse_features: ids of every sparse feature, ``stride`` B.

        Returns:
            Tensor: logits ``(B, 1)``.

        Raises:
            ValueError: for a missing feature, dense features of the wrong width and, on the CPU, for an id outside
                of its table.
        """
        return predict(self.sparse_arch, self.interaction_arch, dense_features, sparse_features)


def predict(
    sparse_arch: SparseArch, interaction_arch: nn.Module, dense_features: Tensor, sparse_features: KeyedJaggedTensor
) -> Tensor:
    """The forward pass that NASRecNet and SuperNet share."""
    if isinstance(sparse_features, KeyedJaggedTensor):  # not while a pipeline traces through
        sparse_arch.check(sparse_features)
    return interaction_arch(dense_features, sparse_arch(sparse_features))


def check_dense_in_features(count: int) -> None:
    """Raises ValueError unless the number of dense features can be one."""
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"dense_in_features: expected an integer, 0 or more, found {count!r}")
