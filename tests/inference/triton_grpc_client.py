"""Asks a running server with NVIDIA's client of the protocol over gRPC, and prints the answers.

    python tests/inference/triton_grpc_client.py localhost:8081

It runs in the environment of the clients and reads the golden request of a package from standard input. It is no part
of ``kserve_client.py``, because both clients define the messages of the protocol, and a process can hold them once.
"""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException


def main(address: str) -> None:
    """Calls the server as tritonclient calls Triton over gRPC."""
    golden = json.load(sys.stdin)
    expected = 1 / (1 + np.exp(-np.array(golden["logits"])))
    client = triton.InferenceServerClient(address)
    print("tritonclient.grpc live", client.is_server_live(), "ready", client.is_server_ready())
    (version,) = client.get_model_metadata("nasrec").versions
    inputs: list[Any] = []
    for name, values in golden["request"].items():
        datatype, array = tensor(name, values)
        part = triton.InferInput(name, list(array.shape), datatype)
        part.set_data_from_numpy(array)
        inputs.append(part)
    answer = client.infer("nasrec", inputs, model_version=version, request_id="7")
    found = answer.as_numpy("probability")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    print("tritonclient.grpc infer", found.astype(float).round(4).tolist(), answer.get_response().id)
    for name, of_version, sent in (("other", "", inputs), ("nasrec", "none", inputs), ("nasrec", "", inputs[:1])):
        try:
            client.infer(name, sent, model_version=of_version)
        except InferenceServerException as error:
            print("tritonclient.grpc", error)


def tensor(name: str, values: list[Any]) -> tuple[str, np.ndarray]:
    """Returns the datatype and the values of a tensor of the golden request."""
    whole = name in ("ids", "lengths")
    return ("INT64", np.array(values, np.int64)) if whole else ("FP32", np.array(values, np.float32))


if __name__ == "__main__":
    main(*sys.argv[1:])
