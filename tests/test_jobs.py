"""The functions of the jobs, as a notebook calls them: no command line, no process group by hand."""

import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from support import prepare_clicks

from nasrec_torchrec import PUBLISHED, SearchSpace, search, training
from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.distributed.process_group import process_group
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.scoring_model import scoring_model
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.search import EvaluationConfig, EvolutionConfig
from nasrec_torchrec.training import TrainConfig

SPACE = SearchSpace(num_blocks=2, dense_widths=(16, 32), sparse_widths=(4, 8))
TRAINING = TrainConfig(batch_size=40, learning_rate=0.05, full_path_steps=5)
EVOLUTION = EvolutionConfig(population=4, generations=1, children=2, tournament=2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_clicks(tmp_path_factory.mktemp("jobs") / "data")


def test_supernet_search_training_and_evaluation_by_functions(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["notebook", "--not-a-flag"])
    training.run_supernet(str(data), str(tmp_path / "supernet"), SPACE, TRAINING)
    evaluation = EvaluationConfig(finetune_steps=3, finetune_batch_size=20)
    found = search.run(tmp_path / "supernet", data, tmp_path / "search", EVOLUTION, evaluation, top_k=2)
    assert found is not None and len(found.candidates) == 6
    assert found.best.loss == min(candidate.loss for candidate in found.candidates)
    best = training.run(data, tmp_path / "model", TRAINING, architecture=found.best.architecture, seeds=(0, 1))
    assert best is not None and len(best["runs"]) == 2
    page = search.write_report(tmp_path / "search", (tmp_path / "model",))
    assert page == found.report and "Finalists" in page.read_text()
    measured = training.evaluate(str(tmp_path / "model"), data, "validation")
    assert measured.log_loss == pytest.approx(min(r["validation"]["log_loss"] for r in best["runs"]), abs=1e-5)
    assert load_model(tmp_path / "model")[0].interaction == found.best.architecture
    assert not dist.is_initialized()
    assert capsys.readouterr().out == "", "a function returns; a command prints"


def test_a_feature_that_is_dropped_is_neither_stored_nor_asked_for(data: Path, tmp_path: Path):
    schema = load_schema(data)
    dropped = schema.sparse[1].name, schema.dense[0].name
    training.run(data, tmp_path / "model", TRAINING, architecture="mlp", drop_features=dropped)
    description, model = load_model(tmp_path / "model")
    kept = [name for name in schema.feature_names if name not in dropped]
    assert description.schema.feature_names == kept and len(description.schema.dense) == len(schema.dense) - 1
    assert dropped[0] not in str(list(model.state_dict()))
    package = scoring_model(model, ExportConfig(), kept)
    assert package.tables.rows.numel() == len(kept)
    assert 0 < training.evaluate(tmp_path / "model", data).log_loss < 2
    with pytest.raises(ValueError, match=r"features to leave out: .* found \['colour'\]"):
        training.run(data, tmp_path / "other", TRAINING, architecture="mlp", drop_features=("colour",))


def test_a_process_group_of_the_caller_is_used_and_stays(data: Path, tmp_path: Path):
    with process_group():
        training.run_supernet(data, tmp_path / "supernet", SPACE, TRAINING)
        assert dist.is_initialized()


@pytest.mark.parametrize(("name", "hint"), [("criteo-smal", "criteo-small"), ("dlmr", "dlrm"), ("nothing", None)])
def test_an_unknown_architecture_is_answered_with_the_nearest_name(data: Path, tmp_path: Path, name, hint):
    with pytest.raises(ValueError, match=f"architecture: {name}: cannot be read") as error:
        training.run(data, tmp_path / "model", architecture=name)
    assert all(known in str(error.value) for known in PUBLISHED)
    assert ("did you mean" in str(error.value)) == bool(hint) and (hint or "") in str(error.value)
    assert not (tmp_path / "model").exists()
