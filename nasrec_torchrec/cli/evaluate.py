"""``nasrec evaluate``."""

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.finite import json_text
from nasrec_torchrec.training import jobs


def evaluate(
    model: Path, data: Path, split: Literal["train", "validation", "test"] = "test", batch_size: int = 4096
) -> str:
    """Measures a trained model in one process, whatever number of ranks trained it, and prints JSON.

    Args:
        model: run folder of a training.
        data: folder of a prepared data set.
        split: split to measure on.
        batch_size: number of rows in a forward pass.
    """
    return json_text({split: asdict(jobs.evaluate(model, data, split, batch_size))})


PROGRAM = Program(evaluate, example="nasrec evaluate --model runs/model --data DATA --split validation", show=str)
