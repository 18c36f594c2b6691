"""``nasrec status``."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.finite import json_text

if TYPE_CHECKING:
    from nasrec_torchrec.runs.status import RunStatus
    from nasrec_torchrec.search.study_status import StudyStatus


def status(
    folder: Path, /, follow: bool = False, every: float = 10.0, patience: float = 120.0, json: bool = False
) -> None:
    """Prints the status of training runs (steps, loss, rows per second, time left, last checkpoint, restarts) and of
    searches and races (trials, the best loss so far, time left, and what each worker does).

    Args:
        folder: run folder of a training, or of one with several trials; or folder of a search or a race.
        follow: whether to print repeatedly until nothing is running; ``--watch`` is the same.
        every: time in seconds between two prints.
        patience: time in seconds without an event after which a run counts as silent: it was killed, or it hangs.
        json: whether to print one JSON object each time, with what was found in each folder.
    """
    while True:
        found = _found(folder, patience)
        shown = {str(one.folder): asdict(one) | {"folder": str(one.folder)} for one in found}
        print(json_text(shown) if json else "\n".join(map(str, found)), flush=True)
        if not follow or all(one.state != "running" for one in found):
            return
        time.sleep(every)
        if not json:
            print()


def _found(folder: Path, patience: float) -> "list[StudyStatus | RunStatus]":
    """A search or a race with the trainings that are running in it, or the trainings of a folder."""
    from nasrec_torchrec.runs.names import JOURNAL, RACE_JOURNAL, RACE_TRIALS
    from nasrec_torchrec.runs.status import read_status, runs_under

    if any((folder / name).exists() for name in (JOURNAL, RACE_JOURNAL)):
        from nasrec_torchrec.search.study_status import read_study_status

        if (study := read_study_status(folder)) is not None:
            trainings = [read_status(run, patience) for run in runs_under(folder / RACE_TRIALS)]
            running = study.state == "running"
            return [study, *(one for one in trainings if running and one.state == "running")]
    runs = runs_under(folder)
    if not runs:
        raise ValueError(f"{folder}: no log of a training found in it or one level below, and no journal of a search")
    return [read_status(run, patience) for run in runs]


PROGRAM = Program(
    status,
    example="nasrec status runs/model --follow",
    needs_torch=False,
    aliases={"watch": "follow"},
    resume="what it watched goes on",
)
