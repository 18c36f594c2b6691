"""What the BUCK files must say, worked out from the sources: which target owns a file, and what a file imports."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nasrec_torchrec", "apps", "components", "benchmarks", "examples", "docs", "tests")
# Import name -> label. Public knowledge from the sources of TorchRec and FBGEMM; all others are placeholders.
PUBLIC_LABELS = {
    "torch": "//caffe2:torch",
    "torch.utils.tensorboard": "//caffe2:torch_tensorboard",
    "fbgemm_gpu": "//deeplearning/fbgemm/fbgemm_gpu:fbgemm_gpu",
}
PLACEHOLDER = "//third-party/python:"
# Where the pip name is not the import name.
PIP_NAMES = {"prometheus_client": "prometheus-client", "sklearn": "scikit-learn", "starlark": "starlark-pyo3"}
PIP_NAMES |= {"yaml": "pyyaml", "psycopg": "psycopg"}


def sources() -> list[Path]:
    """Every Python file, relative to the root."""
    found = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py")]
    return sorted(file.relative_to(ROOT) for file in found if "cpp" not in file.parts)


def imports(file: Path) -> set[str]:
    """Modules that a file imports, also within functions; `from package import module` names the module."""
    return set(_imports(ast.parse((ROOT / file).read_text())))


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, "only absolute imports"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _file_of(inner) or inner in PUBLIC_LABELS else node.module


def _file_of(module: str) -> Path | None:
    path = Path(*module.split("."))
    for base in ("", "tests", "benchmarks", "docs"):
        for file in (Path(base) / path.with_suffix(".py"), Path(base) / path / "__init__.py"):
            if (ROOT / file).exists():
                return file
    return None


def owner(file: Path) -> str:
    """The label of the target that a file belongs to."""
    folder, name = file.parent.as_posix(), file.stem
    if folder == "nasrec_torchrec":
        return f"//nasrec_torchrec:{ {'__init__': 'nasrec_torchrec', 'cli': 'cli'}.get(name, 'core') }"
    if folder == "apps":
        return f"//apps:{'apps' if name == '__init__' else f'{name}_lib'}"
    if folder.startswith("tests"):
        return f"//{folder}:{name}"
    return f"//{folder}:{file.parent.name}"


def label_of(module: str) -> str | None:
    """The label that provides a module; None for the standard library."""
    if file := _file_of(module):
        return owner(file)
    for name in sorted(PUBLIC_LABELS, key=len, reverse=True):
        if module == name or module.startswith(f"{name}."):
            return PUBLIC_LABELS[name]
    top = module.split(".")[0]
    if top in sys.stdlib_module_names:
        return None
    return PLACEHOLDER + PIP_NAMES.get(top, top)
