import os
import signal
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
from support import SMALL_SPACE

from nasrec_torchrec import SearchSpace
from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.evaluator import Candidate
from nasrec_torchrec.search.evolution import EvolutionConfig, evolve
from nasrec_torchrec.search.study import CandidateStudy
from nasrec_torchrec.training.metrics import ClickMetrics

EVOLUTION = EvolutionConfig(population=12, generations=6, children=4, tournament=6)


def score(architecture: Architecture) -> Candidate:
    loss = 1 / 3 - sum(block.dense_width + block.sparse_width for block in architecture.blocks) / 7000
    return Candidate(architecture, ClickMetrics(0.7, loss, loss / 0.6, 10), 100, 10, 0.25)


def _open(storage: str | Path, **options) -> CandidateStudy:
    return CandidateStudy(storage, "search", SMALL_SPACE, options.pop("settings", {"steps": 3}), **options)


@pytest.mark.parametrize("storage", ("{}/study.journal", "sqlite:///{}/study.db"))
def test_candidates_come_back_as_they_were(tmp_path: Path, storage: str):
    study = _open(storage.format(tmp_path))
    assert study.candidates == []
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        study.add(score(SMALL_SPACE.sample(generator)))
    again = _open(storage.format(tmp_path))
    assert again.candidates == study.candidates


def test_a_search_that_failed_goes_on_where_it_was(tmp_path: Path):
    undisturbed = list(evolve(SMALL_SPACE, score, EVOLUTION))
    evaluated: list[Architecture] = []

    def fails_at(count: int):
        def evaluate(architecture: Architecture) -> Candidate:
            if len(evaluated) == count:
                raise OSError("no machine left")
            evaluated.append(architecture.canonical())
            return score(architecture)

        return evaluate

    for count in (5, 12, 25):
        with pytest.raises(OSError, match="no machine left"):
            list(evolve(SMALL_SPACE, _open(tmp_path / "journal").remembering(fails_at(count)), EVOLUTION))
    study = _open(tmp_path / "journal")
    assert len(study.candidates) == 25
    assert list(evolve(SMALL_SPACE, study.remembering(fails_at(1000)), EVOLUTION)) == undisturbed
    assert len(set(evaluated)) == len(evaluated) == EVOLUTION.evaluations == len(study.candidates)


def test_other_candidates_are_not_mixed_in(tmp_path: Path):
    _open(tmp_path / "journal").add(score(SMALL_SPACE.sample(torch.Generator().manual_seed(0))))
    with pytest.raises(ValueError, match="holds candidates of another steps; choose another --out"):
        _open(tmp_path / "journal", settings={"steps": 4})
    with pytest.raises(ValueError, match="holds candidates of another space"):
        CandidateStudy(tmp_path / "journal", "search", SearchSpace(2), {"steps": 3})
    assert len(_open(tmp_path / "journal").candidates) == 1
    assert _open(tmp_path / "journal", settings={"steps": 4}, anew=True).candidates == []


@pytest.mark.parametrize("storage", ("nodatabase://me:secret@host/db", "sqlite:////nowhere/at/all.db"))
def test_a_storage_that_cannot_be_opened(storage: str):
    with pytest.raises(ValueError, match=f"storage: {storage.replace('me:secret@', '')} cannot be opened: "):
        _open(storage)


def test_optuna_reads_the_choices(tmp_path: Path):
    study = _open(f"sqlite:///{tmp_path}/study.db")
    generator = torch.Generator().manual_seed(0)
    architectures = [SMALL_SPACE.sample(generator) for _ in range(60)]
    for architecture in architectures:
        study.add(score(architecture))
    plain = optuna.load_study(study_name="search", storage=f"sqlite:///{tmp_path}/study.db")
    block = architectures[7].blocks[1]
    parameters = plain.trials[7].params
    assert parameters["block1.dense_width"] == block.dense_width
    assert parameters["block1.sparse_reads_0"] == (0 in block.sparse_inputs)
    assert plain.best_value == min(candidate.metrics.log_loss for candidate in study.candidates)
    importances = optuna.importance.get_param_importances(
        plain, evaluator=optuna.importance.PedAnovaImportanceEvaluator()
    )
    assert all(name.endswith("_width") for name in list(importances)[:2]), importances


@pytest.mark.slow
def test_killed_searches_lose_no_candidate(tmp_path: Path):
    program = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from search.test_study import *\n"
        "from search.test_study import _open\n"
        "def slowly(architecture): time.sleep(0.01); return score(architecture)\n"
        "for candidate in evolve(SMALL_SPACE, _open(sys.argv[2]).remembering(slowly), EVOLUTION):\n"
        "    print(candidate.architecture.to_json().replace('\\n', ''), flush=True)\n"
    )
    command = [sys.executable, "-c", program, str(Path(__file__).parents[1]), str(tmp_path / "journal")]
    reported: set[Architecture] = set()
    for lines in (3, 11, 20):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reported |= {Architecture.from_json(process.stdout.readline()) for _ in range(lines)}
            os.kill(process.pid, signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        held = [candidate.architecture for candidate in _open(tmp_path / "journal").candidates]
        assert reported <= set(held) and len(held) == len(set(held))
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    final = _open(tmp_path / "journal").candidates
    assert final == list(evolve(SMALL_SPACE, score, EVOLUTION))
