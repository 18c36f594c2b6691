import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from nasrec_torchrec.cli.program import INTERRUPTED, Program


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
