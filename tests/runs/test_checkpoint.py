import json
import os
import pickle
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from support import make_click_files, make_schema

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.checkpoint import complete_checkpoints, find_damage, kept_checkpoint, newest_intact
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
MODEL = ModelDescription(SCHEMA, Baseline("mlp", over_layers=(8, 1)))


def _train(folder: Path, validation: bool = True, **config) -> Trainer:
    trainer = Trainer(MODEL, TrainConfig(**({"batch_size": 50, "epochs": 3} | config)), folder, torch.device("cpu"))
    trainer.train(make_click_files(SCHEMA, 200), make_click_files(SCHEMA, 100, seed=1) if validation else None)
    return trainer


@pytest.fixture
def run(one_rank, tmp_path) -> Path:
    _train(tmp_path / "run", validation=False)
    return tmp_path / "run"


@pytest.fixture
def copy(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def _flip(file: Path, offset: int) -> None:
    content = bytearray(file.read_bytes())
    content[offset] ^= 64
    file.write_bytes(content)


def test_every_file_of_a_checkpoint_has_a_checksum(run):
    for folder in complete_checkpoints(run):
        digests = json.loads((folder / "digests.json").read_text())
        assert sorted(digests) == sorted(file.name for file in folder.iterdir() if file.name != "digests.json")
        assert find_damage(folder) is None


def test_a_full_disk_is_the_error_that_the_system_gives(one_rank, tmp_path):
    """It hides in the tracebacks of all ranks, or behind an archive that torch.save could not end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most_bytes in (600, 2_000, 7_000, 20_000, 22_500):
        folder = tmp_path / str(most_bytes)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                _train(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert complete_checkpoints(folder) == []
        assert _train(folder).progress.step == 12


def test_a_flipped_bit_anywhere_is_found(run, copy):
    newest = complete_checkpoints(copy)[-1]
    for file in sorted(newest.iterdir()):
        size = file.stat().st_size
        for offset in {0, size // 3, size // 2, size - 1}:
            _flip(file, offset)
            damage = find_damage(newest)
            assert damage is not None and newest.name in damage, (file.name, offset)
            _flip(file, offset)
    assert find_damage(newest) is None


def test_the_checkpoint_before_a_damaged_one_is_used_and_said(run, copy, capfd):
    older, newest = complete_checkpoints(copy)
    _flip(newest / "__0_0.distcp", 5000)
    assert newest_intact(copy) == kept_checkpoint(copy) == older
    assert f"{newest}/__0_0.distcp: damaged, its checksum is another" in capfd.readouterr().err
    # A training resumes there, and comes to the same end.
    _train(copy, validation=False)
    whole, again = (load_model(folder)[1].state_dict() for folder in (run, copy))
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert [path.name for path in complete_checkpoints(copy)] == [older.name, newest.name]
    for folder in complete_checkpoints(copy):
        (folder / "progress.json").write_text("{")
    with pytest.raises(ValueError, match=r"progress.json: damaged.*progress.json: damaged.* has no other checkpoint"):
        load_model(copy)


def test_no_other_checkpoint_stands_for_a_damaged_best_one(copy):
    best, _ = complete_checkpoints(copy)
    (copy / "checkpoints" / "best.json").write_text(json.dumps({"folder": best.name, "before": None}))
    assert kept_checkpoint(copy) == best
    _flip(best / ".metadata", 40)
    with pytest.raises(ValueError, match=r".metadata: damaged.*it is the best of the run"):
        load_model(copy)
    shutil.rmtree(best)
    (copy / "checkpoints" / "best.json").write_text(json.dumps({"folder": best.name, "before": best.name}))
    with pytest.raises(ValueError, match=rf"best.json: names {best.name}, and no such checkpoint is there"):
        load_model(copy)
    for text in ("[1]", "{}", '{"folder": 1}', "{"):
        (copy / "checkpoints" / "best.json").write_text(text)
        with pytest.raises(ValueError, match=r"best.json: damaged"):
            load_model(copy)


class _Stop(BaseException):
    pass


def test_the_best_is_right_wherever_a_training_is_killed(one_rank, tmp_path, monkeypatch):
    """Ends it at every renaming around the best checkpoint, and compares what the next start comes to."""
    targets: list[str] = []
    stop_at: int | None = None
    for name in ("replace", "rename"):
        original = getattr(os, name)

        def counted(source, target, *arguments, original=original, **options):
            if "/checkpoints/" in str(target):
                if len(targets) == stop_at:
                    raise _Stop
                targets.append(str(target))
            return original(source, target, *arguments, **options)

        monkeypatch.setattr(os, name, counted)
    whole = _train(tmp_path / "whole", learning_rate=0.5, epochs=4)
    expected = kept_checkpoint(tmp_path / "whole")
    assert expected.name != complete_checkpoints(tmp_path / "whole")[-1].name, "the last epoch is the best"
    weights, validation = load_model(tmp_path / "whole")[1].state_dict(), make_click_files(SCHEMA, 100, seed=1)
    first = next(number for number, target in enumerate(targets) if expected.name in target)
    assert [Path(target).name for target in targets[first : first + 6]] == [
        *("model.json", "progress.json", ".metadata", "best.json", "digests.json", expected.name)
    ]
    for killed in range(first, first + 7):
        targets, stop_at, out = [], killed, tmp_path / f"killed-{killed}"
        with pytest.raises((_Stop, dcp.api.CheckpointException)):
            _train(out, learning_rate=0.5, epochs=4)
        stop_at = None
        again = _train(out, learning_rate=0.5, epochs=4)
        assert kept_checkpoint(out).name == expected.name
        found = load_model(out)[1].state_dict()
        assert all(torch.equal(value, found[name]) for name, value in weights.items())
        assert again.evaluate(validation) == whole.evaluate(validation)


class _Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_the_pickle_of_a_checkpoint_runs_nothing(copy, tmp_path):
    """Also where the attacker has made the checksums fit, or removed them."""
    folder = complete_checkpoints(copy)[-1]
    (folder / ".metadata").write_bytes(pickle.dumps(_Command(tmp_path / "was-here")))
    for other in complete_checkpoints(copy):
        (other / "digests.json").unlink()
    with pytest.raises(ValueError, match=r"the checkpoint cannot be read: .*it names .*mkdir, which no metadata needs"):
        load_model(copy)
    for content in (b"", b"damaged", pickle.dumps({"a": 1}), pickle.dumps([1])):
        (folder / ".metadata").write_bytes(content)
        with pytest.raises(ValueError, match=r"the checkpoint cannot be read: .*not a checkpoint's metadata"):
            load_model(copy)
    assert not (tmp_path / "was-here").exists()


def test_runs_of_the_first_version_load(copy):
    """They have no checksums."""
    for folder in complete_checkpoints(copy):
        (folder / "digests.json").unlink()
    load_model(copy)


def test_damaged_runs_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load_model(tmp_path)
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    with pytest.raises(ValueError, match="no complete checkpoint"):
        load_model(tmp_path)
    (folder / ".metadata").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model.json: cannot be read"):
        load_model(tmp_path)
    (folder / "model.json").write_text("{}")
    with pytest.raises(ValueError, match=r"model.json: .*expected format"):
        load_model(tmp_path)
    (folder / "model.json").write_text(MODEL.to_json())
    with pytest.raises(ValueError, match="step-00000001: the checkpoint cannot be read"):
        load_model(tmp_path)
