"""Which columns the models of a race may read: those that are added to the data's own, and those to leave out."""

import fcntl
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from nasrec_torchrec.datasets.buckets import buckets_of
from nasrec_torchrec.datasets.crosses import add_crosses
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.row_weights import row_weights
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.metrics.click_metrics import centered, predict
from nasrec_torchrec.models.description import ClickModel
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.book import Book
from nasrec_torchrec.search.race.chance import accepted_sets, eligible
from nasrec_torchrec.search.race.columns import droppable
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.features import Ranked, Ranking, proposed, rank_features
from nasrec_torchrec.search.race.situation import Situation
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.trial import Entry, trial_folder
from nasrec_torchrec.search.workers import Worker
from nasrec_torchrec.training.column_importance import column_importances

# Rows that are scored to find out which columns matter, over all columns.
_IMPORTANCE_ROWS = 500_000
# How often a model is looked for, and the seconds in between, while other workers replace or drop its checkpoint.
_ATTEMPTS, _PAUSE = 10, 0.2


class ColumnChoice:
    """What has been found out about columns so far, and the data with those that were added.

    All workers of a race find the same, since the one that is first writes its finding into the book.

    Args:
        data: the data without added columns.
        out: run folder of the race, which receives copies of the data with them.
        config: configuration of the race.
        book: trials and findings of all workers.
        say: tells the user something.
    """

    def __init__(self, data: RaceData, out: Path, config: RaceConfig, book: Book, say: Callable[[str], None]) -> None:
        self.data, self.combinations = data, 0
        self._out, self._config, self._book, self._say = out, config, book, say
        self._buckets = _missing_buckets(data.base) if config.features else []
        # Sets of columns that models may do without; None until a model has told.
        self._droppable: list[tuple[str, ...]] | None = None if config.drop_columns else []
        self._rankings: list[tuple[Ranked, ...]] = []
        self._left_out: list[Ranked] = []

    def add_buckets(self) -> None:
        """Adds the buckets of dense features to the data, before any model is trained."""
        self._add(self._buckets)

    def proposals(self) -> dict[str, Any]:
        """Returns what a planner may propose, as the arguments of a :class:`Situation`."""
        features = [proposed(found) for found in self._rankings if found]
        return {
            "features": [[feature.name for feature in found] for found in features],
            "crosses": [feature.name for found in features for feature in found if feature.ids != "history"],
            "combinations": self.combinations,
            "buckets": [feature.name for feature in self._buckets],
            "droppable": self._droppable or (),
        }

    def suspicious(self) -> dict[str, Any]:
        """Returns the histories that know too much: those in use, and those that were left out for it."""
        added = [ranked for found in self._rankings for ranked in found]
        return {"certain": [asdict(r) for r in added if r.certain_rows], "left_out": [*map(asdict, self._left_out)]}

    def find(self, worker: Worker, situation: Situation) -> bool:
        """Finds out what can be found out now, by the models that are trained.

        Returns:
            Whether there was anything to find out.
        """
        # Only models with the best recipe tell which columns are worth something.
        if self._config.phase(situation.spent) == "recipes" or not any(entry.measured for entry in situation.entries):
            return False
        if self._droppable is None:
            self._find_droppable(worker)
            return True
        if self._wants_features(situation):
            self._find_features(worker)
            return True
        return False

    def _best_model(self, may_win: Callable[[Sequence[Entry]], list[Entry]]) -> tuple[Entry, ClickModel]:
        """Returns the best measured trial of those that may win, and its model."""
        attempts = _ATTEMPTS
        while True:
            best = min(may_win([e for e in self._book.entries() if e.measured]), key=lambda entry: entry.loss)
            try:
                return best, load_model(trial_folder(self._out, best.number))[1]
            except ValueError:
                # Another worker has trained it further meanwhile, or dropped it because others are better now.
                attempts -= 1
                if not attempts:
                    raise
                time.sleep(_PAUSE)

    def _find_droppable(self, worker: Worker) -> None:
        """Asks the best model so far which columns models may do without."""

        def rank() -> list[Any]:
            best, model = self._best_model(list)
            files = self.data.open("validation", best.trial)
            rows = _IMPORTANCE_ROWS // max(1, len(files.schema.columns))
            found = column_importances(model, self.data.folder(best.trial), files, 1, rows, center=self.data.centers)
            return [list(names) for names in droppable(found, self.data.base, best.loss)]

        self._droppable = [tuple(names) for names in self._book.recall(worker, "columns", rank)]
        if self._droppable:
            self._say(f"columns that the best model gains nothing from: {', '.join(self._droppable[0])}")

    def _wants_features(self, situation: Situation) -> bool:
        """Returns whether to rank features now: when the best recipe is known, and again after features were added."""
        if not self._config.features:
            return False
        if not self._rankings:
            # By the errors of a model that has the buckets already, if they help.
            buckets = {feature.name for feature in self._buckets}
            tried = (entry for entry in situation.entries if entry.status != "running")
            return not buckets or any(buckets <= set(entry.trial.features) for entry in tried)
        if not self._rankings[-1] or sum(map(len, self._rankings)) >= self._config.max_features:
            return False
        # Again only after some of the newest were accepted, and all of them were tried.
        newest = {feature.name for feature in proposed(self._rankings[-1]) if feature.ids == "history"}
        accepted = accepted_sets(situation.judgements)
        all_tried = any(e.status == "complete" and newest <= set(e.trial.features) for e in situation.entries)
        return all_tried and any(newest & names for names in accepted)

    def _find_features(self, worker: Worker) -> None:
        """Ranks features by the errors of the best model so far, and adds them to a copy of the data."""
        known = [ranked.columns for found in self._rankings for ranked in found]

        def rank() -> list[Any]:
            best, model = self._best_model(partial(eligible, combinations=self.combinations))
            self._say(f"ranking features by the errors of trial {best.number}")
            files = self.data.open("validation", best.trial)
            logits, labels = predict(model, files)
            if self.data.centers:
                logits = centered(logits, labels, row_weights(files))
            most = min((self._config.max_features + 1) // 2, self._config.max_features - len(known))
            found = rank_features(
                *(self.data.folders[-1], self.data.base, logits.numpy(), most),
                self._config.candidate_features,
                self._config.reversed_features,
            )
            return replace(found, chosen=tuple(r for r in found.chosen if r.columns not in known)).to_json()

        name = f"features {len(self._rankings)}"
        ranking = Ranking.from_json(self._book.recall(worker, name, rank))
        self._rankings.append(ranking.chosen)
        self.combinations += ranking.combinations
        left_out = {ranked.columns for ranked in self._left_out}
        self._left_out += [ranked for ranked in ranking.left_out if ranked.columns not in left_out]
        if not ranking.chosen:
            return
        self._add([*self._buckets, *(feature for found in self._rankings for feature in proposed(found))])
        for ranked in ranking.chosen:
            self._say(f"feature {' x '.join(ranked.columns)}: its history would save {ranked.gain:.5f} of log loss")

    def _add(self, features: Sequence[SparseFeature]) -> None:
        """Adds features to a copy of the data, unless there are none; several workers wait for the one that does it."""
        if not features:
            return
        folder = self._out / f"{names.RACE_DATA}-{len(self._rankings)}"
        with folder.with_name(f".{folder.name}.lock").open("w") as crossing:
            fcntl.flock(crossing, fcntl.LOCK_EX)
            add_crosses(self.data.folders[0], folder, features)
        self.data = replace(self.data, folders=(*self.data.folders, folder))


def _missing_buckets(schema: Schema) -> list[SparseFeature]:
    """Returns the buckets of all dense features that the data has none of."""
    have = {feature.cross[0] for feature in schema.sparse if feature.ids == "buckets"}
    found = [buckets_of(dense.name) for dense in schema.dense if dense.name not in have]
    return [feature for feature in found if feature.name not in schema.feature_names]
