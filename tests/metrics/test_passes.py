"""How many rows a forward pass takes on a machine, and what a search keeps in its memory."""

from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema

from nasrec_torchrec import memory
from nasrec_torchrec.metrics import passes
from nasrec_torchrec.metrics.click_metrics import evaluate
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.search import evaluator
from nasrec_torchrec.search.config import EvaluationConfig
from nasrec_torchrec.search.evaluator import Evaluator

SCHEMA = make_schema()


@pytest.mark.parametrize("memory_, rows", [(1 << 30, 4096), (1 << 20, 512), (1 << 10, 64)])
def test_a_pass_takes_as_many_rows_as_half_of_the_memory_holds(memory_: int, rows: int):
    assert passes.rows_at_once(1000, memory_, 4096) == rows


def test_an_evaluation_on_a_small_machine_takes_fewer_rows_and_finds_the_same(monkeypatch):
    model = ModelDescription(SCHEMA, SMALL_SPACE.sample(torch.Generator().manual_seed(3))).build()
    files = make_click_files(SCHEMA, 300)
    rows, reason = passes.evaluation_rows(model, SCHEMA)
    whole = evaluate(model, files)
    assert rows == 4096 and reason.startswith("4,096 rows a pass: ") and "KiB each" in reason
    monkeypatch.setattr(passes, "free_memory", lambda: 1 << 20)
    few, reason = passes.evaluation_rows(model, SCHEMA)
    assert few < 256 and "0.001 GiB of memory are free" in reason
    assert evaluate(model, files).log_loss == pytest.approx(whole.log_loss, rel=1e-6)


def test_free_memory_is_what_a_container_may_still_take(tmp_path: Path, monkeypatch):
    (tmp_path / "max").write_text(f"{8 << 30}\n")
    (tmp_path / "stat").write_text(f"anon {3 << 30}\nfile {4 << 30}\n")
    (tmp_path / "meminfo").write_text("MemTotal:  99999999 kB\nMemAvailable:  99999999 kB\n")
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(tmp_path / "max"),))
    monkeypatch.setattr(memory, "_CGROUP_USED", {str(tmp_path / "stat"): "anon"})
    monkeypatch.setattr(memory, "_MEMORY", str(tmp_path / "meminfo"))
    assert memory.free_memory() == 5 << 30
    (tmp_path / "meminfo").write_text("MemAvailable:  1024 kB\n")
    assert memory.free_memory() == 1 << 20


def test_a_search_keeps_rows_in_a_quarter_of_the_memory_that_is_free(monkeypatch):
    supernet = ModelDescription(SCHEMA, SMALL_SPACE, use_layernorm=True).build()
    files = make_click_files(SCHEMA, 200), make_click_files(SCHEMA, 100, seed=1)
    config = EvaluationConfig(finetune_steps=5, finetune_batch_size=32)
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(1))
    with Evaluator(supernet, *files, config) as whole:
        found = whole(architecture)
    assert whole.chosen.startswith("1,024 rows a pass; 0.1 MiB of embeddings kept in memory, of a quarter of ")
    for place in (evaluator, passes):
        monkeypatch.setattr(f"{place.__name__}.free_bytes", lambda *_: 1 << 16)
    monkeypatch.setattr("nasrec_torchrec.search.rows.free_bytes", lambda *_: 1 << 16)
    with Evaluator(supernet, *files, config) as small:
        assert small(architecture).loss == pytest.approx(found.loss, rel=1e-5)
    assert small.config.chunk_size == 64 and " in a file, of a quarter of 0.000 GiB" in small.chosen
