"""Whole searches of a small supernet, as a launcher starts them: over ranks, refused, stopped and resumed."""

import json
import os
import re
import signal
import socket
import sys
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from support import SMALL_SPACE, forked, prepare_clicks, prepare_pairs, run_program, run_ranks

from nasrec_torchrec.datasets.prepared import load_schema
from nasrec_torchrec.runs.lock import lock
from nasrec_torchrec.search.config import EvaluationConfig, EvolutionConfig, EvolutionFlags, Limits, Objective
from nasrec_torchrec.search.driver import search_supernet
from nasrec_torchrec.table_widths import table_bytes
from nasrec_torchrec.training.config import TrainConfig

_EVALUATION = EvaluationConfig(finetune_steps=4, finetune_batch_size=32, latency_batch_size=16)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return prepare_pairs(tmp_path_factory.mktemp("pairs") / "data", 400)


@pytest.fixture(scope="module")
def supernet(data: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "supernet"
    run_ranks(1, _train, str(data), str(folder))
    return folder


def _train(data: str, out: str, widths: tuple[int, ...] = ()) -> None:
    import torch

    from nasrec_torchrec.datasets.prepared import open_split
    from nasrec_torchrec.models.description import ModelDescription
    from nasrec_torchrec.training.trainer import Trainer

    space = replace(SMALL_SPACE, embedding_widths=widths)
    description = ModelDescription(load_schema(Path(data)), space, use_layernorm=True)
    trainer = Trainer(description, TrainConfig(batch_size=50), Path(out), torch.device("cpu"))
    trainer.train(open_split(Path(data), "train"))


def _search(said: Path, environment: dict[str, str], folders: tuple[Path, ...], generations: int, limits: Limits):
    import torch

    torch.set_num_threads(1)
    os.environ.update(environment)
    with said.open("w", buffering=1) as sys.stderr:
        evolution = EvolutionConfig(4, generations, 2, 2)
        try:
            search_supernet(*folders, evolution, _EVALUATION, Objective(), limits, top_k=2)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def _launch(ranks: int, *folders: Path, generations: int = 2, limits: Limits | None = None) -> list[BaseProcess]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        group = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": str(ranks)}
    processes = []
    for rank in range(ranks):
        environment = (group if ranks > 1 else {}) | {"RANK": str(rank), "LOCAL_WORLD_SIZE": str(ranks)}
        said = folders[-1].with_name(f"{folders[-1].name}-said-{rank}")
        arguments = said, environment, folders, generations, limits or Limits()
        processes.append(forked().Process(target=_search, args=arguments))
        processes[-1].start()
    return processes


def _end(processes: list[BaseProcess]) -> list[int | None]:
    for process in processes:
        process.join(120)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return codes


def _said(out: Path, rank: int = 0) -> str:
    return out.with_name(f"{out.name}-said-{rank}").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("limits", (Limits(max_flops=10), Limits(max_latency_us=0.001)))
def test_limits_that_nothing_meets_end_all_ranks(supernet: Path, data: Path, tmp_path: Path, limits: Limits):
    out = tmp_path / "out"
    codes = _end(_launch(2, supernet, data, out, limits=limits))
    assert codes == [2, 2]
    for rank in range(2):
        said = _said(out, rank).splitlines()[-1]
        assert said.startswith("error: no architecture of the search space is within the limit"), _said(out, rank)


def test_a_search_replaces_only_its_own_files(supernet: Path, data: Path, tmp_path: Path):
    arguments = supernet, data, tmp_path, EvolutionConfig(4, 0, 2, 2), _EVALUATION, Objective(), Limits()
    (tmp_path / "architectures").mkdir()
    mine = tmp_path / "architectures" / "rank-99.json"
    mine.write_text("mine")
    with pytest.raises(ValueError, match=r"holds architectures/rank-99\.json, which an earlier version or another"):
        search_supernet(*arguments)
    assert mine.read_text() == "mine"
    mine.unlink()
    with lock(tmp_path, shared=True):  # another worker
        with pytest.raises(ValueError, match="is writing here"):
            search_supernet(*arguments, resume="never")
        assert search_supernet(*arguments)


def test_a_search_chooses_widths_within_a_limit_and_shows_them(data: Path, tmp_path: Path):
    run_ranks(1, _train, str(data), str(tmp_path / "supernet"), (4, 8))
    schema = load_schema(data)
    narrow, wide = (
        table_bytes(schema.with_widths(dict.fromkeys(schema.table_names, width)).tables()) for width in (4, 8)
    )
    evolution, out = EvolutionConfig(6, 1, 4, 4), tmp_path / "out"
    arguments = tmp_path / "supernet", data, out, evolution, _EVALUATION, Objective()
    with pytest.raises(
        ValueError, match=rf"max_table_bytes {narrow - 1:,} \(the smallest architecture needs {narrow:,}"
    ):
        search_supernet(*arguments, Limits(max_table_bytes=narrow - 1))
    found = search_supernet(*arguments, Limits(max_table_bytes=(narrow + wide) // 2))
    assert found is not None and all(narrow <= one.cost.table_bytes <= (narrow + wide) // 2 for one in found)
    best = json.loads((out / "results.json").read_text())["best"][0]
    widths = best["architecture"]["embedding_widths"]
    assert best["table_bytes"] == table_bytes(schema.with_widths(widths).tables())
    assert "Width of each table in the best candidates" in (out / "report.html").read_text()


@pytest.mark.extended
@pytest.mark.parametrize(("number", "ranks"), ((signal.SIGINT, 1), (signal.SIGTERM, 2)))
def test_a_stopped_search_gives_its_report_and_resumes(
    supernet: Path, data: Path, tmp_path: Path, number: signal.Signals, ranks: int
):
    out = tmp_path / "out"
    processes = _launch(ranks, supernet, data, out, generations=60)
    while not (out / "study.journal").exists() or (out / "study.journal").read_text().count('"architecture"') < 6:
        assert processes[0].is_alive()
        time.sleep(0.05)
    for process in processes:
        os.kill(process.pid or 0, number)
    codes = _end(processes)
    assert codes[0] == 128 + number, _said(out)
    found = json.loads((out / "results.json").read_text())["evaluated"]
    assert 6 <= found < 124 and (out / "report.html").exists()
    assert f"asked to end; {found} of 124 candidates are evaluated and in the report" in _said(out)
    assert _end(_launch(ranks, supernet, data, out, generations=60)) == [0] * ranks
    assert f"holds {found} candidates" in _said(out)
    assert json.loads((out / "results.json").read_text())["evaluated"] == 124


def test_an_asynchronous_search_is_resumed_like_any_other(supernet: Path, data: Path, tmp_path: Path, capsys):
    evolution = EvolutionFlags(4, 3, 2, asynchronous=True)
    found = []
    for _ in range(2):  # the second finds everything done
        arguments = supernet, data, tmp_path, evolution, _EVALUATION, Objective(), Limits()
        found.append(search_supernet(*arguments, top_k=2))
    assert found[0] is not None and len(found[0]) == 10 and found[1] == found[0]
    said = capsys.readouterr().err
    assert "validation rows: 10 candidates, a population of 4 and 3 generations of 2 (--recipe" in said
    assert json.loads((tmp_path / "results.json").read_text())["evaluated"] == 10


def test_data_of_another_preparation_is_refused(supernet: Path, data: Path, tmp_path: Path):
    others = {
        prepare_clicks(tmp_path / "clicks"): "label is 'clicked' here and 'label' there",
        # Equal columns and tables, but the words have other ids.
        prepare_pairs(tmp_path / "pairs", 700): r"the dictionary t_(user|item)\.parquet gives other ids to the words",
    }
    for other, difference in others.items():
        with pytest.raises(ValueError, match=f"trained on data of another preparation: {difference}"):
            search_supernet(supernet, other, tmp_path / "out", EvolutionConfig(), _EVALUATION, Objective(), Limits())
        done = run_program("-m", "apps.evaluate", "--model", supernet, "--data", other)
        assert done.returncode == 2 and re.search(difference, done.stderr), done.stderr
    done = run_program("-m", "apps.evaluate", "--json", "--model", supernet, "--data", data)
    assert done.returncode == 0 and json.loads(done.stdout)["test"]["rows"] == 133
