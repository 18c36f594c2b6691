"""Trains NASRecNets from scratch, or a baseline to compare with, and keeps the best."""

import json
from dataclasses import replace
from pathlib import Path

from nasrec_torchrec import PUBLISHED, Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.splits import SPLITS
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.runs.files import read_text
from nasrec_torchrec.runs.paths import to_path
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trials import Splits, Unreadable, train_best


def main(
    data: Path,
    out: Path,
    config: TrainConfig,
    baseline: Baseline,
    architecture: str | None = None,
    use_layernorm: bool = False,
    embedding_dim: int | None = None,
    learning_rates: tuple[float, ...] = (),
    seeds: tuple[int, ...] = (),
) -> None:
    """Trains over all processes that the launcher started, and keeps what does best on the validation split.

    With several architectures or learning rates each pair is one trial, repeated with every seed. The pair of the
    lowest mean validation log loss wins; its best seed, at its best epoch, becomes the run's checkpoint.
    metrics.json lists all trials, with test metrics that took no part in the choice.

    Args:
        data: prepared data set.
        out: run folder; receives the logs, TensorBoard files, the checkpoint and metrics.json.
        architecture: JSON file of an architecture or a folder of them, the name of a published one such as
            criteo-small, or a baseline: dlrm, dcn, deepfm or mlp; unset, the kind says which.
        use_layernorm: normalise after each linear of a NASRecNet.
        embedding_dim: of all tables; unset, as the data set's schema says.
        learning_rates: to try, instead of the one learning_rate.
        seeds: to repeat every trial with, instead of the one seed.
    """
    schema = load_schema(data, embedding_dim)
    interactions: list[Architecture | Baseline | Unreadable]
    if architecture is None or architecture in BASELINES:
        interactions = [replace(baseline, kind=architecture or baseline.kind)]
    elif architecture in PUBLISHED:
        interactions = [PUBLISHED[architecture]]
    else:
        path = to_path(architecture)
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        interactions = [_read(file) for file in files]
    models = [
        interaction if isinstance(interaction, Unreadable) else ModelDescription(schema, interaction, use_layernorm)
        for interaction in interactions
    ]
    with process_group() as device:
        best = train_best(
            models,
            learning_rates or (config.learning_rate,),
            seeds or (config.seed,),
            config,
            out,
            device,
            Splits(*(open_split(data, split) for split in SPLITS)),
        )
    if best is not None:
        print(json.dumps(best))


def _read(file: Path) -> Architecture | Unreadable:
    try:
        return Architecture.from_json(read_text(file))
    except ValueError as error:
        return Unreadable(file.name, f"{file}: {error}")


if __name__ == "__main__":
    run(main)
