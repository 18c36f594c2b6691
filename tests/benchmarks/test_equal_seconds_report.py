"""What benchmarks/equal_seconds_report.py makes of runs, on runs whose answers are known."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "equal_seconds_report.py"
SPEC = importlib.util.spec_from_file_location("equal_seconds_report", FILE)
assert SPEC is not None and SPEC.loader is not None
report = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(report)


def write(folder: Path, procedure: str, seed: int, loss: float, **changes: Any) -> None:
    one = {"procedure": procedure, "seed": seed, "budget": "60s", "clock": "wall", "data": "f00", "machine": "CPU"}
    one |= {"versions": "torch 2", "log_loss": loss, "auc": 1 - loss, "seconds": 60, "trials": 4, "title": "mlp"}
    one |= {"spent": {"recipes": 20}, "features": ["a_x_b"], **changes}
    (folder / f"{procedure}-{seed}.json").write_text(json.dumps(one))


def test_differences_are_paired_by_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for seed, loss in enumerate((0.4, 0.5, 0.6)):
        write(tmp_path, "auto", seed, loss)
        write(tmp_path, "baselines", seed, loss + 0.01)
    write(tmp_path, "paper", 1, 0.52)
    report.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    # Student's t of two degrees of freedom is 4.303; the deviation of the losses is 0.1.
    assert lines[2] == "| auto | 0.50000 ± 0.24841 | 0.50000 ± 0.24841 |  | 3 | 4 | 60 |"
    assert lines[3] == (
        "| baselines alone, tuned | 0.51000 ± 0.24841 | 0.49000 ± 0.24841 | 0.01000 ± 0.00000 | 3 | 4 | 60 |"
    )
    assert lines[4] == "| the paper's procedure | 0.52000 | 0.48000 | 0.02000 | 1 | 4 | 60 |"
    assert "- auto, seed 0: mlp with a_x_b: 0.4000 (recipes 20)" in lines


def test_models_that_predict_better_together_stand_in_columns_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for seed in (0, 1):
        write(tmp_path, "auto", seed, 0.5, together={"test": {"log_loss": 0.4}})
        write(tmp_path, "baselines", seed, 0.45, together=None)
        write(tmp_path, "lightgbm", seed, 0.45)
    report.main(tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("| seconds | log loss of models together | less that of auto's |")
    assert lines[2].endswith("| 2 | 4 | 60 | 0.40000 ± 0.00000 |  |")
    assert lines[3].endswith("| -0.05000 ± 0.00000 | 2 | 4 | 60 | 0.45000 ± 0.00000 | 0.05000 ± 0.00000 |")
    assert lines[4].startswith("| LightGBM | 0.45000") and lines[4].endswith("| 60 |  |  |")
    assert lines[6] == (
        "Log loss of the one model less that of auto's models together: auto 0.10000 ± 0.00000; baselines alone, tuned "
        "0.05000 ± 0.00000; LightGBM 0.05000 ± 0.00000."
    )


def test_runs_that_cannot_be_compared_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected the JSON files"):
        report.read(tmp_path)
    write(tmp_path, "auto", 0, 0.4)
    write(tmp_path, "auto", 1, 0.4, budget="90s")
    with pytest.raises(ValueError, match=r"auto-1.json: budget is '90s', but '60s' in auto-0.json"):
        report.read(tmp_path)
