import json
from pathlib import Path

import pytest
from support import component_program, make_movielens, run_program

from apps import demo


@pytest.mark.slow
def test_the_demo_compares_three_models_on_a_small_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    smaller = {
        "prepare_data": ["--source", str(make_movielens(tmp_path / "movielens", 3000))],
        "train_supernet": ["--epochs", "1"],
        "search": ["--population", "4", "--generations", "1", "--children", "2", "--tournament", "2"],
        "train": ["--epochs", "1"],
    }

    def component(name: str, *flags: str, **arguments: object) -> None:
        named = [word for key, value in arguments.items() for word in ("-j" if key == "j" else f"--{key}", str(value))]
        done = run_program(*component_program(name, [*named, "--", *flags, *smaller.get(name, [])]))
        assert done.returncode == 0, done.stderr[-3000:]

    monkeypatch.setattr(demo, "component", component)
    demo.main(tmp_path / "demo")
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert [row["model"] for row in rows] == ["DLRM", "random NASRecNet", "searched NASRecNet"]
    assert all(len(row["auc"]) == 3 and row["multiply_adds"] > 0 for row in rows)
    assert demo.format_table(rows) in printed and "of the exported model" in printed
    page = (tmp_path / "demo" / "report.html").read_text()
    for file in ("nasrecnet/architecture.svg", "search/report.html", "search/search.png"):
        assert file in page and (tmp_path / "demo" / file).exists()
