"""Searches a trained supernet for the best architectures."""

from pathlib import Path

from tqdm import tqdm

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import open_split
from nasrec_torchrec.distributed.checkpoint import load_model
from nasrec_torchrec.models.supernet import SuperNet
from nasrec_torchrec.progress import update_interval
from nasrec_torchrec.search.evaluator import EvaluationConfig, Evaluator
from nasrec_torchrec.search.evolution import EvolutionConfig, evolve
from nasrec_torchrec.search.report import SearchLog


def main(
    supernet: Path, data: Path, out: Path, evolution: EvolutionConfig, evaluation: EvaluationConfig, top_k: int = 15
) -> None:
    """Runs regularized evolution over a trained supernet.

    Every candidate's last layer is fine-tuned before it is ranked on the validation split.

    Args:
        supernet: run folder of a supernet's training.
        data: prepared data set.
        out: receives results.json, search.png and the best architectures as architectures/rank-01.json, ...
        top_k: architectures to write.
    """
    _, model = load_model(supernet)
    if not isinstance(model, SuperNet):
        raise ValueError(f"{supernet}: expected the run of a supernet, found a {type(model).__name__}")
    evaluator = Evaluator(model, open_split(data, "train").load(), open_split(data, "validation").load(), evaluation)
    with (
        SearchLog(out) as log,
        tqdm(total=evolution.evaluations, desc="search", unit="candidate", mininterval=update_interval()) as bar,
    ):
        for candidate in evolve(model.search_space, evaluator, evolution):
            log.add(candidate)
            bar.update()
            bar.set_postfix(best=f"{log.best.metrics.log_loss:.5f}", refresh=False)
    log.write_results(top_k)
    print(f"best validation log loss {log.best.metrics.log_loss:.5f}; see {out}/results.json")


if __name__ == "__main__":
    run(main)
