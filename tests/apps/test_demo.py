import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import component_program, make_movielens, run_program

from nasrec_torchrec import datasets
from nasrec_torchrec.demo import movielens, run
from nasrec_torchrec.demo.launch import component_words, launch


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_demo_compares_three_models_on_a_small_copy(
    ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    source = make_movielens(tmp_path / "movielens", 3000)
    prepare = datasets.prepare_movielens100k
    monkeypatch.setattr(datasets, "prepare_movielens100k", lambda out, overwrite: prepare(out, source, 16, overwrite))
    for name in ("SUPERNET", "TRAINING"):
        monkeypatch.setattr(movielens, name, replace(getattr(movielens, name), epochs=1))
    evolution = replace(movielens.EVOLUTION, population=4, generations=1, children=2, tournament=2)
    monkeypatch.setattr(movielens, "EVOLUTION", evolution)

    def run_component(component: str, ranks: int, **arguments: Any) -> None:
        if ranks == 1:
            launch(component, ranks, **arguments)
            return
        done = run_program(*component_program(component, component_words(ranks, arguments)))
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(movielens, "launch", run_component)
    rows = run(tmp_path / "demo", ranks)
    printed = capsys.readouterr().out
    assert rows == json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [row["model"] for row in rows] == ["DLRM", "random NASRecNet", "searched NASRecNet"]
    assert all(len(row["auc"]) == 3 and row["multiply_adds"] > 0 for row in rows)
    assert movielens.format_table(rows) in printed and "of the exported model" in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    for file in ("nasrecnet/architecture.svg", "search/report.html", "search/search.png"):
        assert file in page and (tmp_path / "demo" / file).exists()
