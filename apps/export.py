"""Exports a trained NASRecNet to a package that scores without this project."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets.prepared import DICTIONARIES, open_split
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.exporting import compare, export
from nasrec_torchrec.inference.predictor import MANIFEST
from nasrec_torchrec.models.nasrecnet import NASRecNet
from nasrec_torchrec.models.stored import load_model
from nasrec_torchrec.runs.files import local_folder, publish
from nasrec_torchrec.runs.paths import RemotePath
from nasrec_torchrec.runs.record import record_start


def main(model: Path, out: Path, config: ExportConfig, data: Path | None = None) -> None:
    """Compiles a trained NASRecNet with AOTInductor: model.pt2, model.json that says how to feed it, golden.json.

    With the data set, the package also holds the words of its dictionaries, for scoring raw rows, and tells how its
    validation metrics differ from those of the trained model in float32.

    Args:
        model: run folder of a training, of any number of ranks.
        out: package folder; an earlier one is replaced when the new one is complete.
        data: prepared data set.
    """
    description, trained = load_model(model)
    if not isinstance(trained, NASRecNet):
        raise ValueError(f"{model}: expected the run of a NASRecNet, found a {type(trained).__name__}")
    metrics = {}
    if data is not None:
        drift = compare(trained, config, open_split(data, "validation"))
        metrics = asdict(drift)
        print(drift)
    with ExitStack() as stack:
        words = None if data is None else stack.enter_context(local_folder(data / DICTIONARIES))
        folder = out
        if isinstance(out, RemotePath):
            folder = Path(stack.enter_context(TemporaryDirectory())) / out.name
        predictor = export(trained, description.schema, folder, config, metrics, words)
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        if isinstance(out, RemotePath):
            publish(folder, out, last=MANIFEST)
    record_start(out)
    print(f"{out}: {size / 2**20:.1f} MiB, needs {' and '.join(predictor.manifest['requires'])}")


if __name__ == "__main__":
    run(main)
