"""Asks a running server with KServe's clients, over REST and gRPC, and prints the answers.

    python tests/inference/kserve_client.py localhost:8080 localhost:8081 docs/inference.md

It runs in the environment of the clients and reads the golden request of a package from standard input. The resources
of KServe in the page are read with KServe's own models.
"""

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

import kserve
import numpy as np
import yaml
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kubernetes import client as kubernetes


async def ask(url: str, address: str, golden: dict[str, Any], expected: np.ndarray) -> None:
    """Calls the server as KServe's clients do."""

    def request(binary: bool) -> InferRequest:
        inputs = []
        for name, values in golden["request"].items():
            datatype, array = tensor(name, values)
            part = InferInput(name, list(array.shape), datatype)
            part.set_data_from_numpy(array, binary_data=binary)
            inputs.append(part)
        return InferRequest(model_name="nasrec", infer_inputs=inputs)

    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    live, ready = await rest.is_server_live(url), await rest.is_server_ready(url)
    print("kserve rest live", live, "ready", ready, "model", await rest.is_model_ready(url, "nasrec"))
    for binary in (True, False):
        answer = await rest.infer(url, request(binary), model_name="nasrec")
        found = np.array(answer.outputs[0].as_numpy())
        np.testing.assert_allclose(found, expected, atol=1e-4)
        print(f"kserve rest infer binary={binary}", found.astype(float).round(4).tolist())
    async with InferenceGRPCClient(address) as client:
        live, ready = await client.is_server_live(), await client.is_server_ready()
        print("kserve grpc live", live, "ready", ready, "model", await client.is_model_ready("nasrec"))
        for binary in (True, False):
            answer = await client.infer(request(binary))
            found = np.array(answer.outputs[0].as_numpy())
            np.testing.assert_allclose(found, expected, atol=1e-4)
            print(f"kserve grpc infer binary={binary}", found.astype(float).round(4).tolist())


def check(resource: Any, kind: str, where: str) -> None:
    """Checks that every field of a resource is one of KServe's or Kubernetes' own models."""
    listed = re.fullmatch(r"(?:list|List)\[(.*)\]", kind)
    mapped = re.fullmatch(r"(?:dict|Dict)[(\[]str, (.*)[)\]]", kind)
    model = getattr(kserve, kind, None) or getattr(kubernetes, kind, None)
    if listed:
        assert isinstance(resource, list), f"{where}: {resource!r} is no list"
        for place, part in enumerate(resource):
            check(part, listed[1], f"{where}[{place}]")
    elif mapped:
        for name, part in resource.items():
            check(part, mapped[1], f"{where}.{name}")
    elif model is not None:
        fields = {name: model.openapi_types[field] for field, name in model.attribute_map.items()}
        for name, part in resource.items():
            assert name in fields, f"{where}: {name!r} is none of {sorted(fields)}"
            check(part, fields[name], f"{where}.{name}")


def read_resources(page: str) -> None:
    """Checks the resources of KServe that a page shows."""
    for block in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        for document in yaml.safe_load_all(block):
            if document.get("kind") == "InferenceService":
                check(document, "V1beta1InferenceService", document["metadata"]["name"])
                print("kserve reads", document["metadata"]["name"])


def tensor(name: str, values: list[Any]) -> tuple[str, np.ndarray]:
    """Returns the datatype and the values of a tensor of the golden request."""
    whole = name in ("ids", "lengths")
    return ("INT64", np.array(values, np.int64)) if whole else ("FP32", np.array(values, np.float32))


def main(http: str, grpc: str, page: str) -> None:
    golden = json.load(sys.stdin)
    expected = 1 / (1 + np.exp(-np.array(golden["logits"])))
    read_resources(Path(page).read_text())
    asyncio.run(ask(f"http://{http}", grpc, golden, expected))


if __name__ == "__main__":
    main(*sys.argv[1:])
