"""What needs a GPU: training steps, a resumed training and an exported package equal those of the CPU.

``benchmarks/gpu.sh`` runs these tests where a GPU is lent.
"""

from pathlib import Path

import pytest
import torch
from support import SMALL_SPACE, make_ebc, make_kjt
from torch import Tensor
from torch.nn import functional as F
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from nasrec_torchrec import NASRecNet, SuperNet
from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.inference.fusion import fuse
from nasrec_torchrec.modules.attention import Attention
from nasrec_torchrec.modules.kernels.self_attention import has_kernel, self_attention
from nasrec_torchrec.modules.operator import BlockInputs, BlockShape
from nasrec_torchrec.training.optimizers import ActiveSliceAdagrad

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
ROWS, DENSE, SPARSE = 64, 3, 4
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Training:
    """A supernet's or a NASRecNet's training on one device, whose batches and architectures follow from the step."""

    def __init__(self, kind: str, device: torch.device) -> None:
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest")
        architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
        tables = make_ebc(SPARSE)
        self.model: SuperNet | NASRecNet = (
            SuperNet(tables, DENSE, SMALL_SPACE) if kind == "supernet" else NASRecNet(tables, DENSE, architecture)
        )
        apply_optimizer_in_backward(torch.optim.Adagrad, tables.parameters(), {"lr": 0.05, "eps": 1e-2})
        self.device, self.step = device, 0
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
            dense, kjt, labels = batch(self.step)
            if isinstance(self.model, SuperNet):
                generator = torch.Generator().manual_seed(self.step)
                self.model.set_architecture(SMALL_SPACE.sample(generator))
            self.optimizer.zero_grad()
            logits = self.dmp(dense.to(self.device), kjt.to(self.device))
            loss = F.binary_cross_entropy_with_logits(logits.flatten(), labels.to(self.device))
            loss.backward()
            self.optimizer.step()
            losses.append(float(loss.detach()))
            self.step += 1
        return losses


def batch(seed: int) -> tuple[Tensor, object, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(ROWS, DENSE, generator=generator)
    return dense, make_kjt(SPARSE, ROWS, seed), (torch.rand(ROWS, generator=generator) < 0.3).float()


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
