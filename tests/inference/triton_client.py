"""Asks a running server with NVIDIA's client of the Open Inference Protocol, ``tritonclient[http]``.

    python tests/inference/triton_client.py localhost:8080

It runs in an environment of its own, because the client needs a newer urllib3 than torchx allows. It reads the golden
request of a package from standard input and prints what it asked and what came back, one line each.
"""

import importlib.metadata
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

TYPES: dict[str, tuple[str, Any]] = {
    "dense": ("FP32", np.float32),
    "ids": ("INT64", np.int64),
    "lengths": ("INT64", np.int64),
    "weights": ("FP32", np.float32),
}


def main(address: str, golden: dict[str, Any]) -> None:
    print("tritonclient", importlib.metadata.version("tritonclient"))
    client = triton.InferenceServerClient(address)
    show("is_server_live()", client.is_server_live)
    show("is_server_ready()", client.is_server_ready)
    metadata = client.get_server_metadata()
    print("get_server_metadata():", json.dumps({"extensions": metadata["extensions"]}))
    (version,) = client.get_model_metadata("nasrec")["versions"]
    show("get_model_metadata('nasrec')", lambda: client.get_model_metadata("nasrec"))
    show("is_model_ready('nasrec', VERSION)", lambda: client.is_model_ready("nasrec", version))
    expected = 1 / (1 + np.exp(-np.array(golden["logits"])))
    for binary in (True, False):
        for of_version in ("", version):
            for compression in (None, "gzip", "deflate"):
                answer = client.infer(
                    "nasrec",
                    inputs(golden, binary),
                    model_version=of_version,
                    request_id="7",
                    outputs=[triton.InferRequestedOutput("probability", binary_data=binary)],
                    request_compression_algorithm=compression,
                )
                assert answer.get_response()["id"] == "7" and answer.get_response()["model_version"] == version
                np.testing.assert_allclose(answer.as_numpy("probability"), expected, atol=1e-4)
        print(
            f"infer('nasrec', binary_data={binary}):",
            [round(float(value), 4) for value in answer.as_numpy("probability")],
        )
    # What a client sends that leaves everything to its defaults: binary tensors, all outputs.
    np.testing.assert_allclose(
        client.infer("nasrec", inputs(golden, True)).as_numpy("probability"), expected, atol=1e-4
    )
    futures = [client.async_infer("nasrec", inputs(golden, True)) for _ in range(4)]
    for future in futures:
        np.testing.assert_allclose(future.get_result().as_numpy("probability"), expected, atol=1e-4)
    print("async_infer('nasrec'), four times: the same")
    show("infer('other')", lambda: client.infer("other", inputs(golden, True)))
    show("infer('nasrec', version 'none')", lambda: client.infer("nasrec", inputs(golden, True), "none"))
    wrong = triton.InferInput("ids", [1], "INT32")
    wrong.set_data_from_numpy(np.array([1], np.int32))
    others = [part for part in inputs(golden, True) if part.name() != "ids"]
    show("infer('nasrec', ids of INT32)", lambda: client.infer("nasrec", [*others, wrong]))
    show("get_model_repository_index()", client.get_model_repository_index)


def inputs(golden: dict[str, Any], binary: bool) -> list[triton.InferInput]:
    """The tensors of a golden request."""
    parts = []
    for name, values in golden["request"].items():
        datatype, kind = TYPES[name]
        array = np.array(values, kind)
        part = triton.InferInput(name, list(array.shape), datatype)
        part.set_data_from_numpy(array, binary_data=binary)
        parts.append(part)
    return parts


def show(call: str, answer: Callable[[], Any]) -> None:
    """Prints a call and what it gives, or the error that it raises."""
    try:
        print(f"{call}:", json.dumps(answer()))
    except InferenceServerException as error:
        print(f"{call}: InferenceServerException: {error}")


if __name__ == "__main__":
    main(sys.argv[1], json.load(sys.stdin))
