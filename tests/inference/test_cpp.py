import shutil
import subprocess
import sys
from pathlib import Path

import fbgemm_gpu
import pytest
import torch
from inference.conftest import build_mlp, exported
from support import make_schema

from nasrec_torchrec.inference.config import ExportConfig

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "cpp"
# What registers FBGEMM's lookup of quantized tables, as `import fbgemm_gpu` does in Python.
LIBRARIES = ("fbgemm_gpu_config.so", "fbgemm_gpu_tbe_utils.so", "fbgemm_gpu_tbe_inference.so")


@pytest.mark.extended
@pytest.mark.skipif(not shutil.which("cmake") or not shutil.which("c++"), reason="needs CMake and a C++ compiler")
def test_the_example_reproduces_the_golden_response(package, packages: Path, tmp_path: Path):
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["cmake", "-S", EXAMPLE, "-B", tmp_path, prefix], ["cmake", "--build", tmp_path]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    schema = make_schema()
    mapped = exported(packages, "mapped-small", build_mlp(schema), schema, ExportConfig(map_tables=True))
    (tmp_path / "golden.txt").write_text(_golden(mapped))
    score = [tmp_path / "score", mapped / "model.pt2", tmp_path / "golden.txt"]
    done = subprocess.run(score, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("8 rows, largest difference"), done.stdout + done.stderr
    golden = _golden(package[0])
    (tmp_path / "golden.txt").write_text(golden)
    folder = Path(fbgemm_gpu.__file__).parent
    score = [tmp_path / "score", package[0] / "model.pt2", tmp_path / "golden.txt"]
    done = subprocess.run([*score, *(folder / name for name in LIBRARIES)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("8 rows, largest difference"), done.stdout + done.stderr
    lines = golden.splitlines()
    (tmp_path / "golden.txt").write_text("\n".join([*lines[:-1], lines[-1].replace(lines[-1].split()[4], "9", 1)]))
    done = subprocess.run([*score, *(folder / name for name in LIBRARIES)], capture_output=True, text=True)
    assert done.returncode == 1, "another response is told"
    done = subprocess.run([*score[:2], tmp_path / "absent"], capture_output=True, text=True)
    assert done.returncode == 2 and "expected inputs and logits" in done.stderr


def _golden(package: Path) -> str:
    command = [sys.executable, EXAMPLE / "golden.py", package]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
