"""What `import nasrec_torchrec` gives, and what it does not import."""

import json
import subprocess
import sys

import nasrec_torchrec


def _python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_public_name_is_there_and_found_by_completion():
    assert all(getattr(nasrec_torchrec, name) is not None for name in nasrec_torchrec.__all__)
    assert {*nasrec_torchrec.__all__, "training", "search"} <= set(dir(nasrec_torchrec))
    assert nasrec_torchrec.__version__.count(".") == 2


def test_values_and_settings_need_no_torch():
    settings = ["datasets", "distributed", "inference", "models", "search", "training"]
    code = "import json, sys, nasrec_torchrec\n"
    code += "".join(f"import nasrec_torchrec.{package}.config\n" for package in settings)
    code += "nasrec_torchrec.NASREC_FULL.cardinality\n"
    code += "print(json.dumps([name for name in ('torch', 'pyarrow', 'numpy') if name in sys.modules]))"
    assert json.loads(_python(code)) == []


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(nasrec_torchrec, "NASRecNets")
