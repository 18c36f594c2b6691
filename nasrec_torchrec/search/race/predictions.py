"""What trained models of a race predict for the rows of a split."""

from pathlib import Path

from torch import Tensor

from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.metrics.click_metrics import predict as predict_rows
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.models.stored_trees import TreeRecord, read_record
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.tree import predict_tree, tree_folders
from nasrec_torchrec.search.race.trial import Entry, trial_folder


class Predictions:
    """Logits of trials and trees for the rows of a split, computed once.

    Args:
        data: the rows.
        out: run folder of the race.
        best: number of the winner, whose files may be in the run folder already.
    """

    def __init__(self, data: RaceData, out: Path, best: int) -> None:
        self.data, self.out, self.best = data, out, best
        self._known: dict[tuple[int | str, str], tuple[Tensor, Tensor, Tensor | None]] = {}

    def folder(self, entry: Entry) -> Path:
        """Returns where the checkpoint of a trial is, if it still has one."""
        folder = trial_folder(self.out, entry.number)
        return self.out if entry.number == self.best and not (folder / names.CHECKPOINTS).exists() else folder

    def exist(self, entry: Entry) -> bool:
        """Returns whether the trial still has a checkpoint."""
        return (self.folder(entry) / names.CHECKPOINTS).exists()

    def of(self, entry: Entry, split: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns logits, labels and, if rows have them, weights ``(N,)``."""
        if (key := (entry.number, split)) not in self._known:
            files = self.data.open(split, entry.trial)
            self._known[key] = *predict(self.folder(entry), files), row_weights(files)
        return self._known[key]

    def trees(self, best: Entry) -> dict[Path, TreeRecord]:
        """Returns the records, by folder, of the yardstick and of a tree that was trained on the winner's columns."""
        found = {folder: record for folder in tree_folders(self.out) if (record := read_record(folder)) is not None}
        _, beside = tree_folders(self.out)
        if beside in found and found[beside].columns != self.data.schema(best.trial):  # of an earlier winner
            del found[beside]
        return found

    def of_tree(self, folder: Path, best: Entry, split: str) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns the same as :meth:`of` for one of the :meth:`trees`."""
        if (key := (folder.name, split)) not in self._known:
            yardstick, _ = tree_folders(self.out)
            own = folder == yardstick
            files = open_split(self.data.folders[0], split) if own else self.data.open(split, best.trial)
            self._known[key] = predict_tree(folder, files)
        return self._known[key]


def predict(run_dir: Path, files: ClickFiles) -> tuple[Tensor, Tensor]:
    """Logits of a trained model for the rows of a split, and their labels."""
    _, model = load_model(run_dir)
    return predict_rows(model, files)
