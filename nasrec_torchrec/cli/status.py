"""``nasrec status``."""

import time
from dataclasses import asdict
from pathlib import Path

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.finite import json_text


def status(
    folder: Path, /, follow: bool = False, every: float = 10.0, patience: float = 120.0, json: bool = False
) -> None:
    """Prints the status of trainings: steps, loss, rows per second, time left, last checkpoint, restarts.

    Args:
        folder: run folder of a training, or of one with several trials.
        follow: whether to print repeatedly until no training is running.
        every: time in seconds between two prints.
        patience: time in seconds without an event after which a run counts as silent: it was killed, or it hangs.
        json: whether to print one JSON object a time, with a run by folder.
    """
    from nasrec_torchrec.runs.status import read_status, runs_under

    while True:
        runs = runs_under(folder)
        if not runs:
            raise ValueError(f"{folder}: no log of a training found in it or one level below")
        found = [read_status(run_dir, patience) for run_dir in runs]
        shown = {str(run.folder): asdict(run) | {"folder": str(run.folder)} for run in found}
        print(json_text(shown) if json else "\n".join(map(str, found)), flush=True)
        if not follow or all(status.state != "running" for status in found):
            return
        time.sleep(every)
        if not json:
            print()


PROGRAM = Program(status, example="nasrec status runs/model --follow", needs_torch=False)
