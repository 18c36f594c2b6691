"""Micro-batches need less memory, and train as the whole batch does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema, run_ranks
from torch.distributed._shard.sharded_tensor import ShardedTensor

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
MODELS = {
    "supernet": ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2), use_layernorm=True),
    "nasrecnet": ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3))),
    "dlrm": ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1))),
    "deepfm": ModelDescription(SCHEMA, Baseline("deepfm")),
}
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, full_path_steps=10, log_every=1)


def _train(folder: str, model: str, **changes) -> tuple[list[float], dict[str, torch.Tensor]]:
    """Returns the losses and gradient norms by step, and the weights and states of the optimizers as they end."""
    trainer = Trainer(MODELS[model], replace(CONFIG, **changes), Path(folder), torch.device("cpu"))
    trainer.train(make_click_files(SCHEMA, 500))
    events = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    curve = [event[name] for event in events if event["event"] == "train" for name in ("loss", "gradient_norm")]
    found = dict(trainer.dmp.state_dict())
    for name, state in trainer.step.optimizer.state_dict()["state"].items():
        found |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, torch.Tensor)}
        found |= {f"{name}/{key}": value for key, value in state.items() if isinstance(value, ShardedTensor)}
    return curve, {
        name: value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value
        for name, value in found.items()
    }


@pytest.mark.parametrize(
    "model, optimizer", [*((model, "adagrad") for model in MODELS), ("nasrecnet", "adam"), ("deepfm", "adam")]
)
def test_micro_batches_train_as_the_whole_batch(one_rank, tmp_path: Path, model: str, optimizer: str):
    more = {"optimizer": optimizer, "embedding_l2": 0.01 if optimizer == "adam" else 0.0, "learning_rate": 0.01}
    curve, weights = _train(str(tmp_path / "whole"), model, **more)
    # 40 rows in 3 parts: 14, 13 and 13.
    in_parts, found = _train(str(tmp_path / "parts"), model, **more, accumulate=3)
    assert in_parts == pytest.approx(curve, abs=1e-4) and in_parts != curve
    assert set(found) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3, msg=name)


def test_every_rank_divides_its_rows(tmp_path: Path):
    (alone,) = run_ranks(1, _curve, str(tmp_path / "one"), 1)
    for curve in run_ranks(2, _curve, str(tmp_path / "two"), 4):
        assert curve == pytest.approx(alone, abs=1e-4)


def _curve(folder: str, accumulate: int) -> list[float]:
    return _train(folder, "nasrecnet", accumulate=accumulate, pipeline="base")[0]


def test_more_parts_than_rows_are_refused(one_rank, tmp_path: Path):
    with pytest.raises(ValueError, match=r"accumulate: expected at most the 40 rows .* found 41"):
        _train(str(tmp_path), "dlrm", accumulate=41)
