import json
from pathlib import Path

import pytest

from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.schedules import cosine_with_warmup, full_path_probability


def test_learning_rates_equal_the_original():
    cases = json.loads((Path(__file__).resolve().parents[1] / "golden" / "learning-rate.json").read_text())["cases"]
    for case in cases:
        for step, expected in case["rates"].items():
            ours = cosine_with_warmup(int(step), case["steps"], case["peak"], case["warmup"] / case["steps"])
            assert ours == pytest.approx(expected, abs=1e-11)


def test_schedule_starts_peaks_and_ends():
    assert cosine_with_warmup(0, 100, 0.1) == 1e-8
    assert cosine_with_warmup(10, 100, 0.1) == 0.1
    assert cosine_with_warmup(100, 100, 0.1) == cosine_with_warmup(500, 100, 0.1) == 1e-8
    assert cosine_with_warmup(0, 100, 0.1, warmup_fraction=0) == 0.1


def test_the_full_path_fades_out():
    assert [full_path_probability(step, 10) for step in (0, 5, 10, 99)] == [1.0, 0.5, 0.0, 0.0]
    assert full_path_probability(0, 0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs: expected a positive number, found 0"),
        ({"learning_rate": -1.0}, "learning_rate: expected a positive number, found -1.0"),
        ({"warmup_fraction": 2.0}, r"warmup_fraction: expected 0..1, found 2.0"),
    ],
)
def test_bad_configs_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**arguments)
