"""One model of several labels: its loss, its metrics by label, ranks, resumption, and what it is begun with."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pytest
import torch
from support import SMALL_SPACE, in_step, make_ebc, make_kjt, run_program, run_ranks
from torch.nn import functional as F
from torchrec.datasets.utils import Batch

from nasrec_torchrec import training
from nasrec_torchrec.datasets.labels import Task
from nasrec_torchrec.datasets.prepared import load_schema, open_split
from nasrec_torchrec.datasets.row_weights import label_shares
from nasrec_torchrec.metrics.click_metrics import click_metrics, predict
from nasrec_torchrec.metrics.several_labels import known_rows
from nasrec_torchrec.models.baselines import build_baseline
from nasrec_torchrec.models.config import BASELINES, Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.status import read_status
from nasrec_torchrec.training.config import TrainConfig, TrainFlags
from nasrec_torchrec.training.guard import StepGuard
from nasrec_torchrec.training.task import ClickTask, MicroBatches
from nasrec_torchrec.training.trainer import Trainer
from nasrec_torchrec.training.warm_start import WarmStart

CPU = torch.device("cpu")
ROWS = 4_000
SCHEMA = """
label: clicked
tasks:
- {name: liked, loss_weight: 0.5}
- bought
sparse:
- {name: item, ids: dictionary}
- {name: place, ids: dictionary}
embedding_dim: 8
"""
FLAGS = TrainFlags(epochs=4, batch_size=100, learning_rate=0.1, optimizer="adagrad")
ARCHITECTURE = replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Clicks depend on the item, likes, which some rows lack, on the place; sales, known of clicks, on neither."""
    folder = tmp_path_factory.mktemp("several")
    random = np.random.default_rng(0)
    item, place = random.integers(0, 8, ROWS), random.integers(0, 8, ROWS)
    clicked = random.random(ROWS) < 0.1 + 0.1 * item
    liked = np.where(random.random(ROWS) < 0.3, "", (random.random(ROWS) < 0.1 + 0.1 * place).astype(int).astype(str))
    bought = np.where(clicked, (random.random(ROWS) < 0.4).astype(int).astype(str), "")
    table = {"clicked": clicked.astype(int), "liked": liked, "bought": bought, "item": item, "place": place}
    pcsv.write_csv(pa.table(table), folder / "log.csv")
    (folder / "schema.yaml").write_text(SCHEMA)
    sources = ["--source", folder / "log.csv", "--schema", folder / "schema.yaml"]
    done = run_program("nasrec", "prepare", "table", *sources, "--out", folder / "data")
    assert done.returncode == 0, done.stderr
    yield folder / "data"


@pytest.fixture(scope="module")
def trained(data: Path) -> Path:
    """A run of all three labels."""
    out = data.parent / "run"
    flags = ["--epochs", 4, "--batch_size", 100, "--learning_rate", 0.1, "--optimizer", "adagrad", "--log_every", 5]
    done = run_program("nasrec", "train", "--data", data, "--out", out, "--kind", "deepfm", *flags)
    assert done.returncode == 0, done.stderr
    assert "labels and the weights of their losses: clicked 1, liked 0.5, bought 1 (--loss_weights)" in done.stderr
    assert "validation, liked" in done.stdout and "test, bought" in done.stdout
    return out


def test_heads_of_one_model_learn_different_labels(data: Path, trained: Path):
    best = json.loads((trained / "metrics.json").read_text())["best"]["runs"][0]
    assert best["test"]["auc"] > 0.65 and best["test"]["tasks"]["liked"]["auc"] > 0.65
    assert best["test"]["rows"] > best["test"]["tasks"]["liked"]["rows"] > best["test"]["tasks"]["bought"]["rows"]
    description, model = load_model(trained)
    assert description.schema.labels == ["clicked", "liked", "bought"]
    files = description.read(open_split(data, "test", tasks=True))
    logits, labels = predict(model, files)
    known = known_rows(logits, labels, None, 1)[3]
    crossed = click_metrics(logits[known, 0], labels[known, 1]), click_metrics(logits[:, 1], labels[:, 0])
    assert all(0.42 < metrics.auc < 0.58 for metrics in crossed)  # each head knows nothing of the other's label
    assert click_metrics(logits[known, 1], labels[known, 1]).auc == pytest.approx(best["test"]["tasks"]["liked"]["auc"])


def test_metrics_of_every_label_are_logged_evaluated_and_shown(data: Path, trained: Path):
    run = next(trained.glob("trial-*"))
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    assert set(steps[-1]["tasks"]) == {"liked", "bought"} and steps[-1]["tasks"]["liked"]["auc"] > 0.6
    measured = [event for event in events if event["event"] == "validation"]
    assert len(measured) == 4 and all(set(event["tasks"]) == {"liked", "bought"} for event in measured)
    assert "validation of 'liked': AUC 0." in str(read_status(run))

    page = trained.parent / "page.html"
    flags = ["--model", trained, "--data", data, "--slice", "place", "--report", page]
    done = run_program("nasrec", "evaluate", *flags)
    assert "label 'liked', on the rows where it is known" in done.stdout, done.stderr
    assert "<h2>Label bought</h2>" in page.read_text()
    found = training.evaluate(trained, data, slices=("place",))
    recorded = json.loads((trained / "metrics.json").read_text())["best"]["runs"][0]["test"]
    assert found.auc == pytest.approx(recorded["auc"])
    assert found.to_json()["tasks"]["liked"]["auc"] == pytest.approx(recorded["tasks"]["liked"]["auc"])
    assert found.tasks["liked"].slices["place"][0].metrics.rows < found.slices["place"][0].metrics.rows
    assert found.tasks["liked"].auc > 0.65 > found.tasks["bought"].auc


def test_the_loss_is_the_weighted_sum_over_the_known_rows_of_each_label():
    model = NASRecNet(make_ebc(4), 3, ARCHITECTURE, num_labels=3)
    labels = (torch.rand(60, 3) < 0.4).float()
    labels[torch.rand(60) < 0.5, 1], labels[10:, 2] = torch.nan, torch.nan
    known = ~labels.isnan()
    shares = known.float().mean(0).tolist()
    batch = Batch(torch.randn(60, 3), make_kjt(4, 60), labels)
    losses, gradients = [], []
    for parts in (None, MicroBatches(3, StepGuard())):
        task = ClickTask(model, CPU, micro_batches=parts)
        task.label_scales = [weight / share for weight, share in zip((1.0, 0.5, 2.0), shares, strict=True)]
        model.zero_grad()
        loss, (_, logits, _) = task(batch)
        if parts is None:
            loss.backward()
        else:
            parts.guard.finish_backward()
        losses.append(loss.detach())
        parameters = model.interaction_arch.parameters()
        gradients.append([p.grad.clone() for p in parameters if p.grad is not None])
    means = [F.binary_cross_entropy_with_logits(logits[known[:, t], t], labels[known[:, t], t]) for t in range(3)]
    expected = means[0] + 0.5 * means[1] + 2 * means[2]
    assert torch.allclose(torch.stack(losses), expected, rtol=1e-5)
    for whole, in_parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, in_parts, atol=1e-6)


def test_the_share_of_known_labels_is_counted_by_weight(data: Path):
    files = open_split(data, "train", tasks=True)
    labels = files.load().labels
    assert label_shares(files) == pytest.approx((~labels.isnan()).double().mean(0).tolist())
    nothing = replace(files, schema=files.schema)
    assert label_shares(replace(nothing, schema=nothing.schema.without_tasks())) == [1.0]


@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_has_a_last_layer_for_each_label(kind: str):
    def built(weights: tuple[float, ...]) -> torch.nn.Module:
        torch.manual_seed(0)
        return build_baseline(Baseline(kind, (8, 16), (12, 8, 1)), make_ebc(4), 3, label_weights=weights)

    alone, model = built((1.0,)), built((1.0, 0.5))
    dense, ids = torch.randn(20, 3), make_kjt(4, 20)
    logits = model(dense, ids)
    assert alone(dense, ids).shape == (20, 1) and logits.shape == (20, 2)
    logits[:, 1].sum().backward()
    shapes = {name: parameter.shape for name, parameter in alone.named_parameters()}
    grown = [name for name, parameter in model.named_parameters() if parameter.shape != shapes.get(name)]
    assert grown  # the last layer alone
    assert sum(model.get_parameter(name).numel() for name in grown) < sum(p.numel() for p in model.parameters()) / 10


def _train(data: str, run_dir: str) -> list[float]:
    folder = Path(data)
    description = ModelDescription(load_schema(folder, tasks=True), ARCHITECTURE)
    trainer = Trainer(description, TrainConfig(batch_size=100, log_every=1, seed=1), Path(run_dir), CPU)
    trainer.train(open_split(folder, "train", tasks=True))
    metrics = trainer.evaluate(open_split(folder, "test", tasks=True))
    return [metrics.log_loss, *(task.log_loss for task in metrics.tasks.values()), *map(float, _losses(Path(run_dir)))]


def _losses(run_dir: Path) -> list[float]:
    events = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "train"]


@pytest.mark.slow
def test_two_ranks_follow_the_loss_curve_of_one(data: Path, tmp_path: Path):
    alone, *ranks = [
        *run_ranks(1, _train, str(data), str(tmp_path / "1")),
        *run_ranks(2, _train, str(data), str(tmp_path / "2")),
    ]
    assert len(alone) > 20
    for found in ranks:
        assert found == pytest.approx(alone, abs=1e-5)


def test_a_killed_training_resumes_with_the_same_weights(data: Path, tmp_path: Path, one_rank: None):
    description = ModelDescription(load_schema(data, tasks=True), ARCHITECTURE)
    rows = [open_split(data, split, tasks=True) for split in ("train", "validation")]
    config = TrainConfig(batch_size=200, epochs=2, log_every=1, checkpoint_every=5)
    whole = Trainer(description, config, tmp_path / "whole", CPU)
    best = whole.train(*rows)
    killed = Trainer(description, config, tmp_path / "killed", CPU)
    in_step(killed, 20, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        killed.train(*rows)
    resumed = Trainer(description, config, tmp_path / "killed", CPU)
    assert resumed.train(*rows) == best and set(best.tasks) == {"liked", "bought"}
    states = [trainer.model.interaction_arch.state_dict() for trainer in (whole, resumed)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    other = replace(description, schema=description.schema.with_loss_weights({"liked": 2}))
    with pytest.raises(ValueError, match="schema"):
        Trainer(other, config, tmp_path / "killed", CPU).train(*rows)


def test_a_label_of_weight_0_is_left_out_and_a_later_one_begins_anew(data: Path, tmp_path: Path):
    once = replace(FLAGS, epochs=1)
    left_out = {"liked": 0, "bought": 0}
    training.run(data, tmp_path / "alone", once, Baseline("deepfm"), loss_weights=left_out)
    description, alone = load_model(tmp_path / "alone")
    assert description.schema.tasks == () and "tasks" not in training.evaluate(tmp_path / "alone", data).to_json()
    schema = load_schema(data, tasks=True)
    later = replace(schema, tasks=(Task("bought"), *schema.tasks[:1]))
    described = replace(description, schema=later)
    model = described.build(CPU)
    before = model.interaction_arch.over_arch.weight[1:].clone()
    lines = WarmStart(tmp_path / "alone", data).copy_into(model, described)
    assert "dense part: new: interaction_arch.over_arch.weight, of label bought, liked" in lines
    weight = model.interaction_arch.over_arch.weight
    assert torch.equal(weight[:1], alone.interaction_arch.over_arch.weight) and torch.equal(weight[1:], before)
    for mine, theirs in zip(
        model.interaction_arch.deep.parameters(), alone.interaction_arch.deep.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_what_knows_one_label_alone_says_so(data: Path, trained: Path, tmp_path: Path):
    with pytest.raises(
        ValueError, match=r"loss_weights: expected names of the further labels liked, bought, found shared$"
    ):
        training.run(data, tmp_path / "run", FLAGS, loss_weights={"shared": 1})
    with pytest.raises(ValueError, match="liked: loss_weight: expected a number above 0, found -1"):
        training.run(data, tmp_path / "run", FLAGS, loss_weights={"liked": -1})
    with pytest.raises(ValueError, match=r"teachers: expected one label.* --loss_weights liked=0,bought=0"):
        training.run(data, tmp_path / "run", FLAGS, teachers=(trained,))
    with pytest.raises(ValueError, match="teachers: expected models of one label, found clicked, liked, bought in"):
        training.run(data, tmp_path / "run", FLAGS, teachers=(trained,), loss_weights={"liked": 0, "bought": 0})
    with pytest.raises(ValueError, match="importance: is measured of models of one label"):
        training.evaluate(trained, data, importance=1)
    with pytest.raises(ValueError, match="a supernet predicts one label, found the labels clicked, liked, bought"):
        ModelDescription(load_schema(data, tasks=True), SMALL_SPACE)
    with pytest.raises(ValueError, match="num_labels: expected an integer, 1 or more, found 0"):
        NASRecNet(make_ebc(4), 3, ARCHITECTURE, num_labels=0)


def test_a_label_that_no_row_knows_is_refused(data: Path, tmp_path: Path):
    lines = (data.parent / "log.csv").read_text().splitlines()
    blank = [",".join([part[0], part[1], "", *part[3:]]) for part in (line.split(",") for line in lines[1:])]
    (tmp_path / "log.csv").write_text("\n".join([lines[0], *blank]) + "\n")
    sources = ["--source", tmp_path / "log.csv", "--schema", data.parent / "schema.yaml"]
    assert run_program("nasrec", "prepare", "table", *sources, "--out", tmp_path / "data").returncode == 0
    with pytest.raises(ValueError, match=r"label 'bought': expected a value in some of the .* rows to train on"):
        training.run(tmp_path / "data", tmp_path / "run", FLAGS, Baseline("mlp"))
