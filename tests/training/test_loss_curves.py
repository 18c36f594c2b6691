"""Loss curves of small trainings against recorded ones: a change of the training loop must not change its numbers.

On the machine that recorded them (see :func:`platform_key`) every loss, gradient norm and weight is equal to the last
bit; elsewhere, where matrix products round differently, losses agree closely. After a change that is meant to change
numbers, record again: ``PYTHONPATH=tests python tests/training/test_loss_curves.py``.
"""

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema
from torch.distributed._shard.sharded_tensor import ShardedTensor

from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

RECORDED = Path(__file__).with_name("loss_curves.json")
SCHEMA = make_schema()
COMMON = {"batch_size": 32, "log_every": 1, "checkpoint_every": 7, "full_path_steps": 5}


def _architecture(seed: int):
    return SMALL_SPACE.sample(torch.Generator().manual_seed(seed), "any_operator_any_connection")


# The model, and what its training has besides COMMON.
RUNS: dict[str, tuple[ModelDescription, dict[str, Any]]] = {
    "supernet": (ModelDescription(SCHEMA, SMALL_SPACE, use_layernorm=True), {"learning_rate": 0.12}),
    "nasrecnet-adagrad": (ModelDescription(SCHEMA, _architecture(3)), {"learning_rate": 0.1, "epochs": 2}),
    "nasrecnet-adam": (
        ModelDescription(SCHEMA, _architecture(4)),
        {"learning_rate": 0.01, "optimizer": "adam", "embedding_l2": 0.01, "dropout": 0.1, "schedule": "plateau"},
    ),
    "dlrm": (ModelDescription(SCHEMA, Baseline()), {"learning_rate": 0.1, "pipeline": "base", "monitor": "auc"}),
}


def platform_key() -> str:
    """What decides how sums are rounded: the processor, the instructions that torch uses, and torch itself."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    processor = names[0].partition(": ")[2] if names else platform.processor()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__.partition('+')[0]}"


def train(run: str, folder: Path) -> dict[str, Any]:
    """Trains one of the runs, and returns its losses and a digest of the weights as they end."""
    description, options = RUNS[run]
    trainer = Trainer(description, TrainConfig(**COMMON | options), folder, torch.device("cpu"))
    validation = make_click_files(SCHEMA, 200, 2) if run != "supernet" else None
    best = trainer.train(make_click_files(SCHEMA, 384, 1), validation)
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    digest = hashlib.sha256()
    for name, value in sorted(trainer.dmp.state_dict().items()):
        tensor = value.local_shards()[0].tensor if isinstance(value, ShardedTensor) else value
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return {
        "losses": [step["loss"].hex() for step in steps],
        "gradient_norms": [step["gradient_norm"].hex() for step in steps],
        "validation": best and best.log_loss.hex(),
        "weights": digest.hexdigest(),
    }


def _numbers(curve: dict[str, Any]) -> list[float]:
    return [float.fromhex(value) for value in (*curve["losses"], curve["validation"]) if value]


@pytest.mark.parametrize("run", RUNS)
def test_a_training_repeats_the_recorded_curve(one_rank, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: str):
    monkeypatch.setenv("NASREC_ATTENTION", "sdpa")  # is there, and rounds alike, without a C++ compiler too
    recorded = json.loads(RECORDED.read_text())
    curve, expected = train(run, tmp_path), recorded["runs"][run]
    if recorded["platform"] == platform_key():
        assert curve == expected
    assert _numbers(curve) == pytest.approx(_numbers(expected), rel=1e-3)


if __name__ == "__main__":
    os.environ["NASREC_ATTENTION"] = "sdpa"
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, process_group():
        curves = {run: train(run, Path(folder) / run) for run in RUNS}
    RECORDED.write_text(json.dumps({"platform": platform_key(), "runs": curves}, indent=1) + "\n")
