"""The status of a search or a race, read from its journal while it runs or afterwards."""

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from nasrec_torchrec.runs import names
from nasrec_torchrec.search.race_warnings import race_warnings
from nasrec_torchrec.search.storage import WORKERS, open_storage
from nasrec_torchrec.search.workers import died_here
from nasrec_torchrec.spans import seconds_of, span


@dataclass(frozen=True)
class WorkerStatus:
    """A process that takes part.

    Args:
        name: its name in the journal.
        claims: what it works on.
        seconds: seconds since it took that; None if it works on nothing.
    """

    name: str
    claims: tuple[str, ...]
    seconds: float | None

    def __str__(self) -> str:
        doing = ", ".join(claim if len(claim) <= 40 else f"{claim[:39]}…" for claim in self.claims)
        return f"worker {self.name[:8]}: " + (f"{doing}, for {span(self.seconds or 0)}" if doing else "between two")


@dataclass(frozen=True)
class StudyStatus:
    """The status of a search or a race.

    Args:
        folder: its folder.
        kind: what it is.
        state: ``ended`` if it has written the results of all trials, and no worker has begun since; ``running`` if a
            worker on this machine takes part; else ``stopped``, or run by workers on other machines alone.
        finished: number of trials that came to their end.
        stopped_early: number of trials that were given up.
        failed: number of trials whose loss is not a number.
        running: number of trials that are in work or wait.
        total: number of trials of the whole search; None if that depends on the budget.
        best: lowest validation loss so far; None before the first one.
        title: the trial that has it.
        seconds_left: seconds that are left, by the budget or at the rate so far; None if it is not running.
        workers: processes on this machine that take part.
        warnings: what went wrong with the data and the trainings, with what to do about it.
    """

    folder: Path
    kind: Literal["search", "race"]
    state: Literal["running", "ended", "stopped"]
    finished: int
    stopped_early: int
    failed: int
    running: int
    total: int | None
    best: float | None
    title: str
    seconds_left: float | None
    workers: tuple[WorkerStatus, ...]
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        of = "" if self.total is None else f" of {self.total:,}"
        done = self.finished + self.stopped_early + self.failed
        parts = [f"{self.stopped_early:,} given up"] * bool(self.stopped_early)
        parts += [f"{self.failed:,} failed"] * bool(self.failed) + [f"{self.running:,} in work"] * bool(self.running)
        left = "" if self.seconds_left is None else f", {span(self.seconds_left)} left"
        details = f" ({', '.join(parts)})" if parts else ""
        lines = [f"{self.folder}: {self.kind}, {self.state}, {done:,}{of} trials{details}{left}"]
        if self.best is not None:
            lines.append(f"  best validation loss so far {self.best:.5f}: {self.title}")
        lines += [f"  {worker}" for worker in self.workers]
        return "\n".join([*lines, *(f"  warning: {message}" for message in self.warnings)])


def read_study_status(folder: Path) -> StudyStatus | None:
    """Reads the journal in a folder.

    Args:
        folder: folder of a search or a race.

    Returns:
        The status; None if there is no journal. The trials of a search in a database are shown by its tools.

    Raises:
        ValueError: If the journal is damaged.
    """
    found = next((name for name in (names.JOURNAL, names.RACE_JOURNAL) if (folder / name).exists()), None)
    if found is None:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = open_storage(folder / found)
    studies = optuna.get_all_study_names(storage)
    own = next((name for name in studies if not name.endswith(WORKERS)), None)
    if own is None:
        return None
    study = optuna.load_study(study_name=own, storage=storage)
    trials = study.get_trials(deepcopy=False)
    others = []
    if own + WORKERS in studies:
        others = optuna.load_study(study_name=own + WORKERS, storage=storage).get_trials(deepcopy=False)
    workers = _workers(others)
    settings = _settings(folder)
    race = found == names.RACE_JOURNAL
    count = {state: sum(trial.state is state for trial in trials) for state in TrialState}
    done = count[TrialState.COMPLETE] + count[TrialState.PRUNED] + count[TrialState.FAIL]
    total = settings.get("trials") if race else study.user_attrs.get("evaluations")
    ended = _ended(folder / names.RESULTS, total, _began(others))
    left = None
    if workers and not ended:
        spent = _spent(study) if race else sum(_seconds(trial) for trial in trials) / len(workers)
        left = _of_budget(spent, settings) if race and not total else _at_this_rate(spent, done, total)
    best = min(((loss, trial.number) for trial in trials for loss in _losses(trial)), default=None)
    return StudyStatus(
        folder,
        "race" if race else "search",
        "ended" if ended else "running" if workers else "stopped",
        count[TrialState.COMPLETE],
        count[TrialState.PRUNED],
        count[TrialState.FAIL],
        count[TrialState.RUNNING],
        total,
        None if best is None else best[0],
        "" if best is None else trials[best[1]].user_attrs.get("title", f"trial {best[1]}"),
        left,
        workers,
        _warnings(study, trials),
    )


def _warnings(study: optuna.Study, trials: list[FrozenTrial]) -> tuple[str, ...]:
    """What the journal knows of what went wrong."""
    known = [(trial.user_attrs.get("title", ""), trial.user_attrs.get("warnings", {})) for trial in trials]
    return tuple(race_warnings(study.user_attrs.get("warnings", ()), known))


def _losses(trial: FrozenTrial) -> list[float]:
    """Validation losses of a trial that counts."""
    if trial.state is TrialState.FAIL:
        return []
    reached = list(trial.intermediate_values.values())
    return reached or (trial.values[:1] if trial.state is TrialState.COMPLETE and trial.values else [])


def _workers(messages: list[FrozenTrial]) -> tuple[WorkerStatus, ...]:
    running = [message for message in messages if message.state is TrialState.RUNNING]
    found = []
    for message in _registered(messages):
        name = message.user_attrs["worker"]
        claims = [message for message in running if message.user_attrs.get("by") == name]
        starts = [message.datetime_start for message in claims if message.datetime_start is not None]
        since = None if not starts else (datetime.now() - min(starts)).total_seconds()
        found.append(WorkerStatus(name, tuple(str(message.user_attrs["claim"]) for message in claims), since))
    return tuple(found)


def _registered(messages: list[FrozenTrial]) -> list[FrozenTrial]:
    """The messages by which the workers that take part have said so."""
    running = [message for message in messages if message.state is TrialState.RUNNING]
    return [one for one in running if "worker" in one.user_attrs and not died_here(one.user_attrs["worker"])]


def _began(messages: list[FrozenTrial]) -> float:
    """When the newest worker has begun, in seconds since 1970; 0 if there is none."""
    starts = [one.datetime_start for one in _registered(messages) if one.datetime_start is not None]
    return max((start.timestamp() for start in starts), default=0.0)


def _settings(folder: Path) -> dict[str, Any]:
    """The flags of the search, if it was started as a program."""
    try:
        found = yaml.safe_load((folder / names.CONFIG).read_text())
    except (OSError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _ended(results: Path, total: int | None, began: float) -> bool:
    """Whether the results are those of all trials, and no worker has begun since they were written."""
    try:
        evaluated = json.loads(results.read_text()).get("evaluated")
        # A search that was asked to end has written what it had. Its results are older than the workers that resume it.
        return results.stat().st_mtime >= began and (total is None or evaluated is None or evaluated >= total)
    except (OSError, ValueError):
        return False


def _spent(study: optuna.Study) -> float:
    """The seconds of a race, those of earlier processes included."""
    started = study.user_attrs.get("started")
    return float(study.user_attrs.get("seconds", 0.0)) or (time.time() - started if started else 0.0)


def _seconds(trial: FrozenTrial) -> float:
    """The seconds that a candidate took."""
    return 0.0 if trial.duration is None else trial.duration.total_seconds()


def _of_budget(spent: float, settings: dict[str, Any]) -> float | None:
    budget = seconds_of(str(settings.get("budget", "")))
    return None if budget is None else max(0.0, budget - spent)


def _at_this_rate(spent: float, done: int, total: int | None) -> float | None:
    return max(0, total - done) * spent / done if total and done else None
