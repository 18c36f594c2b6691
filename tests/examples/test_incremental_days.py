import re
from pathlib import Path

import pytest
from support import run_program

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.extended
def test_a_model_that_saw_all_days_predicts_the_next_one_best(tmp_path: Path):
    done = run_program(ROOT / "examples" / "incremental.py", "--out", tmp_path, "--days", 3, "--rows", 8000)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\S+), model of (.*): AUC (\S+),", done.stdout)
    values = {(day, model): float(auc) for day, model, auc in found}
    second, third = "2026-11-02", "2026-11-03"
    assert values[second, "all days before"] == values[second, "the day before"]
    assert values[third, "all days before"] > values[third, "the day before"] + 0.01, done.stdout
