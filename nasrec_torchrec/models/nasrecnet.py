"""NASRecNet, the model that an architecture describes."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.models.named import architecture_named
from nasrec_torchrec.modules.interaction_arch import InteractionArch
from nasrec_torchrec.modules.plain import fused
from nasrec_torchrec.modules.sparse_arch import SparseArch
from nasrec_torchrec.table_widths import check_widths


class NASRecNet(nn.Module):
    """A click-through-rate model whose interaction part is an architecture (NASRec, arXiv 2207.07187).

    It replaces ``torchrec.models.dlrm.DLRM``: it has the same inputs, returns logits, and contains an
    ``EmbeddingBagCollection`` that DistributedModelParallel can shard.

    Args:
        embedding_bag_collection: The tables, one table per sparse feature or shared ones. It may also be another
            collection of TorchRec's, see :func:`~nasrec_torchrec.modules.table_collection.describe_collection`.
        dense_in_features: Number of dense features F_dense, or 0 if there are none.
        architecture: The architecture of the interaction part, or its name in ``PUBLISHED`` or ``REFERENCE``.
        use_layernorm: Whether to normalize after each linear layer. The published final networks do not.
        dense_device: Device of the interaction part; ``meta`` is allowed.
        interaction_dim: Width E of the tokens that the interaction part reads. By default, the common embedding
            dimension of the tables, or the largest one if they differ. Embeddings of another dimension are projected,
            see :class:`~nasrec_torchrec.modules.token_projection.TokenProjection`.
        attention: For sequences of an ``EmbeddingCollection`` that are pooled by attention (DIN), the feature that is
            the target of each, such as ``{"viewed_items": "item"}``. All others are pooled by their mean.
        num_labels: Number T of labels that are predicted. They share all but the final linear layer (shared bottom).

    Raises:
        TypeError: If the collection is of an unsupported kind, or has no sequences to attend to.
        ValueError: If there is no such architecture or feature, an operator cannot use tokens of width E, a table has
            another embedding dimension than the architecture chooses for it, or there is no label.

    Example:
        >>> from nasrec_torchrec import PUBLISHED
        >>> from torchrec.modules.embedding_configs import EmbeddingBagConfig
        >>> from torchrec.modules.embedding_modules import EmbeddingBagCollection
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
        embedding_bag_collection: nn.Module,
        dense_in_features: int,
        architecture: Architecture | str,
        use_layernorm: bool = False,
        dense_device: torch.device | None = None,
        interaction_dim: int | None = None,
        attention: Mapping[str, str] | None = None,
        num_labels: int = 1,
    ) -> None:
        super().__init__()
        check_dense_in_features(dense_in_features)
        if not isinstance(num_labels, int) or num_labels < 1:
            raise ValueError(f"num_labels: expected an integer, 1 or more, found {num_labels!r}")
        self.sparse_arch = SparseArch(embedding_bag_collection, interaction_dim, attention, dense_device)
        sizes = dense_in_features, len(self.sparse_arch.feature_names), self.sparse_arch.embedding_dim
        architecture = architecture_named(architecture, *sizes)
        check_widths(dict(architecture.embedding_widths), self.sparse_arch.dims, exact=True)
        self.interaction_arch = InteractionArch(
            architecture,
            *sizes,
            use_layernorm,
            device=dense_device,
            tables=self.sparse_arch.tables,
            num_labels=num_labels,
        )

    @property
    def architecture(self) -> Architecture:
        """The architecture of the interaction part."""
        return self.interaction_arch.architecture

    def fused(self) -> "NASRecNet":
        """Copies the model in a form for deployment tools, which know PyTorch's own layers alone.

        Each linear layer, whose weight is kept in one piece per source, becomes an ``nn.Linear``, so that
        ``torch.ao.quantization.quantize_dynamic`` finds it. TorchRec's ``fx.Tracer`` and ``torch.jit.script`` take the
        form with and without quantized tables.

        Returns:
            A model in evaluation mode whose logits differ only by rounding.
        """
        return fused(self)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Computes the logits of a batch.

        Args:
            dense_features: Tensor of shape ``(B, F_dense)``, or ``(B, 0)`` without dense features.
            sparse_features: Ids of every sparse feature for B rows.

        Returns:
            Logits of shape ``(B, T)``, such as ``(B, 1)`` for one label.

        Raises:
            ValueError: If a feature is missing, the dense features have the wrong width or another number of rows than
                the sparse ones, or, on the CPU, an id is outside of its table.
        """
        return predict(self.sparse_arch, self.interaction_arch, dense_features, sparse_features)


def predict(
    sparse_arch: SparseArch, interaction_arch: nn.Module, dense_features: Tensor, sparse_features: KeyedJaggedTensor
) -> Tensor:
    """Runs the forward pass that NASRecNet and SuperNet share."""
    if isinstance(sparse_features, KeyedJaggedTensor):  # not while a pipeline traces through
        sparse_arch.check(sparse_features)
    return interaction_arch(dense_features, sparse_arch(sparse_features))


def check_dense_in_features(count: int) -> None:
    """Raises ValueError unless ``count`` is a valid number of dense features."""
    if not isinstance(count, int) or count < 0:
        raise ValueError(f"dense_in_features: expected an integer, 0 or more, found {count!r}")
