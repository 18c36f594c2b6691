"""CUDA graphs in training: which steps replay one, and that a run stays the same.

``tests/test_cuda.py`` captures real ones.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema
from torch import Tensor, nn

from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.graphs import graph_dense_part, uses_graphs
from nasrec_torchrec.training.trainer import Trainer

SCHEMA = make_schema()
MODELS = {
    "nasrecnet": ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3))),
    "dlrm": ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1))),
}
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, log_every=1)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class StaticMemory:
    """Stands in for ``torch.cuda.make_graphed_callables``: every replay writes its results into the same memory.

    It also warms up, and refuses what that function refuses.
    """

    def __init__(self) -> None:
        self.captures, self.replays = 0, 0

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], allow_unused_input: bool) -> Any:
        assert not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled())
        assert not module._forward_hooks and allow_unused_input
        self.captures += 1
        wanted = [tensor for tensor in (*inputs, *module.parameters()) if tensor.requires_grad]
        for _ in range(3):
            output = module(*inputs)
            found = torch.autograd.grad(output, wanted, torch.ones_like(output), allow_unused=True)
        results = [None if gradient is None else gradient.detach().clone() for gradient in found]
        written, counts, autocast = output.detach().clone(), self, torch.is_autocast_enabled("cpu")

        class Replay(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *given: Tensor) -> Tensor:
                counts.replays += 1
                for static, tensor in zip(inputs, given, strict=False):
                    static.data.copy_(tensor)
                with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16, autocast):
                    ctx.output = module(*inputs)
                return written.copy_(ctx.output).detach()

            @staticmethod
            def backward(ctx: Any, gradient: Tensor) -> Any:
                for result, new in zip(
                    results, torch.autograd.grad(ctx.output, wanted, gradient, allow_unused=True), strict=True
                ):
                    if result is not None:
                        result.copy_(new)
                left = iter(results)
                all_of_them = [
                    next(left) if tensor.requires_grad else None for tensor in (*inputs, *module.parameters())
                ]
                return tuple(None if result is None else result.detach() for result in all_of_them)

        return lambda *given: Replay.apply(*given, *module.parameters())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> StaticMemory:
    found = StaticMemory()
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", found)
    return found


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 2), nn.BatchNorm1d(2)

    def forward(self, dense: Tensor, *, embedded: Tensor) -> Tensor:
        return self.norm(self.linear(dense + embedded))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.sparse_arch, self.part = nn.Linear(3, 3), Part()

    def forward(self, dense: Tensor) -> Tensor:
        return self.part(dense, embedded=self.sparse_arch(dense))


def test_steps_of_one_size_replay_and_all_others_do_not(memory: StaticMemory):
    model, plain = Model(), Model()
    graph_dense_part(model, 8, CPU)
    replays = 0
    for rows, train, gradients in [
        (5, True, True),
        (8, True, True),
        (8, True, True),
        (8, False, True),
        (8, True, False),
        (5, True, True),
        (8, True, True),
    ]:
        dense = torch.randn(rows, 3)
        model.train(train), plain.train(train)
        with torch.set_grad_enabled(gradients):
            assert torch.equal(model(dense), plain(dense))
        replays += rows == 8 and train and gradients
        assert memory.replays == replays
    assert memory.captures == 1 and "sparse_arch" not in memory.__dict__
    # Warming up leaves no trace in the running statistics.
    for name, buffer in plain.named_buffers():
        assert torch.equal(model.get_buffer(name), buffer), name


def test_autocast_is_a_kind_of_its_own(memory: StaticMemory):
    model, plain = Model(), Model()
    graph_dense_part(model, 8, CPU)
    dense = torch.randn(8, 3)
    for bf16, replays in ((True, 1), (False, 1), (True, 2)):
        with torch.autocast("cpu", torch.bfloat16, bf16):
            assert torch.equal(model(dense), plain(dense))
        assert memory.replays == replays


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"dropout": 0.2, "ema_decay": 0.9}, {"optimizer": "adam", "learning_rate": 0.01, "precision": "bf16"}],
)
def test_a_run_stays_the_same(one_rank, tmp_path: Path, memory: StaticMemory, model: str, changes: dict[str, Any]):
    data, validation, curves = make_click_files(SCHEMA, 500), make_click_files(SCHEMA, 90, seed=5), []
    for name in ("usual", "graphs"):
        trainer = Trainer(MODELS[model], replace(CONFIG, **changes), tmp_path / name, CPU)
        if name == "graphs":
            graph_dense_part(trainer.model, CONFIG.batch_size, CPU)
        trainer.train(data, validation)
        events = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        curves.append([(event.get("loss"), event.get("log_loss"), event.get("gradient_norm")) for event in events])
    assert curves[0] == curves[1]
    parts = sum(name != "sparse_arch" for name, _ in trainer.model.named_children())
    assert memory.captures == parts and memory.replays >= 24 * parts


def test_what_cannot_be_captured(memory: StaticMemory, monkeypatch: pytest.MonkeyPatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    model, dense = Model(), torch.randn(8, 3)
    graph_dense_part(model, 8, CPU)
    with pytest.raises(ValueError, match=r"cuda_graphs: part of this model cannot be captured: .* capturing; train "):
        model(dense)
    model, plain = Model(), Model()
    graph_dense_part(model, 8, CPU, required=False)
    assert torch.equal(model(dense), plain(dense)) and torch.equal(model(dense), plain(dense))
    assert caplog.text.count("it runs as without the flag") == 1
    assert torch.equal(model.part.norm.running_mean, plain.part.norm.running_mean)


def test_where_they_are_possible(one_rank, tmp_path: Path):
    wanted = replace(CONFIG, cuda_graphs=True)
    assert uses_graphs(wanted, CUDA, 1, fixed=True) and uses_graphs(CONFIG, CUDA, 1, fixed=True)
    with pytest.raises(ValueError, match="cuda_graphs: expected one rank, found 2"):
        uses_graphs(wanted, CUDA, 2, fixed=True)
    with pytest.raises(ValueError, match="cuda_graphs: a supernet's paths change from step to step"):
        uses_graphs(wanted, CUDA, 1, fixed=False)
    with pytest.raises(ValueError, match="cuda_graphs: expected accumulate 1, found 4"):
        replace(wanted, accumulate=4)
    with pytest.raises(ValueError, match="cuda_graphs: they are for CUDA, and this training runs on cpu"):
        Trainer(MODELS["nasrecnet"], wanted, tmp_path, CPU)
    assert not uses_graphs(replace(CONFIG, cuda_graphs=False), CUDA, 1, fixed=True)
    for device, ranks, fixed in ((CPU, 1, True), (CUDA, 2, True), (CUDA, 1, False)):
        assert not uses_graphs(CONFIG, device, ranks, fixed)
