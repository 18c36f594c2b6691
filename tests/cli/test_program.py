import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasrec_torchrec.cli.export import PROGRAM as EXPORT
from nasrec_torchrec.cli.main import JOBS, programs_of
from nasrec_torchrec.cli.program import INTERRUPTED, Program, as_json
from nasrec_torchrec.inference.exporting import Drift
from nasrec_torchrec.inference.jobs import ExportedPackage
from nasrec_torchrec.metrics.click_metrics import ClickMetrics


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C; torchx's local scheduler leaves another one in a process that used it."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


def prepare(out: Path) -> None:
    """Writes something.

    Args:
        out: folder that receives it.
    """
    (out / "begun").touch()
    os.kill(os.getpid(), signal.SIGINT)
    (out / "finished").touch()


def test_ctrl_c_ends_in_one_line_that_says_how_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    program = Program(prepare, needs_torch=False, resume="run the same command again to resume after the last piece")
    with pytest.raises(SystemExit) as end:
        program.main("nasrec prepare", ["--out", str(tmp_path)])
    assert end.value.code == INTERRUPTED == 128 + signal.SIGINT
    assert capsys.readouterr().err.strip() == "interrupted; run the same command again to resume after the last piece"
    assert (tmp_path / "begun").exists() and not (tmp_path / "finished").exists()


def test_only_the_first_rank_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as end:
        Program(prepare, needs_torch=False).main("nasrec prepare", ["--out", str(tmp_path)])
    assert end.value.code == INTERRUPTED and capsys.readouterr().err == ""


def test_the_default_of_a_flag_may_be_a_path(capsys: pytest.CaptureFixture[str]):
    def show(source: Path = Path("a/b"), more: tuple[Path, ...] = (Path("c"),)) -> str:
        """Shows paths.

        Args:
            source: one.
            more: several.
        """
        return f"{source!r} {more!r}"

    Program(show, needs_torch=False, show=str).main("show", [])
    assert capsys.readouterr().out.strip() == f"{Path('a/b')!r} {(Path('c'),)!r}"


def test_every_program_that_prints_a_result_prints_it_as_json_too():
    for job in JOBS:
        for program in programs_of(job).values():
            own = any(flag.name == "json" for flag in program.flags)
            assert program.show is None or program.document is not None or own, program.function


def test_with_json_nothing_but_the_result_is_on_standard_output(capfd: pytest.CaptureFixture[str]):
    def talk() -> dict[str, float]:
        """Says something before it returns."""
        print("from Python")
        subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
        return {"loss": float("nan")}

    program = Program(talk, needs_torch=False, show=str, document=lambda found: found)
    program.main("talk", ["--json"])
    out, err = capfd.readouterr()
    assert json.loads(out) == {"loss": None} and err.split("\n")[:2] == ["from Python", "from a process"]
    program.main("talk", [])
    assert capfd.readouterr().out.startswith("from")


def test_an_export_is_a_json_object():
    metrics = ClickMetrics(None, 0.5, None, 10)
    package = ExportedPackage(Path("a/b"), 7, ("torch",), Drift(metrics, metrics, 3, 4))
    assert EXPORT.document is not None
    found = json.loads(as_json(EXPORT.document(package)))
    assert found["folder"] == "a/b" and found["size"] == 7 and found["drift"]["exported"]["log_loss"] == 0.5
