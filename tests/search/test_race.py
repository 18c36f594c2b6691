"""Races that really train, on a data set of a few hundred rows."""

import json
import random
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support import forked, run_program

from nasrec_torchrec import inference
from nasrec_torchrec.datasets.config import SplitConfig
from nasrec_torchrec.datasets.crosses import add_crosses, cross_of
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.inference.predictor import Predictor, Request
from nasrec_torchrec.metrics.click_metrics import click_metrics
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.mean_prediction import mean_prediction
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.models.stored_trees import load_member
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.search.config import Limits
from nasrec_torchrec.search.race.config import RaceConfig, RaceSpace
from nasrec_torchrec.search.race.predictions import predict
from nasrec_torchrec.search.race.recipe import Recipe
from nasrec_torchrec.search.race.run import auto
from nasrec_torchrec.search.race.training import RaceData, fit_finally, train_trial
from nasrec_torchrec.search.race.trial import Trial
from nasrec_torchrec.table_widths import table_bytes
from nasrec_torchrec.training.jobs import evaluate
from nasrec_torchrec.training.trainer import Trainer

_CONFIG = RaceConfig(
    trials=12, seed=1, epochs=5, final_seeds=2, finalists=2, max_features=2, slice=("shop",), quiet=True
)


@contextmanager
def _reproducible() -> Iterator[None]:
    """What races that are compared have in common; every process of theirs must enter it."""
    threads = torch.get_num_threads()
    # Sums of two threads round otherwise.
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        # Latencies decide whom a race teaches, and measured ones vary with the load.
        name = "nasrec_torchrec.search.race.costs.latency_us"
        patch.setattr(name, lambda model, _: 1.0 * sum(parameter.numel() for parameter in model.parameters()))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("race") / "out"
    with _reproducible():
        results = auto(data, out, _CONFIG)
    assert results is not None
    return out, results


def _what_counts(results: dict[str, Any]) -> Any:
    """Everything but the times, and what they decide: which model is the fastest."""
    trials = [[t["number"], t["trial"], t["losses"], t["aucs"], t["status"]] for t in results["trials"]]
    verdict = [line for line in results["verdict"].splitlines() if not line.startswith("The fastest model")]
    measured = {
        name: {key: value for key, value in found.items() if key != "latency_us"}
        for name, found in results["measured"].items()
        if name != "fastest"
    }
    return json.loads(json.dumps([trials, results["winner"], verdict, measured]))


def _kept(out: Path) -> set[Path]:
    """The trials that still have a checkpoint."""
    return {file.parent for file in out.glob("trials/*/checkpoints")}


def _fastest(out: Path, results: dict[str, Any]) -> set[Path]:
    """The trial that a verdict names as the fastest, where it names one."""
    named = results["measured"].get("fastest")
    return set() if named is None else {out / named["folder"]}


def test_a_race_finds_what_decides_and_leaves_a_model_to_use(data: Path, undisturbed):
    out, results = undisturbed
    assert len(results["trials"]) == 12
    # The best trials have taught others, from a file that stays when their checkpoints are gone.
    taught = [trial["trial"] for trial in results["trials"] if trial["trial"]["source"] == "student"]
    assert {trial["phase"] for trial in taught} >= {"polish"}
    for trial in taught:
        assert all(results["trials"][number]["status"] == "complete" for number in trial["teachers"])
        name = "-".join(f"{number:04d}" for number in trial["teachers"])
        assert len(np.load(out / "teachers" / f"{name}.npy")) == results["rows"]["train"]
    winner = results["trials"][results["winner"]]
    # The pair of user and item decides, and only an added feature shows it to models this small this fast.
    assert any("user_x_item" in name for name in winner["trial"]["features"])
    assert {"user_x_item", "history_of_user_x_item"} <= {feature.name for feature in load_schema(out / "data-1").sparse}
    without = results["measured"]["baseline without added features"]["test"][0]["log_loss"]
    assert results["measured"]["winner"]["test"][0]["log_loss"] < without - 0.02
    tree = results["measured"]["tree"]
    assert 0 < tree["test"][0]["log_loss"] < without
    best = results["measured"]["winner"]["test"]
    tree_is_better = tree["test"][0]["log_loss"] < sum(seed["log_loss"] for seed in best) / len(best)
    first = "A tree is better" if tree_is_better else ("Adopt ", "No difference", "Worse: ")
    assert results["verdict"].startswith(first)
    assert "\nA tree, LightGBM: test" in results["verdict"] and "Winner: " in results["verdict"]
    assert {"baseline", "features", "LightGBM"} <= {row["source"] for row in results["sources"]}
    fastest, *others = results["front"]
    assert all(row["latency_us"] > 0 for row in results["front"])
    assert fastest["latency_us"] == min(row["latency_us"] for row in results["leaderboard"])
    assert [row["log_loss"] for row in others] == sorted((row["log_loss"] for row in others), reverse=True)
    page = (out / "report.html").read_text()
    assert page.index("Winner: ") < page.index("Calibration of") < page.index("Importance") < page.index("Leaderboard")
    parts = results["measured"]["winner"]["slices"]["columns"]["shop"]
    assert sum(part["metrics"]["rows"] for part in parts) == results["rows"]["test"]
    assert "ROC curve with an area of" in page and "aria-label='Metrics by shop, on the test split'" in page
    important = {one["column"]: one["log_loss"] for one in results["measured"]["winner"]["importance"]}
    assert set(important) <= {"user", "item", "shop", *(feature.name for feature in load_schema(data).dense)}
    assert min(important["user"], important["item"]) > 0.01
    assert "How it was made" in page and f"torch {version('torch')}" in page and str(data) in page
    assert "data:image/png;base64,iVBOR" in page and "95 % interval" in page and "<svg role='img'" in page
    assert "history_of_user_x_item" in page and "LightGBM" in page
    description, _ = load_model(out)
    assert description.schema.feature_names[:3] == ["user", "item", "shop"]
    assert set(description.schema.feature_names[3:]) == set(winner["trial"]["features"])
    together = (results["ensemble"] or {"folders": []})["folders"][1:]
    # Of the models that are as good as a baseline on the data's own columns, the fastest is there to be used too.
    quick = results["measured"]["fastest"]
    assert 0 < quick["latency_us"] < results["measured"]["winner"]["latency_us"]
    assert f"Export it with `--model RUN/{quick['folder']}`." in results["verdict"] and f">{quick['title']}<" in page
    found = evaluate(out / quick["folder"], max(out.glob("data-*"))).log_loss
    assert found == pytest.approx(quick["test"][0]["log_loss"], abs=1e-6)
    assert {out / folder for folder in (*together, quick["folder"]) if "tree" not in folder} == {
        file.parent for file in out.glob("trials/*/checkpoints")
    }
    # The winner reads columns that the yardstick does not, so it has a tree of its own beside it.
    beside = results["measured"]["tree of the winner's columns"]
    assert set(beside["features"]) == set(winner["trial"]["features"]) and (out / "tree-of-winner").is_dir()
    assert "\nA tree with the winner's columns, LightGBM, with " in results["verdict"]
    assert all(f"<li>{escape(warning)}</li>" in page for warning in results["warnings"])
    assert ("<h2>Warnings</h2>" in page) == bool(results["warnings"])
    assert results["monitor"] == "log_loss" and "differs from that of the training rows" not in page
    assert any(row["seeds"] == 2 for row in results["leaderboard"])
    # What is added was shown to help, with its numbers; the rest is named with the reason.
    judged = {tuple(one["features"]): one for one in results["features"]["judged"]}
    shown = judged[tuple(winner["trial"]["features"])]
    assert shown["verdict"] == "accepted" and shown["gain"] > shown["needed"] > 0 and min(shown["halves"]) > 0
    assert "explained by chance" in page
    rejected = [one for one in judged.values() if one["verdict"] != "accepted"]
    assert ("Rejected: " in results["verdict"]) == bool(rejected)
    status = run_program("nasrec", "status", out).stdout
    assert status.startswith(f"{out}: race, ended, 12") and "best validation loss so far 0." in status
    # It is over: asked again, it says the same and trains nothing.
    assert auto(data, out, _CONFIG) == json.loads(json.dumps(results))


@pytest.mark.extended
def test_models_that_predict_better_together_can_be_exported_together(data: Path, tmp_path: Path):
    out, own = tmp_path / "out", {"features": False, "drop_columns": False, "trees": True}
    results = auto(data, out, RaceConfig(trials=8, epochs=1, ensemble=3, final_seeds=2, finalists=1, quiet=True, **own))
    assert results is not None
    ensemble, alone = results["ensemble"], results["measured"]["winner"]["validation"][0]["log_loss"]
    first, *others = ensemble["folders"]
    # The tree divides by user and item, which these small models have not learned in an epoch.
    assert first == f"trials/{results['winner']:04d}" and others[0] == "tree" and ensemble["titles"][1] == "LightGBM"
    assert "export with `--together`" in results["verdict"] and ensemble["latency_us"] > 0
    assert {out / other for other in others[1:]} | _fastest(out, results) == _kept(out)
    assert ensemble["difference"]["mean"] == pytest.approx(
        ensemble["test"]["log_loss"] - results["measured"]["winner"]["test"][0]["log_loss"], abs=1e-6
    )
    description, model = load_model(out)
    rows = description.read(open_split(data, "validation"))
    models = [model, *(load_member(out / other)[2] for other in others)]
    (batch,) = rows.evaluation_batches(len(rows))
    logits = [one(batch.dense_features, batch.sparse_features).flatten() for one in models]
    together = click_metrics(mean_prediction(logits), batch.labels).log_loss
    assert ensemble["validation"]["log_loss"] == pytest.approx(together, abs=1e-6) and together < alone
    # A package of them all, and once more of the winner, as another network.
    flags = ["--model", out, "--out", tmp_path / "package", "--data", data]
    assert run_program("nasrec", "export", *flags, "--together", "--ensemble_with", str(out)).returncode == 0
    predictor = Predictor(tmp_path / "package")
    exported, trained = (predictor.manifest["metrics"][form]["log_loss"] for form in ("exported", "trained"))
    assert exported == pytest.approx(trained, abs=1e-6)
    assert predictor.manifest["models"] == len(models) + 1
    sparse = batch.sparse_features
    request = Request(sparse.values().long(), sparse.lengths().view(-1, len(rows)).long())
    expected = torch.stack([*logits, logits[0]]).sigmoid().mean(0)
    torch.testing.assert_close(predictor.predict(request), expected, atol=1e-5, rtol=0)
    record = out / "results.json"
    record.write_text(json.dumps(results | {"ensemble": None}))
    with pytest.raises(ValueError, match=r"together: .*out: no model of this race predicts better together"):
        inference.export(out, tmp_path / "refused", together=True)
    record.unlink()
    with pytest.raises(ValueError, match=r"together: expected the run folder of a race that is over, found .*out"):
        inference.export(out, tmp_path / "refused", together=True)


def test_a_model_of_a_race_is_measured_on_a_data_set_with_more_added_features(data: Path, tmp_path: Path):
    add_crosses(data, tmp_path / "data-1", [cross_of(("user", "item")), cross_of(("user", "shop"))])
    races = RaceData((data, tmp_path / "data-1"), load_schema(data))
    trial = Trial("features", "features", Baseline("dlrm", (64, 8), (64, 1)), Recipe(1e-3, 1, 128), ("user_x_item",))
    with process_group() as device:
        train_trial(trial, 1, races, tmp_path / "run", device, lambda *_: False)
    logits, labels = predict(tmp_path / "run", races.open("test", trial))
    found = evaluate(tmp_path / "run", tmp_path / "data-1")
    assert found.log_loss == pytest.approx(click_metrics(logits, labels).log_loss, abs=1e-7)
    with pytest.raises(ValueError, match=r"the sparse features are \['user', 'item', 'shop', 'user_x_item'\] here"):
        evaluate(tmp_path / "run", data)


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_a_race_whose_rows_to_measure_have_one_label(tmp_path: Path):
    rng = np.random.default_rng(0)
    files = []
    for name, rows in (("train", 300), ("validation", 100), ("test", 100)):
        labels = rng.integers(0, 2, rows) if name == "train" else np.zeros(rows, int)
        pq.write_table(pa.table({"label": labels, "user": rng.integers(0, 9, rows)}), tmp_path / f"{name}.parquet")
        files.append(str(tmp_path / f"{name}.parquet"))
    schema = Schema("label", (), (SparseFeature("user", 9),), 8)
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), tmp_path / "data")
    config = RaceConfig(trials=4, epochs=2, final_seeds=2, finalists=1, features=False, quiet=True)
    results = auto(tmp_path / "data", tmp_path / "out", config)
    assert results is not None and "AUC" not in results["verdict"] and "test log loss" in results["verdict"]
    text = (tmp_path / "out" / "results.json").read_text()
    assert json.loads(text, parse_constant=_no_constant) == results
    assert {auc for trial in results["trials"] for auc in trial["aucs"]} == {None}


def test_a_trial_reads_the_same_rows_when_further_features_are_there(data: Path, tmp_path: Path):
    add_crosses(data, tmp_path / "data-1", [cross_of(("user", "item"))])
    base = load_schema(data)
    before, after = RaceData((data,), base), RaceData((data, tmp_path / "data-1"), base)
    plain = Trial("recipes", "baseline", Baseline("dlrm", (64, 8), (64, 1)), Recipe(1e-3, 2, 128))
    crossed = replace(plain, features=("user_x_item",))
    assert after.open("train", plain).digest == before.open("train", plain).digest
    assert after.folder(crossed) == tmp_path / "data-1"
    assert after.open("train", crossed).schema.feature_names == ["user", "item", "shop", "user_x_item"]
    assert (
        dict(after.open("train", crossed).dictionaries).keys() > dict(before.open("train", plain).dictionaries).keys()
    )


@pytest.mark.parametrize("trees", (True, False))
def test_damaged_rows_are_not_raced_on(data: Path, tmp_path: Path, trees: bool):
    damaged = shutil.copytree(data, tmp_path / "data")
    (file,) = (damaged / "train").glob("*.parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)
    config = RaceConfig(trials=2, epochs=1, features=False, quiet=True, trees=trees)
    with pytest.raises(ValueError, match=r"train/part-000000\.parquet: was changed or is damaged"):
        auto(damaged, tmp_path / "out", config)
    with pytest.raises(ValueError, match=r"train/part-000000\.parquet: was changed or is damaged"):
        add_crosses(damaged, tmp_path / "crossed", [cross_of(("user", "item"))])


def test_results_that_were_lost_come_back_from_the_models_that_are_left(data: Path, undisturbed, tmp_path: Path):
    finished, results = undisturbed
    shutil.copytree(finished, tmp_path / "out")
    (tmp_path / "out" / "results.json").unlink()
    again = auto(data, tmp_path / "out", _CONFIG)
    assert again is not None and again["winner"] == results["winner"]
    # Another seed of the winner has no checkpoint any more: what is measured belongs to the seeds that are named.
    for measured in (results["measured"], again["measured"]):
        seeds = {name: found for name, found in measured.items() if "seeds" in found}
        assert all(len(found["seeds"]) == len(found["trials"]) == len(found["test"]) for found in seeds.values())
        assert measured["winner"]["trials"][0] == results["winner"]
    assert again["measured"]["winner"]["test"][0] == results["measured"]["winner"]["test"][0]


def test_the_winner_can_be_trained_once_more_with_the_validation_rows(data: Path, tmp_path: Path):
    config = RaceConfig(trials=2, epochs=2, final_seeds=1, features=False, trees=False, quiet=True, final_fit=True)
    results = auto(data, tmp_path / "out", config)
    assert results is not None
    winner, final = results["trials"][results["winner"]], results["measured"]["final_fit"]
    assert final["epochs"] == winner["losses"].index(min(winner["losses"])) + 1
    found = evaluate(tmp_path / "out", data)
    assert found.log_loss == pytest.approx(final["test"][0]["log_loss"], abs=1e-7)
    assert found.log_loss != pytest.approx(results["measured"]["winner"]["test"][0]["log_loss"], abs=1e-7)
    assert "with the validation rows too: test log loss" in results["verdict"]
    assert _kept(tmp_path / "out") == _fastest(tmp_path / "out", results)
    # Every epoch has seen the rows of both splits; what is done is not repeated.
    rows = open_split(data, "train").followed_by(open_split(data, "validation"))
    assert len(rows) == 4000 and rows.clicks == sum(int(rows.read(g).labels.sum()) for g in range(len(rows.groups)))
    trial, folder = Trial.from_dict(winner["trial"]), tmp_path / "again"
    with process_group() as device:
        for _ in range(2):
            fit_finally(trial, final["epochs"], RaceData((data,), load_schema(data)), folder, device)
    (checkpoint,) = (folder / "checkpoints").glob("step-*")
    assert int(checkpoint.name[5:]) == final["epochs"] * (len(rows) // trial.recipe.batch_size)
    _, again = load_model(folder)
    _, shipped = load_model(tmp_path / "out")
    for one, other in zip(again.parameters(), shipped.parameters(), strict=True):
        assert one.equal(other)


def test_a_trial_that_cannot_be_trained_spoils_no_other(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    refused: list[str] = []

    class Refusing(Trainer):
        def __init__(self, description: ModelDescription, *arguments: Any) -> None:
            refused.append(description.to_json())
            if everything or len(refused) == 2:
                raise ValueError("its tables do not fit")
            super().__init__(description, *arguments)

    monkeypatch.setattr("nasrec_torchrec.search.race.training.Trainer", Refusing)
    config = RaceConfig(trials=4, epochs=1, final_seeds=1, features=False, trees=False, quiet=True)
    everything = False
    results = auto(data, tmp_path / "one", config)
    assert results is not None
    assert [trial["status"] for trial in results["trials"]] == ["complete", "failed", "complete", "complete"]
    assert results["trials"][1]["error"] == "its tables do not fit"
    everything = True
    with pytest.raises(ValueError, match="all 4 trials failed; the first one: its tables do not fit"):
        auto(data, tmp_path / "all", config)
    with pytest.raises(ValueError, match="the first 10 trials failed, and none was trained; the last one: its tables"):
        auto(data, tmp_path / "many", replace(config, trials=None, budget="1h", epochs=None))


def test_a_column_that_cannot_be_sliced_is_refused_before_the_race(data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="slice: expected a feature of the data, found 'shops'"):
        auto(data, tmp_path, replace(_CONFIG, slice=("shops",)))


def test_limits_that_no_architecture_meets_are_refused(data: Path, tmp_path: Path):
    for limits in (Limits(max_flops=10), Limits(max_latency_us=0.001), Limits(max_table_bytes=10)):
        with pytest.raises(ValueError, match="no architecture of the search space is within the limit"):
            auto(data, tmp_path / "out", _CONFIG, limits=limits)


def test_a_race_chooses_the_widths_of_the_tables_within_a_limit(data: Path, tmp_path: Path):
    """The limit leaves a little more than the narrowest tables need."""
    base = load_schema(data)
    space = replace(RaceSpace(), embedding_widths=(4, 8, 16))
    least = table_bytes(base.with_widths(dict.fromkeys(base.table_names, 4)).tables())
    config = RaceConfig(
        **{"trials": 10, "epochs": 1, "final_seeds": 1, "ensemble": 1, "sources": ("random", "mutation")},
        **dict.fromkeys(("features", "drop_columns", "students", "trees"), False),
        quiet=True,
    )
    results = auto(data, tmp_path / "out", config, space, Limits(max_table_bytes=int(1.3 * least)))
    assert results is not None
    drawn = [trial for trial in results["trials"] if "architecture" in trial["trial"]]
    widths = [trial["trial"]["architecture"]["embedding_widths"] for trial in drawn]
    assert len(drawn) >= 3 and any(len(set(chosen.values())) > 1 for chosen in widths)
    for trial, chosen in zip(drawn, widths, strict=True):
        assert trial["table_bytes"] == table_bytes(base.with_widths(chosen).tables()) <= 1.3 * least
    tables = results["measured"]["winner"]["tables"]
    winner = results["trials"][results["winner"]]
    assert sum(table["bytes"] for table in tables) == winner["table_bytes"]
    assert {table["table"] for table in tables} == set(base.table_names)
    assert ("Its embedding tables take" in results["verdict"]) == ("architecture" in winner["trial"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Widths of the winner&#x27;s tables" in page or "Widths of the winner's tables" in page
    assert f"<td class='n'>{tables[0]['rows']:,}</td><td class='n'>{tables[0]['width']}</td>" in page


def test_a_race_is_not_dropped_while_others_take_part(data: Path, undisturbed):
    out, results = undisturbed
    with lock(out, shared=True):
        with pytest.raises(ValueError, match="is writing here"):
            auto(data, out, _CONFIG, resume="never")
        assert auto(data, out, _CONFIG) == json.loads(json.dumps(results))


def _race(data: str, out: str, trials: int) -> None:
    with _reproducible():
        auto(Path(data), Path(out), RaceConfig(**{**vars(_CONFIG), "trials": trials}))


@pytest.mark.slow
def test_killed_five_times_a_race_ends_as_the_undisturbed_one(data: Path, undisturbed, tmp_path: Path):
    rng, out = random.Random(0), tmp_path / "out"
    kills = 0
    while True:
        process = forked().Process(target=_race, args=(str(data), str(out), 12))
        process.start()
        process.join(rng.uniform(1.5, 3.5) if kills < 5 else 120)
        if process.exitcode is not None:
            break
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert process.exitcode == 0
    assert kills >= 3
    results = json.loads((out / "results.json").read_text())
    assert _what_counts(results) == _what_counts(undisturbed[1])


def test_another_race_in_the_same_folder_is_refused(data: Path, undisturbed):
    out, _ = undisturbed
    with pytest.raises(ValueError, match="holds a race with another config; choose another --out, or --resume never"):
        auto(data, out, RaceConfig(**{**vars(_CONFIG), "seed": 3}))


def test_a_folder_of_others_is_not_dropped(data: Path, tmp_path: Path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match=r"holds thesis\.tex and is no race that this version wrote"):
        auto(data, tmp_path, _CONFIG, resume="never")
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_the_program(data: Path, undisturbed):
    out, results = undisturbed
    flags = [
        "--data",
        data,
        "--out",
        out,
        "--trials",
        12,
        "--epochs",
        5,
        "--final_seeds",
        2,
        "--finalists",
        2,
        "--seed",
        1,
    ]
    done = run_program("-m", "apps.auto", *flags, "--max_features", 2, "--seed", 1, "--quiet", "true")
    assert (done.returncode, done.stdout.strip()) == (0, results["verdict"])
    done = run_program("-m", "apps.auto", "--data", data, "--out", out, "--budget", "soon")
    assert done.returncode == 2 and "budget: expected a number with s, m, h or d" in done.stderr


def test_numbers_race_as_buckets_too(tmp_path: Path):
    """Where clicks depend on a range of a number, its buckets win, and the model that is left reads them."""
    rng = np.random.default_rng(0)
    files = []
    for name, count in (("train", 1600), ("validation", 800), ("test", 200)):
        price, shop = rng.random(count) * 8, rng.integers(0, 4, count)
        clicked = rng.random(count) < np.where(price.astype(int) % 4 < 2, 0.95, 0.05)
        files.append(str(tmp_path / f"{name}.parquet"))
        pq.write_table(pa.table({"clicked": clicked.astype(int), "price": price, "shop": shop}), files[-1])
    schema = Schema("clicked", (DenseFeature("price", "standardize"),), (SparseFeature("shop", 4),), 8)
    prepare(RawData(tuple(files), schema, split=SplitConfig("given")), tmp_path / "data")
    results = auto(tmp_path / "data", tmp_path / "out", replace(_CONFIG, seed=0, trials=4, final_seeds=1, trees=False))
    assert results is not None
    first = next(trial["trial"] for trial in results["trials"] if trial["trial"]["phase"] == "features")
    assert first["features"] == ["price_buckets"]
    assert results["measured"]["winner"]["features"] == ["price_buckets"]
    description, _ = load_model(tmp_path / "out")
    (buckets,) = (feature for feature in description.schema.sparse if feature.ids == "buckets")
    assert buckets.cross == ("price",) and len(buckets.edges) == 64
