"""What Triton's Python backend runs of a package; :func:`nasrec_torchrec.inference.triton.publish` copies it.

It needs ``predictor.py`` and the package beside it, PyTorch, and FBGEMM where the package's tables are quantized.
"""

import importlib
from pathlib import Path
from typing import Any

import torch


class TritonPythonModel:
    """A package as Triton calls it."""

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the package and verifies that it gives its golden response.

        Args:
            args: Triton's description of this instance.

        Raises:
            ValueError: If the package is damaged, or does not give on this machine what it gave where it was made.
        """
        torch.set_num_threads(1)
        # Of Triton, and of the copy beside this file: neither is there where this project is installed.
        self._triton = importlib.import_module("triton_python_backend_utils")
        self._scoring = importlib.import_module("predictor")
        self._predictor = self._scoring.Predictor(Path(__file__).parent / "package")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Scores the requests that Triton gathered, those that fit the model in one batch.

        Args:
            requests: requests from Triton; each has one tensor for each input of the configuration.

        Returns:
            A response for each request, in the same order; an error for one that does not fit the model.
        """
        responses: list[Any] = [None] * len(requests)
        fitting: list[tuple[int, Any]] = []
        for number, request in enumerate(requests):
            try:
                fitting.append((number, self._read(request)))
            except ValueError as error:
                responses[number] = self._triton.InferenceResponse(error=self._triton.TritonError(str(error)))
        if fitting:
            scores = self._predictor.predict(self._scoring.merge([read for _, read in fitting]))
            parts = scores.split([len(read) for _, read in fitting])
            for (number, _), part in zip(fitting, parts, strict=True):
                # A column for each output, as nasrec's own server names them.
                columns = part.view(-1, len(self._predictor.outputs)).t().contiguous().numpy()
                named = zip(self._predictor.outputs, columns, strict=True)
                tensors = [self._triton.Tensor(name, column) for name, column in named]
                responses[number] = self._triton.InferenceResponse(output_tensors=tensors)
        return responses

    def finalize(self) -> None:
        """Removes the temporary files of the package."""
        self._predictor.close()

    def _read(self, request: Any) -> Any:
        tensors = {}
        for name in self._predictor.manifest["inputs"]:
            array = self._triton.get_input_tensor_by_name(request, name).as_numpy()
            tensors[name] = torch.from_numpy(array.copy())  # Triton's memory is read-only
        read = self._scoring.Request(**tensors)
        self._predictor.check(read)
        return read
