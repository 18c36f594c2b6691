"""Distillation: a model learns from what trained models predict for its training rows, besides from the clicks.

The source is Hinton et al., "Distilling the knowledge in a neural network" (arXiv 1503.02531), here with the mean
probability of the teachers at temperature 1, whose cross-entropy is that of a label between 0 and 1.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nasrec_torchrec.datasets.checksums import sha256
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.soft_labels import SoftLabels
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.metrics.click_metrics import predict
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.stored_trees import load_member, read_record
from nasrec_torchrec.runs.checkpoint import kept_checkpoint
from nasrec_torchrec.runs.files import atomic_path, local_copy, read_json, read_text, write_text
from nasrec_torchrec.runs.fingerprint import digest
from nasrec_torchrec.runs.names import DIGESTS


@dataclass(frozen=True)
class _Record:
    """What stored probabilities are: of which teachers, for which rows, and the checksum of their file."""

    teachers: list[str]
    rows: str
    sha256: str


@dataclass(frozen=True)
class Teachers:
    """Trained models, by whose mean prediction a model is taught.

    Args:
        folders: run folders of trainings, or folders of trees, one at least.
        share: weight of the mean prediction beside the labels, above 0 and at most 1.
        rows: training rows, with all columns that the teachers read; the student may read fewer.

    Raises:
        ValueError: If the share is out of its range.
    """

    folders: tuple[Path, ...]
    share: float
    rows: ClickFiles

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"teacher_share: expected a number above 0 and at most 1, found {self.share}")

    def inputs(self) -> dict[str, Any]:
        """Returns what a training that they teach depends on, as JSON values."""
        return {"teachers": [_identity(folder) for folder in self.folders], "teacher_share": self.share}

    @torch.inference_mode()
    def soft_labels(self, out: Path) -> SoftLabels:
        """Returns what they predict for the training rows.

        It is computed once, by this process, and kept with a record of the models and the rows, so that a training that
        was killed resumes with the same numbers.

        Args:
            out: NumPy file that receives the probabilities; the record has the same name with ``.json``.

        Raises:
            ValueError: If a teacher cannot be read, or was trained on data of another preparation.
        """
        wanted = [_identity(folder) for folder in self.folders], self.rows.digest
        known = _record(out)
        if known is not None and (known.teachers, known.rows) == wanted:
            return SoftLabels(out, known.sha256, self.share, len(self.rows))
        logits = []
        for folder in self.folders:
            schema, dictionaries, model = load_member(folder)
            if schema.tasks:
                raise ValueError(
                    f"teachers: expected models of one label, found {', '.join(schema.labels)} in {folder}"
                )
            # What a model of these columns may read; which model it is makes no difference.
            described = ModelDescription(schema, Baseline(), dictionaries=tuple(dictionaries.items()))
            found, _ = predict(model, described.read(self.rows))
            logits.append(found.double())
        # Where rows without a click were left out, clicks are likelier among the rows that were kept.
        probabilities = torch.sigmoid(mean_prediction(logits) + self.rows.log_odds_added).float()
        with atomic_path(out) as temporary, temporary.open("wb") as opened:
            np.save(opened, probabilities.numpy())
        made = SoftLabels(out, sha256(local_copy(out)), self.share, len(self.rows))
        write_text(out.with_suffix(".json"), json_text(vars(_Record(*wanted, made.sha256))))
        return made


def stored_soft_labels(out: Path, share: float) -> SoftLabels | None:
    """Returns what :meth:`Teachers.soft_labels` has written, whether or not the teachers still exist.

    Args:
        out: NumPy file of the probabilities.
        share: their weight beside the labels.

    Returns:
        SoftLabels | None: None if they are not there, or not those that were written.
    """
    known = _record(out)
    return None if known is None else SoftLabels(out, known.sha256, share, len(np.load(out, mmap_mode="r")))


def _record(out: Path) -> _Record | None:
    record = out.with_suffix(".json")
    if not record.exists():
        return None
    known = read_json(record, _Record, "remove it to score the rows again")
    return known if out.exists() and sha256(local_copy(out)) == known.sha256 else None


def _identity(folder: Path) -> str:
    """Returns what tells a trained model from others, wherever it is."""
    if (trees := read_record(folder)) is not None:
        return trees.sha256
    return digest(read_text(kept_checkpoint(folder) / DIGESTS))
