"""``nasrec export``."""

from dataclasses import asdict
from typing import Any

from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.inference.jobs import ExportedPackage, export


def _document(package: ExportedPackage) -> dict[str, Any]:
    return asdict(package) | {"folder": str(package.folder), "delta": package.delta and str(package.delta)}


PROGRAM = Program(
    export,
    example="nasrec export --model runs/model --data DATA --out runs/export --tables int8",
    show=str,
    document=_document,
)
