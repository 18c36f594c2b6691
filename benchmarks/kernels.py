"""Compares the package's kernels with PyTorch's operations, and with what the machine can do at most, in turns.

    python benchmarks/kernels.py

The bounds are measured in the same turns: float32 products as in a product of two 1,024 x 1,024 matrices, and
exponentials as in ``torch.exp`` over 4,096 numbers, which stay in the processor's cache. Attention needs one
exponential for every head and pair of tokens, forward and again backward. The kernel computes exponentials as a
polynomial, faster than ``torch.exp`` does, so that it may exceed the bound. Products of pairs need one multiplication
and addition for every pair and column, forward, and two backward.
"""

import statistics
from collections.abc import Callable, Sequence

import torch
from click_steps import gemm, in_turns, spread
from torch import Tensor
from torch.nn import functional as F

from nasrec_torchrec.cli import run
from nasrec_torchrec.modules.attention import NUM_HEADS
from nasrec_torchrec.modules.dot_product import lower_triangle
from nasrec_torchrec.modules.kernels.pair_products import pair_products
from nasrec_torchrec.modules.kernels.self_attention import SWITCH, has_kernel, self_attention

DIM = 16


class Comparison:
    """One computation, by a kernel and by PyTorch, on the same numbers.

    Args:
        name: What is printed.
        kernel: The kernel.
        pytorch: The same with PyTorch's operations.
        leaves: The arguments of both.
        exponentials: Number of exponentials of a forward pass; backward computes them again.
        flops: Floating-point operations of the products of a forward pass; backward takes twice as many.
    """

    def __init__(
        self,
        name: str,
        kernel: Callable[..., Tensor],
        pytorch: Callable[..., Tensor],
        leaves: Sequence[Tensor],
        exponentials: int = 0,
        flops: int = 0,
    ) -> None:
        self.name, self.exponentials, self.flops = name, exponentials, flops
        self._functions = {"kernel": kernel, "PyTorch": pytorch}
        self._leaves = [leaf.requires_grad_() for leaf in leaves]
        self._results = {side: function(*self._leaves) for side, function in self._functions.items()}
        torch.testing.assert_close(self._results["kernel"], self._results["PyTorch"], rtol=1e-3, atol=1e-3)
        self._direction = torch.randn_like(self._results["kernel"])

    def calls(self) -> dict[str, Callable[[], object]]:
        """Forward and backward passes of both."""
        found: dict[str, Callable[[], object]] = {}
        for side, function in self._functions.items():
            found[f"{side} forward"] = torch.no_grad()(lambda function=function: function(*self._leaves))
            found[f"{side} backward"] = lambda result=self._results[side]: torch.autograd.grad(
                result, self._leaves, self._direction, retain_graph=True
            )
        return found


def attention(rows: int, tokens: int) -> Comparison:
    """Self-attention as in the package's operator."""

    def pytorch(qkv: Tensor) -> Tensor:
        query, key, value = qkv.unflatten(-1, (3, NUM_HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)

    qkv = torch.randn(rows, tokens, 3 * DIM)
    pairs = rows * NUM_HEADS * tokens**2
    return Comparison(
        f"attention, {tokens} tokens", lambda qkv: self_attention(qkv, NUM_HEADS), pytorch, [qkv], exponentials=pairs
    )


def pairs(rows: int, tokens: int) -> Comparison:
    """The products of all pairs of tokens, as in dot product; each counts once."""

    def pytorch(tokens_BEK: Tensor) -> Tensor:
        return lower_triangle(torch.bmm(tokens_BEK.transpose(1, 2), tokens_BEK))

    flops = rows * tokens * (tokens - 1) * DIM
    return Comparison(
        f"pairs of {tokens} tokens", pair_products, pytorch, [torch.randn(rows, DIM, tokens)], flops=flops
    )


def main(batch_sizes: tuple[int, ...] = (512, 4096), rounds: int = 20, quick: bool = False) -> None:
    """Prints a table for every batch size.

    Args:
        batch_sizes: Numbers of rows.
        rounds: Number of turns.
        quick: Takes three turns with 64 rows, to see that it works.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not has_kernel(DIM // NUM_HEADS):
        raise ValueError(f"kernels: expected a C++ compiler that works and no {SWITCH}=sdpa, found no kernel")
    device = torch.device("cpu")
    product, product_flops = gemm(device)
    numbers = torch.randn(4096)
    out = torch.empty_like(numbers)
    for rows in (64,) if quick else batch_sizes:
        comparisons = [attention(rows, tokens) for tokens in (16, 32, 64)]
        comparisons += [pairs(rows, tokens) for tokens in (17, 46)]
        bounds = {"product": product, "exponentials": lambda: [torch.exp(numbers, out=out) for _ in range(100)]}
        for index, comparison in enumerate(comparisons):
            seconds = in_turns({**comparison.calls(), **bounds}, 3 if quick else rounds, device)
            flops = product_flops / statistics.median(seconds["product"])
            exponentials = 100 * numbers.numel() / statistics.median(seconds["exponentials"])
            if not index:
                print(
                    f"\nbatch {rows}, 1 thread, torch {torch.__version__}; products {flops / 1e9:.0f} GFLOP/s, "
                    f"exponentials {exponentials / 1e9:.2f} G/s"
                )
                print(f"{'':34}{'PyTorch':<32}{'kernel':<32}times as fast (deciles)  of the bound")
            for direction, passes in (("forward", 1), ("backward", 2)):
                slow, fast = (seconds[f"{side} {direction}"] for side in ("PyTorch", "kernel"))
                least = comparison.exponentials / exponentials + passes * comparison.flops / flops
                _print(f"{comparison.name}, {direction}", slow, fast, least)


def _print(name: str, slow: list[float], fast: list[float], least: float) -> None:
    ratios = sorted(one / other for one, other in zip(slow, fast, strict=True))
    low, high = (ratios[round(share * (len(ratios) - 1))] for share in (0.1, 0.9))
    times = f"{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})"
    print(f"{name:<34}{spread(slow):<32}{spread(fast):<32}{times:<25}{least / statistics.median(fast):.2f}", flush=True)


if __name__ == "__main__":
    run(main)
