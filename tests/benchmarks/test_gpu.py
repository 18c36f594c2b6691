"""The measurements for a GPU, tried on the CPU with the smallest sizes."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_steps import STEPS

pytestmark = pytest.mark.extended

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("step", "keys"),
    [
        ("imports", {"torch", "fbgemm_gpu", "device"}),
        ("graphs", {"model", "mode", "rows_per_second", "losses", "peak_memory"}),
        ("lookup", {"rows", "memory", "difference", "bytes_per_second"}),
        ("golden", {"network", "float32", "float64"}),
        ("attention", {"tokens", "precision"}),
        ("training", {"model", "rows_per_second", "mfu"}),
        ("search", {"candidates", "computed_share", "seconds"}),
        ("export", {"what", "nodes"}),
        ("programs", {"program", "status", "seconds"}),
    ],
)
def test_every_step_runs_on_a_cpu(one_rank, step: str, keys: set[str]):
    results = list(STEPS[step](True))
    assert results and all(keys <= set(result) for result in results)
    assert json.loads(json.dumps(results)) == results
    if step == "lookup":
        assert max(result["difference"] for result in results) < 1e-6
    if step == "attention":
        exact = next(result for result in results if result["precision"] == "fp32" and "difference" in result)
        assert {"ours", "math"} <= set(exact["difference"])
        assert max(max(values) for values in exact["difference"].values()) < 1e-5
    if step == "golden":
        assert results[0]["float32"] < 2e-5 and results[0]["float64"] < 1e-9


def _run(*flags: str, python: Path) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHON": str(python)})


def test_a_step_that_fails_costs_only_itself(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\n[ "$2" != lookup ] || { echo "no such device"; exit 3; }\n')
    python.chmod(0o755)
    flags = "--out", str(tmp_path / "out"), "--steps", "imports,lookup,search"
    done = _run(*flags, "--quick", python=python)
    assert done.returncode == 1 and "no such device" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    assert [(line["step"], line["status"]) for line in lines] == [("imports", 0), ("lookup", 3), ("search", 0)]
    again = _run(*flags[:2], "--steps", "golden,imports", python=python)
    assert again.returncode == 0 and len((tmp_path / "out" / "steps.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "out" / "search.log").read_text().startswith("benchmarks/gpu_steps.py search --out")
    assert (tmp_path / "out" / "search.log").read_text().endswith("--quick\n")


def test_all_steps_fit_into_twelve_minutes(tmp_path: Path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    assert _run("--out", str(tmp_path / "out"), python=python).returncode == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "steps.jsonl").read_text().splitlines()]
    limits = {line["step"]: line["limit"] for line in lines}
    assert limits.keys() == STEPS.keys() and len(lines) == len(STEPS)
    together = {"golden", "tests", "programs"}
    alone = sum(limit for step, limit in limits.items() if step not in together)
    assert max(limits[step] for step in together) + alone <= 12 * 60
    refused = _run("--out", str(tmp_path / "out"), "--steps", "imports,nothing", python=python)
    assert refused.returncode == 2 and "nothing: expected steps among" in refused.stderr
