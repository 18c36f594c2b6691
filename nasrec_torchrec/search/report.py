"""What a search leaves for people: the best architectures and a picture."""

import json
import shutil
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from nasrec_torchrec.files import atomic_path, write_text
from nasrec_torchrec.search.evaluator import Candidate


def write_results(candidates: list[Candidate], folder: Path, top_k: int) -> None:
    """Writes ``results.json``, ``search.png`` and the ``top_k`` best architectures as JSON and SVG."""
    best = sorted(candidates, key=_loss)[:top_k]
    order = {id(candidate): number for number, candidate in enumerate(candidates, start=1)}
    document = {
        "evaluated": len(candidates),
        "seconds": sum(candidate.seconds for candidate in candidates),
        "best": [_record(order[id(candidate)], candidate) for candidate in best],
    }
    write_text(folder / "results.json", json.dumps(document, indent=2))
    architectures = folder / "architectures"
    shutil.rmtree(architectures, ignore_errors=True)  # an earlier search may have kept more
    for rank, candidate in enumerate(best, start=1):
        path = architectures / f"rank-{rank:02d}"
        write_text(path.with_suffix(".json"), candidate.architecture.to_json())
        write_text(path.with_suffix(".svg"), candidate.architecture.to_svg())
    with atomic_path(folder / "search.png") as temporary:
        _draw(candidates, best, temporary)


def _loss(candidate: Candidate) -> float:
    return candidate.metrics.log_loss


def _record(number: int, candidate: Candidate) -> dict[str, Any]:
    return {
        "candidate": number,
        "log_loss": candidate.metrics.log_loss,
        "auc": candidate.metrics.auc,
        "multiply_adds": candidate.multiply_adds,
        "parameters": candidate.parameters,
        "seconds": round(candidate.seconds, 4),
        "architecture": json.loads(candidate.architecture.to_json()),
    }


def _draw(candidates: list[Candidate], best: list[Candidate], path: Path) -> None:
    losses = [_loss(candidate) for candidate in candidates]
    best_so_far = [min(losses[: end + 1]) for end in range(len(losses))]
    # A few candidates that learnt nothing must not squeeze the others into one line.
    top = sorted(losses)[int(0.95 * (len(losses) - 1))]
    margin = 0.05 * (top - min(losses)) or 0.001
    figure, (over_time, over_cost) = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    over_time.scatter(range(1, len(losses) + 1), losses, s=10, alpha=0.5, color="tab:gray", label="candidate")
    over_time.step(range(1, len(losses) + 1), best_so_far, where="post", color="tab:blue", label="best so far")
    over_time.set(
        xlabel="candidates evaluated", ylabel="validation log loss", ylim=(min(losses) - margin, top + margin)
    )
    over_time.legend()
    cost = [candidate.multiply_adds for candidate in candidates]
    over_cost.scatter(cost, losses, s=10, c=range(len(losses)), cmap="viridis")
    over_cost.scatter(
        [candidate.multiply_adds for candidate in best],
        [_loss(candidate) for candidate in best],
        s=60,
        facecolors="none",
        edgecolors="tab:red",
        label=f"best {len(best)}",
    )
    over_cost.set(xlabel="multiply-adds per example (later candidates are lighter)", xscale="log")
    over_cost.legend()
    figure.savefig(path, dpi=120, format="png")
    plt.close(figure)
