"""Labels that a model learns from besides the clicks: what trained models predict for the same rows."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SoftLabels:
    """Probabilities that take a share of the place of the labels of a split's first rows.

    Args:
        file: NumPy file of float32 probabilities ``(N,)``, in the order of the rows.
        sha256: its checksum.
        share: weight of the probabilities, above 0 and at most 1; that of the labels is the rest.
        rows: number N of rows that have them; rows behind these keep their labels.
    """

    file: Path
    sha256: str
    share: float
    rows: int

    def mixed(self, labels: Tensor, first: int, order: np.ndarray | None = None) -> Tensor:
        """Returns what takes the place of the labels of consecutive rows.

        Args:
            labels: labels ``(n,)``, 0 or 1, in the given order.
            first: number of the first of these rows, in the order of the split.
            order: the order of the rows; by default that of the split.
        """
        if first >= self.rows:
            return labels
        probabilities = np.load(self.file, mmap_mode="r")[first : first + len(labels)]
        probabilities = probabilities.copy() if order is None else probabilities[order]
        return torch.lerp(labels, torch.from_numpy(probabilities), self.share)
