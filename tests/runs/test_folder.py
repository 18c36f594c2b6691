import contextlib
import json
import multiprocessing
from pathlib import Path

import pytest

from nasrec_torchrec.runs.files import atomic_path, read_json, walk, write_text
from nasrec_torchrec.runs.folder import check_replaceable, claim, clear, recover, replace_folder
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.runs.names import LOCK, LOG, MARKER, METRICS
from nasrec_torchrec.runs.paths import to_path


def _tree(folder: Path) -> dict[str, str]:
    return {str(file.relative_to(folder)): file.read_text() for file in sorted(folder.rglob("*")) if file.is_file()}


def _fill(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        write_text(folder / name.replace("__", "/"), text)
    return folder


def test_files_of_others_in_a_claimed_folder_stay(tmp_path):
    run = _fill(tmp_path / "run", notes="mine", checkpoints__notes="mine", tensorboard__mine="mine")
    claim(run, "training")
    _fill(run, **{LOG: "", METRICS: "{}"}, checkpoints__step_00000001="mine")
    _fill(run / "checkpoints" / "step-00000001", progress="{}")
    _fill(run / "tensorboard", **{"events.out.tfevents.1": ""})
    claim(run, "training")  # again
    clear(run, "training")
    expected = ("notes", "checkpoints/notes", "checkpoints/step_00000001", "tensorboard/mine")
    assert _tree(run) == dict.fromkeys(sorted(expected), "mine")
    assert not (run / "checkpoints" / "step-00000001").exists()
    _fill(tmp_path / "own", **{LOG: ""}).joinpath(LOG).unlink()
    claim(tmp_path / "own", "training")
    _fill(tmp_path / "own", **{LOG: ""})
    clear(tmp_path / "own", "training")
    assert not (tmp_path / "own").exists()


def test_nothing_of_a_dropped_race_is_left_for_the_next_one(tmp_path):
    claim(tmp_path / "race", "race")
    _fill(tmp_path / "race", **{"race.journal": "", ".data-1.lock": ""})
    for folder in ("tree", "data-1", "trials/0003/checkpoints"):
        _fill(tmp_path / "race" / folder, **{"result.json": "{}"})
    clear(tmp_path / "race", "race")
    assert not (tmp_path / "race").exists()


def test_a_folder_of_something_else_is_refused(tmp_path):
    old = _fill(tmp_path / "old", **{LOG: "an earlier version's"})
    with pytest.raises(ValueError, match=r"old: holds log.jsonl, which an earlier version or another program wrote"):
        claim(old, "training")
    for kind in ("package", "training"):
        with pytest.raises(ValueError, match=rf"old: holds log.jsonl and is no {kind} that this version wrote"):
            check_replaceable(old, kind)
    claim(tmp_path / "run", "training")
    with pytest.raises(ValueError, match="run: holds a training, expected a package or nothing"):
        check_replaceable(tmp_path / "run", "package")
    with pytest.raises(ValueError, match="run: holds a training, expected a search or nothing"):
        claim(tmp_path / "run", "search")
    with pytest.raises(ValueError, match=r"log.jsonl: expected a folder, found a file"):
        check_replaceable(old / LOG, "package")
    assert _tree(old) == {LOG: "an earlier version's"}


@pytest.mark.parametrize("files", [["../outside"], ["/etc/x"], [""], "all", [1]])
def test_a_marker_cannot_reach_outside_of_its_folder(tmp_path, files):
    _fill(tmp_path, outside="mine")
    package = _fill(tmp_path / "package", model="")
    marker = {"format": "nasrec-torchrec/folder/1", "kind": "package", "files": files}
    (package / MARKER).write_text(json.dumps(marker))
    with pytest.raises(ValueError, match=rf"{MARKER}: not a marker of this program, so nothing here is touched"):
        clear(package, "package")
    assert (tmp_path / "outside").exists() and (package / "model").exists()


def _replace(folder: Path, text: str) -> None:
    new = _fill(folder / "new", model=text, words__user=text, **({"only": text} if text == "one" else {}))
    replace_folder(new, folder / "package", "package", last="model")


def test_a_folder_takes_the_place_of_another_one(tmp_path):
    package = tmp_path / "package"
    package.mkdir()  # an empty one is nobody's
    _replace(tmp_path, "one")
    _fill(package, notes="mine", words__notes="mine")
    _replace(tmp_path, "two")
    files = _tree(package)
    assert MARKER in files and files.pop(MARKER)
    assert files == {"model": "two", "words/user": "two", "notes": "mine", "words/notes": "mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["package"]


@pytest.mark.parametrize("renames", range(4))
def test_a_replacement_that_was_killed_is_put_right(tmp_path, monkeypatch, renames):
    _replace(tmp_path, "one")
    _fill(tmp_path / "package", notes="mine")
    done = 0
    rename = Path.rename

    def stop(source: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt
        done += 1
        return rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop)
        with contextlib.suppress(KeyboardInterrupt):
            _replace(tmp_path, "two")
    recover(tmp_path / "package")
    files = _tree(tmp_path / "package")
    assert files["notes"] == "mine"
    assert (files["model"], "only" in files) == (("one", True) if renames < 2 else ("two", False))


def test_a_remote_folder_is_replaced_file_by_file(tmp_path):
    package = to_path("memory://folders/package")
    for text in ("one", "two"):
        new = _fill(tmp_path / "new", model=text, **({"only": text} if text == "one" else {}))
        replace_folder(new, package, "package", last="model")
        write_text(package / "notes", "mine")
    assert list(walk(package)) == [MARKER, "model", "notes"]
    assert (package / "model").open().read() == "two"
    with pytest.raises(ValueError, match=r"memory://folders: holds package/.* and is no package"):
        check_replaceable(package.parent, "package")
    clear(package, "package")
    assert list(walk(package)) == ["notes"]


def test_leftovers_of_killed_writers_go_with_the_next_start(tmp_path):
    claim(tmp_path, "training")
    with pytest.raises(KeyboardInterrupt), atomic_path(tmp_path / METRICS) as temporary:
        temporary.write_text("half")
        temporary.rename(tmp_path / "kept")  # what a process that is killed here leaves
        raise KeyboardInterrupt
    (tmp_path / "kept").rename(temporary)
    claim(tmp_path, "training")
    assert [file.name for file in tmp_path.iterdir()] == [MARKER]


def _hold(folder: Path, connection, shared: bool = False) -> None:
    with lock(folder, shared):
        connection.send("held")
        connection.recv()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("where", ["local", "memory://locked/run"])
def test_a_folder_has_one_writer(tmp_path, where, killed, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "run" if where == "local" else to_path(where)
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(folder, theirs))
    process.start()
    assert mine.poll(20) and mine.recv() == "held"
    with pytest.raises(ValueError, match=rf"run: process {process.pid} on .* is writing here"), lock(folder):
        pass
    process.kill() if killed else mine.send("go")
    process.join()
    with lock(folder):
        pass
    assert not (tmp_path / "run" / LOCK).exists()


def test_workers_share_a_folder_that_nobody_else_may_write(tmp_path):
    folder = tmp_path / "run"
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()
    process = context.Process(target=_hold, args=(folder, theirs, True))
    process.start()
    assert mine.poll(20) and mine.recv() == "held"
    with lock(folder, shared=True):
        pass
    # One worker has left, and the other one still holds it.
    with pytest.raises(ValueError, match=r"run: .* is writing here"), lock(folder):
        pass
    mine.send("go")
    process.join()
    assert not (folder / LOCK).exists()
    with lock(folder), pytest.raises(ValueError, match="is writing here"), lock(folder, shared=True):
        pass


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    _fill(tmp_path, file="")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="expected a folder, found a file in its place"), lock(folder):
            pass
    with pytest.raises(ValueError, match="/proc/run: cannot be written"), lock(Path("/proc/run")):
        pass


def test_a_damaged_state_file_is_named(tmp_path):
    file = tmp_path / "state.json"
    for text, reason in (
        ("{", "damaged, not a JSON document: .*line 1"),
        ("[" * 100_000, "damaged, nested too deeply"),
        ('{"steps": "many"}', "damaged, steps: .*integer"),
        ("[1]", "damaged, the document: .*dictionary"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"state.json: {reason}.*; remove it"):
            read_json(file, dict[str, int], "remove it")
    file.write_text('{"steps": 3}')
    assert read_json(file, dict[str, int]) == {"steps": 3}
