"""Measures a trained model on a split: AUC, log loss, normalized entropy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.metrics.click_metrics import evaluate
from nasrec_torchrec.models.stored import load_model


def main(
    model: Path, data: Path, split: Literal["train", "validation", "test"] = "test", batch_size: int = 4096
) -> None:
    """Measures a trained model in one process, whatever number of ranks trained it, and prints JSON.

    Args:
        model: run folder of a training.
        data: prepared data set.
        split: which rows.
        batch_size: rows of a forward pass.
    """
    _, trained = load_model(model)
    print(json.dumps({split: asdict(evaluate(trained, open_split(data, split), batch_size))}))


if __name__ == "__main__":
    run(main)
