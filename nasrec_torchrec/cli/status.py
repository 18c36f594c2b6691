"""``nasrec status``."""

import time
from pathlib import Path

from nasrec_torchrec.cli.program import Program


def status(folder: Path, /, follow: bool = False, every: float = 10.0, patience: float = 120.0) -> None:
    """Prints the status of trainings: steps, loss, rows per second, time left, last checkpoint, restarts.

    Args:
        folder: run folder of a training, or of one with several trials.
        follow: whether to print repeatedly until no training is running.
        every: time in seconds between two prints.
        patience: time in seconds without an event after which a run counts as silent: it was killed, or it hangs.
    """
    from nasrec_torchrec.runs.status import read_status, runs_under

    while True:
        runs = runs_under(folder)
        if not runs:
            raise ValueError(f"{folder}: no log of a training found in it or one level below")
        found = [read_status(run_dir, patience) for run_dir in runs]
        print("\n".join(map(str, found)), flush=True)
        if not follow or all(status.state != "running" for status in found):
            return
        time.sleep(every)
        print()


PROGRAM = Program(status, example="nasrec status runs/model --follow", needs_torch=False)
