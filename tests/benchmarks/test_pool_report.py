"""What benchmarks/pool_report.py computes from a pool, on pools whose answers are known."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "pool_report.py"
SPEC = importlib.util.spec_from_file_location("pool_report", FILE)
assert SPEC is not None and SPEC.loader is not None
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


def test_regret_is_the_distance_of_the_best_of_the_first():
    truth = np.array([0.5, 0.3, 0.4, 0.6])
    assert report.regret(truth, truth, 1) == 0
    assert report.regret(-truth, truth, 1) == pytest.approx(0.3)
    assert report.regret(-truth, truth, 3) == pytest.approx(0.1)


def test_replays_choose_by_what_they_have_seen():
    # The last one leads after one epoch and the second one at the end; the third one is dropped after one.
    curves = np.array([[0.6, 0.5, 0.5, 0.5], [0.5, 0.4, 0.3, 0.2], [0.9, 0.1, 0.1, 0.1], [0.45, 0.45, 0.5, 0.6]])
    assert report.best_of(curves, np.array([0, 1, 3])) == 1
    assert report.best_of(curves, np.arange(4)) == 2
    assert report.halving(curves, np.arange(4)) == 1


def test_a_perfect_supernet_has_tau_one_and_no_regret():
    models = [
        {
            "name": f"random-{n}",
            "multiply_adds": n,
            "parameters": n,
            "runs": {"0": {"losses": [0.9, 0.5 - n / 100], "test": {"log_loss": 0.5}}},
        }
        for n in range(12)
    ]
    ranks = {model["name"]: [n / 100, 0.5 - n / 100] for n, model in enumerate(models)}
    lines = report.trust(models, [{"seed": 0, "ranks": {"4": ranks}}])
    (inherited,) = (line for line in lines if "4 epochs, inherited" in line)
    (tuned,) = (line for line in lines if "4 epochs, fine-tuned" in line)
    assert tuned.endswith("| 1.00 | 1.00 | 0.00000 | 0.00000 |")
    assert "| -1.00 | -1.00 | 0.09000 | 0.02000 |" in inherited


def test_what_seeds_explain_is_told_from_what_architectures_do():
    def models(arch: float, seed: float) -> list[dict[str, Any]]:
        sign = [1, -1, -1, 1]  # of the seeds, which tells nothing of the architecture
        return [
            {"runs": {name: {"losses": [1 + arch * n + way * seed * sign[n]]} for name, way in (("0", 1), ("1", -1))}}
            for n in range(4)
        ]

    said = report.noise(models(0.1, 0.001))
    assert "tau 1.00" in said and "deviate by 0.00163" in said and "beyond that by 0.12909" in said
    assert "beyond that by 0.00000" in report.noise(models(0.0, 0.1))
    assert report.noise([{"runs": {"0": {"losses": [1.0]}}}] * 3) is None
