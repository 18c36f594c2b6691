"""Writes a package's golden request and response as text that score.cpp reads: ``golden.py PACKAGE > golden.txt``."""

import json
import sys
from pathlib import Path

import torch

package = Path(sys.argv[1])
manifest, golden = (json.loads((package / name).read_text()) for name in ("model.json", "golden.json"))
tensors = [(name, manifest["input_types"][name], golden["request"][name]) for name in manifest["inputs"]]


def show(name: str, kind: str, values: list) -> None:
    tensor = torch.tensor(values, dtype=getattr(torch, kind))
    print(name, kind, tensor.dim(), *tensor.shape, *tensor.flatten().tolist())


for tensor in tensors:
    show(*tensor)
for table in manifest.get("mapped", []):
    print("mapped", table["type"], len(table["shape"]), *table["shape"], package.resolve() / table["file"])
show("logits", "float32", golden["logits"])
