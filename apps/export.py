"""Exports a trained model to a package that scores without this project."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import DICTIONARIES, open_split
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import check_place, compare, export
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.files import local_folder


def main(model: Path, out: Path, config: ExportConfig, data: Path | None = None) -> None:
    """Compiles a trained model with AOTInductor: model.pt2, model.json that says how to feed it, golden.json.

    With the data set, the package also holds the words of its dictionaries, for scoring raw rows, and tells how its
    validation metrics differ from those of the trained model in float32.

    Args:
        model: run folder of a training, of any number of ranks.
        out: package folder; an earlier package is replaced when the new one is complete.
        data: prepared data set.
    """
    check_place(out)
    description, trained = load_model(model)
    metrics: dict[str, Any] = {}
    with ExitStack() as stack:
        words = None
        if data is not None:
            drift = compare(trained, config, open_split(data, "validation"))
            metrics = asdict(drift)
            print(drift)
            words = stack.enter_context(local_folder(data / DICTIONARIES))
        predictor = export(trained, description.schema, out, config, metrics, words)
    size, needed = predictor.manifest["bytes"], predictor.manifest["requires"]
    print(f"{out}: {size / 2**20:.1f} MiB, needs {' and '.join(needed)}")


if __name__ == "__main__":
    run(main)
