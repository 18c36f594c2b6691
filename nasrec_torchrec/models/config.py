"""Descriptions of baselines. Importing this module does not import PyTorch."""

from dataclasses import dataclass
from typing import Literal, get_args

BaselineKind = Literal["dlrm", "dcn", "deepfm", "mlp", "finalnet", "finalmlp", "masknet", "gdcn", "wukong"]
BASELINES: tuple[BaselineKind, ...] = get_args(BaselineKind)


@dataclass(frozen=True)
class Baseline:
    """A model with a fixed structure to compare with.

    Args:
        kind: ``dlrm`` (TorchRec's DLRM), ``dcn`` (TorchRec's DLRM_DCN, which is DCN-V2 with low-rank cross layers),
            ``deepfm`` (an MLP and a factorization machine), ``mlp``, ``finalnet`` (two stacks of factorized
            interactions), ``finalmlp`` (two MLPs and a bilinear fusion), ``masknet`` (instance-guided masks), ``gdcn``
            (gated cross layers and an MLP) or ``wukong`` (factorization machine blocks and an MLP). All but the first
            two and wukong read the dense features and all embeddings side by side.
        dense_layers: Layer widths of the MLP over the dense features of dlrm and dcn. The last one must be the
            embedding dimension.
        over_layers: Layer widths of the MLP before the logit, of each stack of finalnet and finalmlp, or of the blocks
            of masknet. The last one must be 1.
        cross_layers: Number of cross layers of dcn and gdcn.
        cross_rank: Rank of the cross layers of dcn.
        batch_norm: Whether finalnet normalizes batches, as in its published recipes, instead of layers.

    Raises:
        ValueError: If the kind is unknown, a width is not positive, ``over_layers`` does not end in 1, or a model of
            the last five kinds has no other layer.
    """

    kind: BaselineKind = "dlrm"
    dense_layers: tuple[int, ...] = (64, 16)
    over_layers: tuple[int, ...] = (128, 64, 1)
    cross_layers: int = 3
    cross_rank: int = 64
    batch_norm: bool = False

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
        if self.kind in BASELINES[4:] and len(self.over_layers) < 2:
            raise ValueError(f"over_layers: {self.kind} needs a layer before the last one, found {self.over_layers}")
