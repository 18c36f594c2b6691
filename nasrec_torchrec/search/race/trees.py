"""The trees of a race: the yardstick of all trials, and one that predicts beside the winner."""

from collections.abc import Callable
from pathlib import Path

from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.models.boosted_trees import columns_of_trees
from nasrec_torchrec.models.stored_trees import read_record, trees_are_installed
from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.training import RaceData
from nasrec_torchrec.search.race.tree import train_tree, tree_folders
from nasrec_torchrec.search.race.trial import Entry
from nasrec_torchrec.search.workers import Worker
from nasrec_torchrec.training.drift import decisive

# Share of the budget that the yardstick may take.
_SHARE = 0.06
# A tree of the winner's columns may take this many times the seconds of the yardstick. With added features it has
# needed .16 to .50 of them, since a history says what takes hundreds of trees without it.
_SLACK, _SLACK_WITH_FEATURES = 1.2, 0.6


class RaceTrees:
    """Trains the trees, and says how long they take.

    Args:
        config: how the budget is spent.
        out: folder of the race.
        schema: schema of the data without added features.
        now: clock of the race.
        say: tells people.

    Raises:
        ValueError: If trees are asked for and LightGBM is not installed.
    """

    def __init__(
        self, config: RaceConfig, out: Path, schema: Schema, now: Callable[[], float], say: Callable[[str], None]
    ) -> None:
        self._config, self._out, self._schema, self._now, self._say = config, out, schema, now, say
        self.wanted = trees_are_installed() if config.trees is None else config.trees
        if self.wanted and not trees_are_installed():
            raise ValueError("trees: LightGBM is not installed; install nasrec-torchrec[trees], or choose false")
        if self.wanted and not columns_of_trees(schema)[0]:
            say("no yardstick: trees read numbers and single ids, and this data has neither")
            self.wanted = False

    @property
    def missing(self) -> bool:
        """Whether there is no yardstick yet, although one is wanted."""
        return self.wanted and read_record(self._out / names.RACE_TREE) is None

    def grow(self, worker: Worker, data: RaceData) -> None:
        """Trains the yardstick, unless another worker does."""
        if not self.wanted or (claim := worker.claim(names.RACE_TREE)) is None:
            return
        try:
            seconds = _SHARE * self._config.budget_seconds if self._config.trials is None else None
            tree = train_tree(
                *(data.folders[0], self._schema, self._out / names.RACE_TREE, seconds, self._config.seed), self._now
            )
        finally:
            worker.release(claim)
        loss = decisive(tree.validation[0], data.monitor)
        self._say(f"LightGBM, the yardstick: {loss:.5f} with {tree.recipe}, {tree.seconds:.0f} s")

    def grow_beside(self, best: Entry, data: RaceData) -> None:
        """Trains a tree of the winner's columns, if they are others than the yardstick's, to predict with networks."""
        if not self.beside(best):
            return
        schema = data.schema(best.trial)
        if not columns_of_trees(schema)[0]:  # the winner does without all that trees read
            return
        _, folder = tree_folders(self._out)
        seconds = None if self._config.trials is not None else max(1.0, self.seconds_beside(best))
        train_tree(data.folder(best.trial), schema, folder, seconds, self._config.seed, self._now)

    def beside(self, best: Entry) -> bool:
        """Returns whether the winner can predict with a tree, and has other columns than the yardstick."""
        together = self.wanted and self._config.ensemble > 1 and not self._config.final_fit
        return together and bool(best.trial.features or best.trial.dropped)

    def seconds_beside(self, best: Entry) -> float:
        """Returns how long a tree of the winner's columns may take."""
        if (yardstick := read_record(tree_folders(self._out)[0])) is None:
            return _SHARE * self._config.budget_seconds
        return yardstick.seconds * (_SLACK_WITH_FEATURES if best.trial.features else _SLACK)
