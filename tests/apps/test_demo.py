import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import component_program, make_movielens, run_program

from nasrec_torchrec import datasets
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.demo import movielens, races, run
from nasrec_torchrec.demo.launch import component_words, launch
from nasrec_torchrec.training.jobs import evaluate


@pytest.mark.extended
def test_the_demo_gives_three_races_the_same_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = make_movielens(tmp_path / "movielens", 1500)
    prepare = datasets.prepare_movielens100k
    monkeypatch.setattr(datasets, "prepare_movielens100k", lambda out, overwrite: prepare(out, source, 16, overwrite))
    config = replace(races.CONFIG, trials=3, epochs=1, final_seeds=1, quiet=True, trees=True)
    monkeypatch.setattr(races, "CONFIG", config)
    raced: list[dict[str, Any]] = []
    race = races.auto

    def auto(data: Path, out: Path, config: Any) -> Any:
        names = ("budget", "sources", "features", "students")
        raced.append({"out": out.name, **{name: getattr(config, name) for name in names}})
        return race(data, out, config)

    monkeypatch.setattr(races, "auto", auto)
    rows = run(tmp_path / "demo", budget="30s", workers=1)
    printed = capsys.readouterr().out
    assert [one["out"] for one in raced] == ["auto", "random-networks", "baselines"]
    assert {one["budget"] for one in raced} == {"30s"} and [one["features"] for one in raced] == [True, False, False]
    assert [one["students"] for one in raced] == [True, False, False]
    assert [one["sources"] for one in raced][1:] == [("random",), ("baseline",)]
    assert rows == json.loads((tmp_path / "demo" / "report.json").read_text())
    procedures = ["nasrec auto", "random networks alone", "baselines alone, tuned", "LightGBM"]
    assert [row["procedure"] for row in rows] == procedures
    assert races.format_table(rows) in printed
    ensemble = json.loads((tmp_path / "demo" / "auto" / "results.json").read_text())["ensemble"]
    assert rows[0]["together"] == (ensemble["test"]["log_loss"] if ensemble else None) and "with others:" in printed
    # What stands in the table is the model in the folder, and the exported file gives the same loss.
    folder = tmp_path / "demo" / "auto"
    data = next(
        place
        for place in (tmp_path / "demo" / "data", *sorted(folder.glob("data-*")))
        if set(json.loads((folder / "results.json").read_text())["model"]["features"])
        <= set(load_schema(place).feature_names)
    )
    loss = evaluate(folder, data).log_loss
    assert rows[0]["log_loss"] == pytest.approx(loss, abs=1e-6)
    assert f"of the exported model, from its scores: {loss:.4f}" in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "auto/report.html" in page and (tmp_path / "demo" / "race.png").read_bytes().startswith(b"\x89PNG")


def test_workers_of_the_demo_are_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[list[str]] = []
    threads: list[str] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    class Failing:
        def __init__(self, words: list[str], env: dict[str, str], **_: Any) -> None:
            started.append(words)
            threads.append(env["OMP_NUM_THREADS"])

        def wait(self) -> int:
            return len(started) - 1  # the second one fails

    monkeypatch.setattr(races.subprocess, "Popen", Failing)
    monkeypatch.setattr(datasets, "prepare_movielens100k", lambda out, overwrite: {})
    with pytest.raises(ValueError, match=r"auto: a worker of the race failed"):
        run(tmp_path / "demo", budget="80s", workers=2, seed=3)
    one, other = started
    assert one[1:4] == ["-m", "nasrec_torchrec", "auto"] and one[-4:] == ["--seed", "3", "--quiet", "false"]
    assert one[one.index("--budget") + 1] == "80s" and other[-1] == "true" and other[:-1] == one[:-1]
    assert threads == [str(max(1, (os.cpu_count() or 1) // 2))] * 2


@pytest.mark.extended
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_paper_s_demo_compares_three_models_on_a_small_copy(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = make_movielens(tmp_path / "movielens", 1500)
    prepare = datasets.prepare_movielens100k
    monkeypatch.setattr(datasets, "prepare_movielens100k", lambda out, overwrite: prepare(out, source, 16, overwrite))
    for name in ("SUPERNET", "TRAINING"):
        monkeypatch.setattr(movielens, name, replace(getattr(movielens, name), epochs=1))
    evolution = replace(movielens.EVOLUTION, population=4, generations=1, children=2, tournament=2)
    monkeypatch.setattr(movielens, "EVOLUTION", evolution)
    monkeypatch.setattr(movielens, "FINETUNING", replace(movielens.FINETUNING, finetune_steps=5))
    monkeypatch.setattr(movielens, "SPACE", replace(movielens.SPACE, num_blocks=1))
    if ranks == 2:  # the other one has two trials of every model
        monkeypatch.setattr(movielens, "LEARNING_RATES", (0.1,))

    def run_component(component: str, ranks: int, **arguments: Any) -> None:
        if ranks == 1:
            launch(component, ranks, **arguments)
            return
        done = run_program(*component_program(component, component_words(ranks, arguments)))
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(movielens, "launch", run_component)
    rows = run(tmp_path / "demo", paper=True, ranks=ranks)
    printed = capsys.readouterr().out
    assert rows == json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [row["model"] for row in rows] == ["DLRM", "random NASRecNet", "searched NASRecNet"]
    assert all(len(row["auc"]) == 3 and row["multiply_adds"] > 0 for row in rows)
    assert movielens.format_table(rows) in printed and "of the exported model" in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    for file in ("nasrecnet/architecture.svg", "search/report.html", "search/search.png"):
        assert file in page and (tmp_path / "demo" / file).exists()
