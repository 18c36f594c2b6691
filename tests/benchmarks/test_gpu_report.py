import json
from pathlib import Path

import pytest

from benchmarks.gpu_report import Table, main

RUNS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu-h100"


def _rows(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


@pytest.mark.parametrize(("table", "first"), [("training", "512"), ("attention", "512"), ("search", "1,024")])
def test_tables_hold_what_was_measured(table: Table, first: str, capsys: pytest.CaptureFixture[str]):
    main(table, RUNS)
    head, *rows = _rows(capsys.readouterr().out)
    assert rows[0][0] == first and all(len(row) == len(head) for row in rows)


def test_graphs_stand_beside_what_they_replace(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    kind = {"model": "dlrm", "rows": 512, "precision": "fp32", "peak_memory": 2**21}
    lines = [
        kind | {"mode": "eager", "seconds": [0.006, 0.005, 0.007]},
        kind | {"mode": "graphs", "seconds": [0.002, 0.001, 0.003]},
    ]
    (tmp_path / "graphs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "compiled.jsonl").write_text(json.dumps(kind | {"mode": "compiled", "refused": "no compiler"}))
    main("graphs", tmp_path)
    head, row = _rows(capsys.readouterr().out)
    line = dict(zip(head, row, strict=True))
    assert line["eager, ms"] == "6 (5-7)" and line["graphs: times as fast"] == "3.0" and line["graphs, MiB"] == "2"
    assert not line["compiled, ms"]


def test_what_was_not_reached_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main("training", tmp_path)
    assert _rows(capsys.readouterr().out) == []
