"""Trains NASRecNets from scratch, or TorchRec's DLRM to compare with, and keeps the best."""

import json
from pathlib import Path

from nasrec_torchrec import PUBLISHED, Architecture
from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, load_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.files import read_text
from nasrec_torchrec.models.description import DLRMLayers, ModelDescription
from nasrec_torchrec.training.trainer import TrainConfig
from nasrec_torchrec.training.trials import train_best


def main(
    data: Path,
    out: Path,
    config: TrainConfig,
    baseline: DLRMLayers,
    architecture: str = "dlrm",
    use_layernorm: bool = False,
    learning_rates: tuple[float, ...] = (),
) -> None:
    """Trains over all processes that the launcher started, and keeps what does best on the validation split.

    With several architectures or learning rates each pair is one trial. The best epoch of the best trial becomes the
    run's checkpoint; metrics.json lists all trials.

    Args:
        data: prepared data set.
        out: run folder; receives the logs, TensorBoard files, the checkpoint and metrics.json.
        architecture: JSON file of an architecture or a folder of them, the name of a published one such as
            criteo-small, or dlrm.
        use_layernorm: normalise after each linear of a NASRecNet.
        learning_rates: to try, instead of the one learning_rate.
    """
    schema = load_schema(data)
    interactions: list[Architecture | DLRMLayers]
    if architecture == "dlrm":
        interactions = [baseline]
    elif architecture in PUBLISHED:
        interactions = [PUBLISHED[architecture]]
    else:
        path = Path(architecture)
        files = sorted(path.glob("*.json")) if path.is_dir() else [path]
        interactions = [Architecture.from_json(read_text(file)) for file in files]
    descriptions = [ModelDescription(schema, interaction, use_layernorm) for interaction in interactions]
    with process_group() as device:
        best = train_best(
            descriptions,
            learning_rates or (config.learning_rate,),
            config,
            out,
            device,
            load_split(data, "train"),
            load_split(data, "validation"),
        )
    if best is not None:
        print(json.dumps(best))


if __name__ == "__main__":
    run(main)
