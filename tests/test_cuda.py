"""What needs a GPU: training steps, a resumed training and an exported package equal those of the CPU.

CUDA graphs must change nothing, dynamic ids map as on the CPU, and tables may be in the memory of the host.

``benchmarks/gpu.sh`` runs these tests where a GPU is lent.
"""

import json
import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import SMALL_SPACE, make_click_files, make_ebc, make_kjt, make_schema
from torch import Tensor
from torch.nn import functional as F
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from nasrec_torchrec import NASRecNet, SuperNet
from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.reader import ClickFiles
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.models.config import Baseline
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.dropout import add_dropout
from nasrec_torchrec.training.graphs import graph_dense_part
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad
from nasrec_torchrec.training.trainer import Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
ROWS, DENSE, SPARSE = 64, 3, 4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def one_rank() -> Iterator[None]:
    """A group of this process alone that knows both devices."""
    dist.init_process_group("cpu:gloo,cuda:nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Training:
    """A supernet's or a NASRecNet's training on one device, whose batches and architectures follow from the step.

    Batches have ``ROWS`` rows, except in the steps ``fewer``.
    """

    def __init__(
        self,
        kind: str,
        device: torch.device,
        graphs: bool = False,
        dropout: float = 0.0,
        bf16: bool = False,
        fewer: tuple[int, ...] = (),
    ) -> None:
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest")
        architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
        tables = make_ebc(SPARSE)
        self.model: SuperNet | NASRecNet = (
            SuperNet(tables, DENSE, SMALL_SPACE) if kind == "supernet" else NASRecNet(tables, DENSE, architecture)
        )
        apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.05, "eps": 1e-2})
        self.device, self.step, self.bf16, self.fewer = device, 0, bf16, fewer
        if dropout:
            add_dropout(self.model, dropout)
        if graphs:
            graph_dense_part(self.model, ROWS, device)
        self.dmp = parallelize(self.model, device)
        interaction = self.model.interaction_arch
        self.optimizer: torch.optim.Optimizer = (
            ActiveSliceAdagrad(interaction.parameters(), interaction.active_parameters, 0.05)
            if isinstance(self.model, SuperNet)
            else torch.optim.Adagrad(interaction.parameters(), 0.05, eps=1e-2)
        )

    def run(self, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            dense, kjt, labels = batch(self.step, ROWS // 3 if self.step in self.fewer else ROWS)
            torch.manual_seed(self.step)
            if isinstance(self.model, SuperNet):
                generator = torch.Generator().manual_seed(self.step)
                self.model.set_architecture(SMALL_SPACE.sample(generator))
            self.optimizer.zero_grad()
            with torch.autocast("cuda", torch.bfloat16) if self.bf16 else nullcontext():
                logits = self.dmp(dense.to(self.device), kjt.to(self.device))
            loss = F.binary_cross_entropy_with_logits(logits.float().flatten(), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.step += 1
        return losses


def batch(seed: int, rows: int) -> tuple[Tensor, object, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(rows, DENSE, generator=generator)
    return dense, make_kjt(SPARSE, rows, seed), (torch.rand(rows, generator=generator) < 0.3).float()


@pytest.mark.parametrize("kind", ("supernet", "network"))
def test_steps_equal_those_of_the_cpu(one_rank, kind: str):
    assert Training(kind, CUDA).run(5) == pytest.approx(Training(kind, CPU).run(5), rel=1e-4)


@pytest.mark.parametrize("kind", ("supernet", "network"))
def test_a_training_resumes_where_it_was(one_rank, kind: str):
    whole = Training(kind, CUDA)
    whole.run(2)
    weights = {name: value.detach().clone() for name, value in whole.model.interaction_arch.state_dict().items()}
    state = whole.optimizer.state_dict()
    state["state"] = {
        key: {name: value.clone() for name, value in values.items()} for key, values in state["state"].items()
    }
    expected = whole.run(3)
    again = Training(kind, CUDA)
    again.run(2)  # the tables' fused state
    with torch.no_grad():
        for parameter in again.model.interaction_arch.parameters():
            parameter.add_(1)
    again.model.interaction_arch.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    assert again.run(3) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("bf16", (False, True))
@pytest.mark.parametrize("dropout", (0.0, 0.3))
def test_graphs_change_no_step(one_rank, monkeypatch: pytest.MonkeyPatch, dropout: float, bf16: bool):
    captures = []
    capture = torch.cuda.make_graphed_callables
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", lambda *a, **k: captures.append(a) or capture(*a, **k))
    usual, graphs = (
        Training("network", CUDA, graphs, dropout, bf16, fewer=(7, 19)).run(20) for graphs in (False, True)
    )
    assert graphs == pytest.approx(usual, rel=2e-3 if bf16 else 1e-5)
    assert len(captures) == 1


SCHEMA = make_schema()
MODELS = {
    "network": ModelDescription(SCHEMA, replace(SMALL_SPACE, num_blocks=2).sample(torch.Generator().manual_seed(3))),
    "dlrm": ModelDescription(SCHEMA, Baseline("dlrm", (32, 16), (16, 1))),
    "finalnet": ModelDescription(SCHEMA, Baseline("finalnet", (), (16, 8, 1))),
}
CONFIG = TrainConfig(epochs=2, batch_size=40, learning_rate=0.05, log_every=1, background_reader=False)


def _curve(model: str, folder: Path, pauses: int = 0, **changes: Any) -> list[float]:
    """Returns losses, gradient norms and validation losses of a run that pauses after so many of its epochs."""
    config, data = replace(CONFIG, **changes), make_click_files(SCHEMA, 500)
    for left in range(pauses, -1, -1):
        trainer = Trainer(MODELS[model], config, folder, CUDA)
        trainer.train(data, make_click_files(SCHEMA, 90, seed=5), lambda *_, left=left: left > 0)
    events = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    names = ("loss", "gradient_norm", "log_loss")
    return [
        event[name] for event in events if event["event"] in ("train", "validation") for name in names if name in event
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.2, "ema_decay": 0.9},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"precision": "bf16", "pipeline": "base"},
    ],
    ids=str,
)
@pytest.mark.parametrize("model", MODELS)
def test_graphs_change_no_run(one_rank, tmp_path: Path, model: str, changes: dict[str, Any]):
    usual, graphs = (_curve(model, tmp_path / str(on), cuda_graphs=on, **changes) for on in (False, True))
    assert len(usual) > 48 and graphs == pytest.approx(usual, rel=5e-3 if "precision" in changes else 1e-4)


def test_a_run_with_graphs_resumes_where_it_was(one_rank, tmp_path: Path):
    changes = {"cuda_graphs": True, "dropout": 0.2}
    whole = _curve("network", tmp_path / "whole", **changes)
    assert _curve("network", tmp_path / "parts", pauses=1, **changes) == whole


def test_dynamic_ids_map_as_on_the_cpu(one_rank, tmp_path: Path):
    first, *others = SCHEMA.sparse
    dynamic = replace(SCHEMA, sparse=(SparseFeature(first.name, 32, "dynamic"), *others))
    description, rows = ModelDescription(dynamic, MODELS["network"].interaction), make_click_files(SCHEMA, 500)
    curves = []
    for device in (CPU, CUDA):
        trainer = Trainer(description, CONFIG, tmp_path / device.type, device)
        trainer.train(ClickFiles.open(rows.files[0].parent, dynamic))
        events = map(json.loads, (tmp_path / device.type / "log.jsonl").read_text().splitlines())
        state = trainer.dmp.state_dict()
        (ids,) = (value.local_shards()[0].tensor.cpu() for name, value in state.items() if name.endswith("._ids"))
        curves.append(([event["loss"] for event in events if event["event"] == "train"], ids))
    # The weights begin differently: on CUDA each rank initialises its own.
    assert torch.equal(curves[0][1], curves[1][1]) and len(curves[0][0]) == len(curves[1][0])
    assert all(0 < loss < 2 for loss in curves[1][0])


@pytest.mark.parametrize("optimizer", ("rowwise_adagrad", "adam", "rowwise_adam", "lamb", "rowwise_lamb"))
def test_tables_with_fused_optimizers_train_and_resume(one_rank, tmp_path: Path, optimizer: str):
    changes: dict[str, Any] = {"optimizer": "adam", "learning_rate": 0.01, "table_optimizers": {"*": optimizer}}
    plain, decayed, parts = (
        _curve("network", tmp_path / name, pauses, **changes, table_weight_decay={"*": decay})
        for name, pauses, decay in (("plain", 0, 0.0), ("decayed", 0, 0.1), ("parts", 1, 0.1))
    )
    assert parts == pytest.approx(decayed, rel=1e-4) and decayed != plain


@pytest.mark.parametrize("memory", ("host", "host_cached"))
def test_tables_in_the_memory_of_the_host_train_as_on_the_device(one_rank, tmp_path: Path, memory: str):
    expected = _curve("network", tmp_path / "device")
    assert _curve("network", tmp_path / memory, table_memory=memory) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("sent_as", ("fp16", "bf16"))
def test_embeddings_sent_in_16_bits_train_almost_the_same(one_rank, tmp_path: Path, sent_as: str):
    changes: dict[str, Any] = {"optimizer": "adagrad", "sharding_type": "row_wise"}
    expected = _curve("network", tmp_path / "fp32", **changes)
    found = _curve("network", tmp_path / sent_as, quantized_comms=sent_as, **changes)
    assert found == pytest.approx(expected, rel=0.05) and all(map(math.isfinite, found))


def test_a_copy_of_the_tables_for_each_rank_trains_and_resumes_as_without_copies(one_rank, tmp_path: Path):
    changes: dict[str, Any] = {"optimizer": "adagrad", "sharding_type": "row_wise"}
    expected = _curve("network", tmp_path / "one", **changes)
    changes |= {"sharding_group_size": 1, "table_sync_every": 2}
    assert _curve("network", tmp_path / "copies", **changes) == pytest.approx(expected, rel=1e-4)
    assert _curve("network", tmp_path / "parts", pauses=1, **changes) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("tokens", (1, 17, 64, 128))
def test_attention_equals_that_of_the_cpu(tokens: int, kind: torch.dtype):
    assert has_kernel(2, device="cuda", tokens=tokens) and has_kernel(2)
    results = []
    for device in (CPU, CUDA):
        generator = torch.Generator().manual_seed(tokens)
        qkv = torch.randn(5, 48, tokens, generator=generator).to(device, kind).transpose(1, 2).requires_grad_()
        out = self_attention(qkv, 8)
        results.append((out.detach().cpu(), torch.autograd.grad(out.float().square().sum(), qkv)[0].cpu()))
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[kind]
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


def test_attention_is_an_operator_as_pytorch_expects_one():
    torch.library.opcheck(
        torch.ops.nasrec.self_attention.default, (torch.randn(3, 5, 48, device=CUDA, requires_grad=True), 8)
    )
    module = torch.compile(lambda qkv: self_attention(qkv, 8).sum(), fullgraph=True)
    qkv = torch.randn(3, 5, 48, device=CUDA, requires_grad=True)
    module(qkv).backward()
    (expected,) = torch.autograd.grad(self_attention(qkv, 8).sum(), qkv)
    torch.testing.assert_close(qkv.grad, expected)


def test_networks_attend_with_it():
    assert not has_kernel(2, True, "cuda") and not has_kernel(2, device="cuda", tokens=129)
    attention = Attention(BlockShape({}, {}, {}, {"0": 6}, 16), 9).to(CUDA)
    tokens = torch.randn(4, 6, 16, device=CUDA)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attention(BlockInputs([], [], [], [tokens]))
    assert "nasrec::self_attention" in {event.key for event in profile.key_averages()}


def test_an_exported_package_equals_the_cpus_network(tmp_path: Path):
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(1))
    model = NASRecNet(make_ebc(SPARSE), DENSE, architecture).eval()
    inputs = torch.randn(8, DENSE), torch.randn(8, SPARSE, 16)
    with torch.no_grad():
        expected = model.interaction_arch(*inputs)
        fused = fuse(model.interaction_arch).eval().to(CUDA)
        rows = torch.export.Dim("rows", min=2, max=1024)
        example = tuple(tensor.to(CUDA) for tensor in inputs)
        program = torch.export.export(fused, example, dynamic_shapes=({0: rows}, {0: rows}))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "dense.pt2"))
    found = torch._inductor.aoti_load_package(package)(*example)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-4)
