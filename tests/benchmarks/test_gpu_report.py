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


def test_what_was_not_reached_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main("training", tmp_path)
    assert _rows(capsys.readouterr().out) == []
