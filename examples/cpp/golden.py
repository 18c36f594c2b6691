"""Writes a package's golden request and response as text that score.cpp reads: ``golden.py PACKAGE > golden.txt``."""

import json
import sys
from pathlib import Path

import torch

package = Path(sys.argv[1])
manifest, golden = (json.loads((package / name).read_text()) for name in ("model.json", "golden.json"))
tensors = [(name, manifest["input_types"][name], golden["request"][name]) for name in manifest["inputs"]]
for name, kind, values in [*tensors, ("logits", "float32", golden["logits"])]:
    tensor = torch.tensor(values, dtype=getattr(torch, kind))
    print(name, kind, tensor.dim(), *tensor.shape, *tensor.flatten().tolist())
