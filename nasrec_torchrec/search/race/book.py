"""Where a race keeps its trials: an Optuna study, which outlives killed processes and which workers share."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from nasrec_torchrec.finite import finite
from nasrec_torchrec.runs import names
from nasrec_torchrec.runs.redaction import redact
from nasrec_torchrec.search.race.trial import Entry, Status, Trial, trial_folder
from nasrec_torchrec.search.storage import WORKERS, open_storage, open_study
from nasrec_torchrec.search.workers import Worker

_STUDY = "race"
_MINIMIZED = "validation loss"


class Book:
    """The trials of a race.

    An entry is one trial of the study: its intermediate values are the validation losses after every epoch, its
    parameters the recipe, its times of start and end those of the training. A second study, ``race.workers``, is how
    workers agree who trains what.

    Args:
        storage: a journal file or a database's URL.
        settings: JSON values that all trials of a race have in common.
        from_scratch: whether to delete the trials in the storage first.

    Raises:
        ValueError: If the storage cannot be opened, or holds a race of other settings.
    """

    def __init__(self, storage: str | Path, settings: dict[str, Any], from_scratch: bool = False) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = open_storage(storage)
        self._study, differing = open_study(self._storage, _STUDY, settings, [_MINIMIZED], from_scratch)
        if differing:
            raise ValueError(
                f"{redact(str(storage))}: holds a race with another {', '.join(differing)}; choose another --out, or "
                "--resume never to start from scratch"
            )
        if "started" not in self._study.user_attrs:
            self._study.set_user_attr("started", time.time())

    def worker(self) -> Worker:
        """This process among those that take part; to be used as a context."""
        return Worker(self._storage, _STUDY + WORKERS)

    def recall(self, worker: Worker, key: str, compute: Callable[[], list[Any]]) -> list[Any]:
        """JSON values that are computed once in a race, by whoever needs them first."""
        return worker.agree(key, compute)

    def entries(self) -> list[Entry]:
        """Returns all trials in the order of their proposal."""
        return [_entry(trial) for trial in self._trials()]

    def add(self, worker: Worker, number: int, trial: Trial) -> None:
        """Records a new trial under the next number, unless another worker has proposed one for it meanwhile."""
        agreed = Trial.from_dict(worker.agree(f"trial {number}", lambda: [trial.to_dict()])[0])
        claim = worker.claim(f"add {number}")
        if claim is None:
            return
        try:
            if len(self._trials()) == number:
                parameters, distributions = _parameters(agreed)
                template = create_trial(
                    state=TrialState.RUNNING,
                    params=parameters,
                    distributions=distributions,
                    user_attrs={"trial": agreed.to_dict(), "title": agreed.title, "status": "running"},
                )
                self._storage.create_new_trial(self._study._study_id, template_trial=template)
        finally:
            worker.release(claim)

    def begin(self, number: int, until: int) -> None:
        """A trial is to be trained up to an epoch."""
        identity = self._trials()[number]._trial_id
        self._storage.set_trial_user_attr(identity, "until", until)
        self._storage.set_trial_user_attr(identity, "status", "running")

    def record(self, number: int, epoch: int, loss: float, auc: float, seconds: float) -> None:
        """An epoch of a trial is over; nothing happens when it is known already."""
        trial = self._trials()[number]
        if epoch in trial.intermediate_values:
            return
        self._storage.set_trial_user_attr(trial._trial_id, f"epoch {epoch}", finite([auc, seconds]))
        self._storage.set_trial_intermediate_value(trial._trial_id, epoch, loss)

    def note(self, number: int, **facts: Any) -> None:
        """JSON values to remember of a trial."""
        identity = self._trials()[number]._trial_id
        for name, value in facts.items():
            self._storage.set_trial_user_attr(identity, name, finite(value))

    def settle(self, number: int, status: Status) -> None:
        """A trial is not trained any further for now, or for good."""
        trial = self._trials()[number]
        if trial.state.is_finished():
            return
        self._storage.set_trial_user_attr(trial._trial_id, "status", status)
        if status == "complete":
            self._storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [_entry(trial).loss])
        elif status == "failed":
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def close(self) -> None:
        """The race is over: paused trials become pruned ones."""
        for trial in self._trials():
            if not trial.state.is_finished() and trial.intermediate_values:
                self._storage.set_trial_state_values(trial._trial_id, TrialState.PRUNED, [_entry(trial).loss])

    def stored(self, out: Path) -> Callable[[Entry], bool]:
        """Returns what tells whether a trial still has a checkpoint, be it in its own folder or moved to the race's."""
        moved = self._study.user_attrs.get("moved")
        return lambda entry: entry.number == moved or (trial_folder(out, entry.number) / names.CHECKPOINTS).exists()

    def move(self, number: int) -> None:
        """A trial's checkpoint is to be moved to the folder of the race."""
        self._study.set_user_attr("moved", number)

    def warn(self, warnings: Sequence[str]) -> None:
        """Records warnings about the data, for whoever looks at the race while it runs."""
        if warnings:
            self._study.set_user_attr("warnings", list(warnings))

    def spend(self, seconds: float) -> None:
        """Tells how long the race has run in all, without the time between a kill and the next start."""
        self._study.set_user_attr("seconds", round(max(seconds, self.seconds()), 3))

    def seconds(self) -> float:
        """See :meth:`spend`."""
        return float(self._study.user_attrs.get("seconds", 0.0))

    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)


_OTHER = ("trial", "title", "status")


def _entry(trial: FrozenTrial) -> Entry:
    attributes = trial.user_attrs
    epochs = range(1, len(trial.intermediate_values) + 1)
    facts = {name: value for name, value in attributes.items() if name not in _OTHER and not name.startswith("epoch ")}
    status: Status = attributes["status"]
    return Entry(
        trial.number,
        Trial.from_dict(attributes["trial"]),
        tuple(trial.intermediate_values[epoch] for epoch in epochs),
        tuple(attributes[f"epoch {epoch}"][0] for epoch in epochs),
        tuple(attributes[f"epoch {epoch}"][1] for epoch in epochs),
        status,
        facts,
    )


def _parameters(trial: Trial) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """Returns what Optuna's dashboard shows and ranks."""
    recipe = trial.recipe
    values: dict[str, Any] = {
        "learning_rate": recipe.learning_rate,
        "embedding_l2": recipe.embedding_l2,
        "dropout": recipe.dropout,
    }
    distributions: dict[str, BaseDistribution] = {
        "learning_rate": FloatDistribution(1e-6, 10.0, log=True),
        "embedding_l2": FloatDistribution(0.0, 100.0),
        "dropout": FloatDistribution(0.0, 1.0),
    }
    return values, distributions
