"""Writes the reader of raw rows as one file, for services that have a copy of ``predictor.py`` and not this project.

    python -m nasrec_torchrec.inference.reader_archive reader.zip

Python imports from such a file: ``sys.path.insert(0, "reader.zip")``. Beside what the predictor needs, it takes NumPy
and pyarrow alone. It holds the very modules that preparation uses, so both read a value alike.
"""

import ast
import sys
import zipfile
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
# What they import is in the archive too.
_ENTRANCES = "inference/rows", "inference/predictor"


def _modules() -> list[Path]:
    """Returns the files of this project that must be there for the entrances to be imported."""
    waiting, found = [PROJECT / f"{name}.py" for name in _ENTRANCES], set[Path]()
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        # Imports within functions are of what a reader does without.
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ImportFrom):
                named = [f"{node.module}.{name.name}" for name in node.names] + [str(node.module)]
                files = [PROJECT.parent / f"{name.replace('.', '/')}.py" for name in named]
                waiting += [one for one in files if one.is_relative_to(PROJECT) and one.exists()]
    return sorted(found)


def write_reader(place: Path) -> None:
    """Writes the archive.

    Args:
        place: where it will be; an earlier one is replaced.
    """
    temporary = place.with_name(place.name + ".tmp")
    with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        files = _modules()
        for package in sorted({PROJECT, *(file.parent for file in files)}):
            # Without what the packages of this project import, which is more than a reader needs.
            archive.writestr(f"{package.relative_to(PROJECT.parent)}/__init__.py", "")
        for file in files:
            archive.write(file, str(file.relative_to(PROJECT.parent)))
    temporary.replace(place)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: expected the name of the archive, such as reader.zip")
    write_reader(Path(sys.argv[1]))
