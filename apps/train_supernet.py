"""Trains a supernet: one model that holds the weights of every architecture of a search space."""

from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer


def main(
    data: Path,
    out: Path,
    space: SearchSpace,
    config: TrainConfig,
    use_layernorm: bool = True,
    embedding_dim: int | None = None,
) -> None:
    """Trains a supernet over all processes that the launcher started.

    Args:
        data: prepared data set.
        out: run folder; receives the log, TensorBoard files and the checkpoint.
        use_layernorm: normalise after each linear, over the width in use.
        embedding_dim: of all tables; unset, as the data set's schema says.
    """
    with process_group() as device:
        description = ModelDescription(load_schema(data, embedding_dim), space, use_layernorm)
        trainer = Trainer(description, config, out, device)
        trainer.train(open_split(data, "train"))


if __name__ == "__main__":
    run(main)
