"""Exports a trained NASRecNet to one file that needs PyTorch alone."""

from pathlib import Path

from nasrec_torchrec.cli import run
from nasrec_torchrec.distributed.checkpoint import load_model
from nasrec_torchrec.inference.export import export
from nasrec_torchrec.models.nasrecnet import NASRecNet


def main(model: Path, out: Path) -> None:
    """Compiles a trained NASRecNet with AOTInductor: model.pt2, and model.json that says how to feed it.

    Args:
        model: run folder of a training, of any number of ranks.
        out: receives model.pt2 and model.json.
    """
    description, trained = load_model(model)
    if not isinstance(trained, NASRecNet):
        raise ValueError(f"{model}: expected the run of a NASRecNet, found a {type(trained).__name__}")
    exported = export(trained, description.schema, out)
    print(f"{exported.package} ({exported.package.stat().st_size / 2**20:.1f} MiB), {exported.manifest}")


if __name__ == "__main__":
    run(main)
