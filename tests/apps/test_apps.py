"""The programs as a user starts them."""

import gzip
import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support import Done, component_program, launch, prepare_clicks, run_process, run_program

from nasrec_torchrec import PUBLISHED

APPS = [
    "prepare_data table",
    "prepare_data describe",
    "train_supernet",
    "search",
    "report",
    "status",
    "train",
    "evaluate",
    "export",
    "score",
    "serve",
    "demo",
]
ROOT = Path(__file__).resolve().parents[2]


def _app(name: str, *arguments: object, expected: int = 0) -> Done:
    done = run_program("-m", *f"apps.{name}".split(), *arguments)
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.mark.parametrize("name", APPS)
def test_help_is_that_of_the_command(name: str):
    text = _app(name, "--help").stdout
    assert f"usage: python -m apps.{name}" in text and "--config" in text and "Example:" in text


@pytest.mark.slow
def test_everything_end_to_end_on_two_ranks_as_torchx_starts_them(tmp_path: Path):
    data = prepare_clicks(tmp_path / "data")

    def start(name: str, *flags: str, **arguments: object) -> None:
        named = [text for key, value in arguments.items() for text in (f"--{key}", str(value))]
        more = ["--", *flags] if flags else []
        # What torchx would start, without new interpreters; tests.components.test_local has a real launcher.
        word, *program = component_program(name, [*named, *more])
        launch(word, 2 if name.startswith("train") else 1, *program)

    space = ["--num_blocks", "2", "--dense_widths", "[16,32]", "--sparse_widths", "[4,8]"]
    fast = ["--batch_size", "40", "--learning_rate", "0.05", "--epochs", "1"]
    start("train_supernet", *space, *fast, "--full_path_steps", "5", data=data, out=tmp_path / "supernet")
    search = ["--population", "4", "--generations", "2", "--children", "2", "--tournament", "2", "--top_k", "2"]
    finetuning = ["--finetune_steps", "5", "--finetune_batch_size", "20"]
    found = {"supernet": tmp_path / "supernet", "data": data, "out": tmp_path / "search"}
    # Two workers of one study, as the component starts them.
    words = [f"--{key}={value}" for key, value in found.items()]
    worker = partial(run_process, *component_program("search", [*words, "--", *search, *finetuning]))
    with ThreadPoolExecutor() as pool:
        workers = [pool.submit(worker, folder=ROOT, environment={}) for _ in range(2)]
    assert [one.result().returncode for one in workers] == [0, 0], [one.result().stderr[-3000:] for one in workers]
    architectures = tmp_path / "search" / "architectures"
    start("train", *fast, "--seeds", "[0,1]", data=data, out=tmp_path / "model", architecture=architectures)
    trials = json.loads((tmp_path / "model" / "metrics.json").read_text())
    means = [trial["mean_validation_log_loss"] for trial in trials["trials"]]
    assert len(means) == 2 and trials["best"]["mean_validation_log_loss"] == min(means)
    losses = [run["validation"]["log_loss"] for run in trials["best"]["runs"]]
    assert len(losses) == 2 and sum(losses) / 2 == pytest.approx(min(means))

    start("report", search=tmp_path / "search", finalists=tmp_path / "model")
    finalists = json.loads((tmp_path / "search" / "finalists.json").read_text())["finalists"]
    assert [finalist["mean"] for finalist in finalists] == pytest.approx(sorted(means))
    assert all(finalist["predicted"] is not None for finalist in finalists)
    # On ranks, in another study: every rank holds a share of the tables and of the rows.
    sharded = [f"--{key}={value}" for key, value in (found | {"out": tmp_path / "sharded"}).items()]
    launch("-m", 2, "apps.search", *sharded, *search, *finetuning)
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["best"] for name in ("search", "sharded"))
    assert [c["log_loss"] for c in two] == pytest.approx([c["log_loss"] for c in one], abs=1e-5)

    printed = _app("evaluate", "--model", tmp_path / "model", "--data", data, "--split", "validation", "--json").stdout
    assert json.loads(printed)["validation"]["log_loss"] == pytest.approx(min(losses), abs=1e-5)
    printed = _app("export", "--model", tmp_path / "model", "--data", data, "--out", tmp_path / "export").stdout
    assert "100 rows: AUC" in printed and "needs torch" in printed
    scored = ["--package", tmp_path / "export", "--data", data / "test", "--out", tmp_path / "scores"]
    assert json.loads(_app("score", *scored).stdout) == {"rows": 101, "rejected": 0}
    assert pq.read_table(tmp_path / "scores").num_rows == 101
    assert list((tmp_path / "supernet" / "tensorboard").iterdir())


_SCHEMA = """
label: clicked
dense: [{name: price, transform: log1p}]
sparse:
  - {name: shop, ids: dictionary, min_count: 2}
  - {name: tags, ids: hash, num_embeddings: 1000, multi_hot: true}
"""


@pytest.mark.slow
def test_any_table_is_prepared_and_described(tmp_path: Path):
    lines = [f"{n % 2}\t{n}.5\tshop {n % 7}\t{'|'.join('abc'[: n % 4])}\n" for n in range(300)]
    lines[9] = "yes\t1\tx\ty\n"
    (tmp_path / "log.tsv.gz").write_bytes(gzip.compress("".join(["clicked\tprice\tshop\ttags\n", *lines]).encode()))
    (tmp_path / "schema.yaml").write_text(_SCHEMA)
    flags = ["--source", tmp_path / "log.tsv.gz", "--schema", tmp_path / "schema.yaml", "--delimiter", r"\t"]
    refused = _app("prepare_data table", *flags, "--out", tmp_path / "data", "--max-rejects", "0", expected=2)
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("error: ")]
    assert "1 of 300 rows were rejected" in line and "line 11: label 'clicked': expected 0 or 1, found 'yes'" in line
    assert not (tmp_path / "data").exists()
    done = _app("prepare_data table", *flags, "--out", tmp_path / "data")
    report = json.loads(done.stdout)
    assert report["rejected"] == 1 and sum(split["rows"] for split in report["splits"].values()) == 299
    text = _app("prepare_data describe", tmp_path / "data").stdout
    assert "shop 0" in text and (tmp_path / "data" / "statistics.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("train", ["--data", "absent", "--out", "o"], "absent/schema.json: cannot be read"),
        ("train", ["--data", "DATA", "--out", "OUT", "--batch_size", "0"], "batch_size: expected a positive number"),
        ("train", ["--data", "DATA", "--out", "OUT", "--architecture", "absent.json"], "absent.json: cannot be read"),
        ("train", ["--data", "DATA", "--out", "OUT", "--batch_size", "4000"], "do not fit into a split of 400 rows"),
        ("train", ["--data", "DATA", "--out", "OUT", "--architecture", "BAD"], "block 0: .*unknown operator"),
        ("train_supernet", ["--data", "DATA", "--out", "OUT", "--num_blocks", "0"], "num_blocks: expected a positive"),
        ("evaluate", ["--model", "absent", "--data", "DATA"], "absent: no complete checkpoint"),
        ("prepare_data criteo", ["--source", "absent", "--out", "OUT"], "absent: cannot be opened"),
        (
            "prepare_data table",
            ["--source", "BAD", "--schema", "BAD", "--out", "OUT"],
            "bad.json: schema: expected the format",
        ),
        ("prepare_data describe", ["absent"], "absent/manifest.json: cannot be read"),
        ("report", ["--search", "absent"], "absent: does not hold the results of a search"),
        (
            "search",
            [
                "--supernet",
                "s",
                "--data",
                "DATA",
                "--out",
                "OUT",
                "--race-confidence",
                "0.9",
                "--latency-target-us",
                "9",
            ],
            "race_confidence: candidates race for the loss alone",
        ),
        ("search", ["--supernet", "absent", "--data", "DATA", "--out", "OUT"], "absent: no complete checkpoint"),
        ("score", ["--package", "absent", "--data", "DATA", "--out", "OUT"], "absent/model.json: cannot be read"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path, name, arguments, message):
    bad = tmp_path / "bad.json"
    bad.write_text(PUBLISHED["criteo-small"].to_json().replace("fully_connected", "conv", 1))
    places = {"DATA": str(prepare_clicks(tmp_path / "data")), "OUT": str(tmp_path / "out"), "BAD": str(bad)}
    result = _app(name, *(places.get(argument, argument) for argument in arguments), expected=2)
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    assert re.search(message, line), line
    assert not (tmp_path / "out").exists(), "a refused run must leave nothing behind"
