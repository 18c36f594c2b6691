"""With an average of the weights, it is what is measured, kept and loaded, and the weights are what is trained."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, in_step, make_click_files, make_schema

from nasrec_torchrec.metrics.click_metrics import evaluate
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.training.config import TrainConfig, settings_of
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
SUPERNET = ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2), use_layernorm=True)
NASRECNET = ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3)))
DCN = ModelDescription(SCHEMA, Baseline("dcn", (32, 16), (16, 1)))
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, ema_decay=0.8, log_every=1, checkpoint_every=4)
VALIDATION = {"count": 100, "seed": 5}


def _make(run_dir: Path, description: ModelDescription = NASRECNET, config: TrainConfig = CONFIG) -> Trainer:
    return Trainer(description, config, run_dir, torch.device("cpu"))


def _pairs(trainer: Trainer) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    assert trainer.step.average is not None
    return {name: (weight.clone(), mean.clone()) for name, (weight, mean) in trainer.step.average.pairs.items()}


@pytest.mark.parametrize("optimizer", ["adagrad", "adam"])
def test_the_average_is_measured_and_loaded_and_the_weights_train_as_without_it(
    one_rank, tmp_path: Path, optimizer: str
):
    data, validation = make_click_files(SCHEMA, 500), make_click_files(SCHEMA, **VALIDATION)
    config = replace(CONFIG, optimizer=optimizer, epochs=1)
    averaged, plain = (
        _make(tmp_path / "a", config=config),
        _make(tmp_path / "b", config=replace(config, ema_decay=None)),
    )
    expected: dict[str, torch.Tensor] = {}
    step = averaged.step.optimizer.step

    def follow() -> None:
        step()
        for name, (weight, _) in averaged.step.average.pairs.items():
            expected[name] = weight.clone() if name not in expected else 0.8 * expected[name] + 0.2 * weight

    averaged.step.optimizer.step = follow
    found, others = averaged.train(data, validation), plain.train(data, validation)
    weights = plain.dmp.state_dict()
    for name, (weight, average) in _pairs(averaged).items():
        assert torch.equal(weight, weights[name]), name
        torch.testing.assert_close(average, expected[name], msg=name)
        assert "sparse_arch" not in name
    assert found.log_loss != others.log_loss
    # What is kept is what was measured.
    _, model = load_model(tmp_path / "a")
    assert evaluate(model, validation).log_loss == pytest.approx(found.log_loss, abs=1e-6)
    assert averaged.evaluate(validation).log_loss == pytest.approx(found.log_loss, abs=1e-6)
    for name, (_, average) in _pairs(averaged).items():
        assert torch.equal(model.state_dict()[name.removeprefix("model.")], average), name


@pytest.mark.parametrize("description", [NASRECNET, DCN], ids=["nasrecnet", "dcn"])
def test_a_run_that_was_ended_goes_on_bit_by_bit(one_rank, tmp_path: Path, description: ModelDescription):
    data, validation = make_click_files(SCHEMA, 500), make_click_files(SCHEMA, **VALIDATION)
    undisturbed = _make(tmp_path / "a", description)
    best = undisturbed.train(data, validation)
    for ends_at in (0, 5, 17):
        trainer = _make(tmp_path / "b", description)
        in_step(trainer, ends_at, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(SystemExit):
            trainer.train(data, validation)
    resumed = _make(tmp_path / "b", description)
    assert resumed.train(data, validation) == best
    assert resumed.progress == undisturbed.progress
    for name, found in _pairs(resumed).items():
        assert all(map(torch.equal, found, _pairs(undisturbed)[name])), name
    with pytest.raises(ValueError, match=r"settings\.ema_decay: 0\.8 there, 0\.9 here"):
        _make(tmp_path / "b", description, replace(CONFIG, ema_decay=0.9)).train(data, validation)


def test_decays_that_make_no_sense_are_refused_or_warned_of(one_rank, tmp_path: Path, capsys):
    assert "ema_decay" not in settings_of(replace(CONFIG, ema_decay=None))
    with pytest.raises(ValueError, match="ema_decay: expected more than 0 and less than 1, found 1"):
        replace(CONFIG, ema_decay=1.0)
    with pytest.raises(ValueError, match="ema_decay: expected none for a supernet"):
        _make(tmp_path, SUPERNET)
    _make(tmp_path, config=replace(CONFIG, ema_decay=0.999, epochs=1)).train(make_click_files(SCHEMA, 500))
    assert "ema_decay: the run has only 12 steps, after which 99% of the average" in capsys.readouterr().err
