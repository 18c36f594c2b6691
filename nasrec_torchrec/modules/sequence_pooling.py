"""Pooling of sequences: their mean, or attention against a target feature (DIN)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchrec.modules.embedding_configs import BaseEmbeddingConfig
from torchrec.sparse.jagged_tensor import JaggedTensor

from nasrec_torchrec.messages import nearest
from nasrec_torchrec.modules.linear import XavierLinear

_HIDDEN = 32


class TargetAttention(nn.Module):
    """Weighs the embeddings of a sequence by how they fit a target, and adds them up.

    This is the activation unit of DIN (arXiv 1706.06978, equation 3), with a layer of 32 columns and ReLU. Weights are
    not normalized, so that a sequence with more that fits gives a longer vector.

    Args:
        embedding_dim: Columns of the embeddings.
        device: Device of the parameters; ``meta`` is allowed.
    """

    def __init__(self, embedding_dim: int, device: torch.device | None = None) -> None:
        super().__init__()
        self.hidden = XavierLinear(4 * embedding_dim, _HIDDEN, device=device)
        self.score = XavierLinear(_HIDDEN, 1, device=device)

    def forward(self, embeddings: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
        """Pools the sequences of B rows.

        Args:
            embeddings: The embeddings ``(T, E)`` of all rows' ids, row by row.
            lengths: Number of ids ``(B,)`` of every row.
            target: Embedding ``(B, E)`` of each row's target.

        Returns:
            Pooled embeddings of shape ``(B, E)``; that of a row without ids is zero.
        """
        places = torch.arange(lengths.shape[0], device=lengths.device)
        row = torch.repeat_interleave(places, lengths, output_size=embeddings.shape[0])
        weights = self.weights(embeddings, target[row])
        return torch.zeros_like(target).index_add(0, row, (weights * embeddings).to(target.dtype))

    def weights(self, embeddings: Tensor, beside: Tensor) -> Tensor:
        """Returns the weight ``(T, 1)`` of each embedding ``(T, E)`` for the target's ``(T, E)`` beside it."""
        features = torch.cat([embeddings, beside, embeddings - beside, embeddings * beside], dim=1)
        weights: Tensor = self.score(F.relu(self.hidden(features)))
        return weights


class SequencePooling(nn.Module):
    """Pools the embeddings of every feature of an ``EmbeddingCollection``.

    Args:
        feature_names: The features, in the order of the output.
        configs: The tables.
        attention: For a sequence that is pooled by :class:`TargetAttention`, the feature that is its target. Other
            features are pooled by their mean, a feature with one id a row among them.
        device: Device of the parameters; ``meta`` is allowed.

    Raises:
        ValueError: If there is no such feature, or a sequence and its target have different embedding dimensions.
    """

    def __init__(
        self,
        feature_names: Sequence[str],
        configs: Sequence[BaseEmbeddingConfig],
        attention: Mapping[str, str],
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.feature_names, self.targets = tuple(feature_names), dict(attention)
        dims = {name: config.embedding_dim for config in configs for name in config.feature_names}
        for sequence, target in self.targets.items():
            for name in (sequence, target):
                if name not in dims:
                    hint = nearest(name, list(dims), "'{}'")
                    raise ValueError(f"attention: expected some of the features {list(dims)}, found {name!r}{hint}")
            if dims[sequence] != dims[target]:
                raise ValueError(
                    f"attention: '{sequence}' has {dims[sequence]} columns and its target '{target}' {dims[target]}; "
                    "expected the same number"
                )
        # A name may have a dot, which a module's name may not.
        self._units = {name: f"unit_{number}" for number, name in enumerate(self.targets)}
        for name, unit in self._units.items():
            self.add_module(unit, TargetAttention(dims[name], device))

    def unit(self, name: str) -> TargetAttention:
        """Returns the attention of a sequence."""
        unit = self.get_submodule(self._units[name])
        assert isinstance(unit, TargetAttention)
        return unit

    def forward(self, embeddings: Mapping[str, JaggedTensor]) -> list[Tensor]:
        """Returns a pooled embedding ``(B, dim)`` for every feature."""
        pooled = []
        for name in self.feature_names:
            found = embeddings[name]
            if name in self.targets:
                target = embeddings[self.targets[name]]
                pooled.append(self.unit(name)(found.values(), found.lengths(), mean_of_sequences(target)))
            else:
                pooled.append(mean_of_sequences(found))
        return pooled


def mean_of_sequences(embeddings: JaggedTensor) -> Tensor:
    """Returns the mean ``(B, D)`` of each row's embeddings; that of a row without any is zero."""
    return torch.segment_reduce(embeddings.values(), "mean", lengths=embeddings.lengths(), unsafe=True, initial=0)
