"""Writes the reader of raw rows as one file, for services that have a copy of ``predictor.py`` and not this project.

    python -m nasrec_torchrec.inference.reader_archive reader.zip

Python imports from such a file: ``sys.path.insert(0, "reader.zip")``. Beside what the predictor needs, it takes NumPy
and pyarrow alone. It holds the very modules that preparation uses, so both read a value alike.
"""

import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
_PACKAGES = ("", "datasets/", "inference/")
_MODULES = (
    "id_space",
    "datasets/buckets",
    "datasets/config",
    "datasets/features",
    "datasets/history",
    "datasets/ids",
    "datasets/labels",
    "datasets/moments",
    "datasets/names",
    "datasets/quality",
    "datasets/schema",
    "datasets/transform",
    "datasets/values",
    "datasets/words",
    "inference/predictor",
    "inference/raw_values",
    "inference/rows",
)


def write_reader(file: Path) -> None:
    """Writes the archive.

    Args:
        file: place of the archive; an earlier one is replaced.
    """
    temporary = file.with_name(file.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for package in _PACKAGES:
            # Without what the packages of this project import, which is more than a reader needs.
            archive.writestr(f"{PROJECT.name}/{package}__init__.py", "")
        for module in _MODULES:
            archive.write(PROJECT / f"{module}.py", f"{PROJECT.name}/{module}.py")
    temporary.replace(file)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: expected the name of the archive, such as reader.zip")
    write_reader(Path(sys.argv[1]))
