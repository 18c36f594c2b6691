"""Scoring by all ranks together with a model whose tables fit into no single machine."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torchrec.datasets.utils import Batch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec.datasets.words import DICTIONARIES
from nasrec_torchrec.distributed.gather import gather_rows
from nasrec_torchrec.distributed.sharded_model import load_sharded
from nasrec_torchrec.inference.predictor import OUTPUT, Request

_REQUEST, _END = 1, 0


class ShardedPredictor:
    """Scores requests as a package's ``Predictor`` does, straight from the sharded checkpoint of a run.

    Rank 0 asks with :meth:`predict` and ends with :meth:`end`; in the meantime, the other ranks are in :meth:`follow`.
    Each looks up and computes a share of the rows.

    Args:
        run_dir: run folder of a training.
        device: device of this rank.
        sharding_type: sharding type of all tables; None lets the planner choose.

    Raises:
        ValueError: If the run has no complete checkpoint, or no plan fits the ranks.
    """

    def __init__(self, run_dir: Path, device: torch.device, sharding_type: str | None = None) -> None:
        self.description, self.dmp = load_sharded(run_dir, device, sharding_type)
        schema = self.description.schema
        self.dense_features = [feature.name for feature in schema.dense]
        self.manifest: dict[str, Any] = {
            "schema": json.loads(replace(schema, weight=None).to_json()),  # as in a package
            "sha256": {f"{DICTIONARIES}/{name}": checksum for name, checksum in self.description.dictionaries},
        }
        self.outputs = schema.labels if schema.tasks else [OUTPUT]
        self._per_row = (len(self.outputs),) if schema.tasks else ()
        self._device, self._weighted, self._names = device, schema.weighted, schema.feature_names
        self._rows = torch.tensor([feature.id_limit for feature in schema.sparse])

    def predict(self, request: Request) -> Tensor:
        """Returns the click probabilities in float32, ``(B,)`` or ``(B, T)`` of T labels; only rank 0 calls it.

        Ids outside of a feature's table are looked up as 0, the missing id.
        """
        lengths = request.lengths
        count = lengths.shape[1]
        if not count:
            return torch.empty(0, *self._per_row)
        limits = self._rows.repeat_interleave(lengths.sum(1))
        ids = torch.where((request.ids >= 0) & (request.ids < limits), request.ids, 0)
        # Every rank takes equally many rows; those that are added have no ids.
        more = -count % dist.get_world_size()
        dense = torch.empty(count, 0) if request.dense is None else request.dense.float()
        self._send(torch.tensor([_REQUEST, count + more, len(ids)]))
        tensors = [F.pad(dense, (0, 0, 0, more)), ids, F.pad(lengths, (0, more))]
        tensors += [] if request.weights is None else [request.weights.float()]
        for tensor in tensors:
            self._send(tensor)
        return self._answer(*tensors)[:count]

    def end(self, error: str | None = None) -> None:
        """Lets the other ranks return from :meth:`follow`, with an error if there is one; only rank 0 calls it."""
        self._send(torch.tensor([_END, 0, 0]))
        dist.broadcast_object_list([error], 0)

    def follow(self) -> None:
        """Takes part in the predictions of rank 0 until it ends them.

        Raises:
            ValueError: With the error that rank 0 ended with.
        """
        while True:
            header = torch.zeros(3, dtype=torch.int64)
            self._send(header)
            kind, rows, ids = header.tolist()
            if kind == _END:
                error: list[str | None] = [None]
                dist.broadcast_object_list(error, 0)
                if error[0] is not None:
                    raise ValueError(error[0])
                return
            tensors = [
                torch.empty(rows, len(self.dense_features)),
                torch.empty(ids, dtype=torch.int64),
                torch.empty(len(self._names), rows, dtype=torch.int64),
                *([torch.empty(ids)] if self._weighted else []),
            ]
            for tensor in tensors:
                self._send(tensor)
            self._answer(*tensors)

    @staticmethod
    def _send(tensor: Tensor) -> None:
        """Fills the tensor of every rank with that of rank 0."""
        if tensor.numel():
            dist.broadcast(tensor.contiguous(), 0)

    @torch.no_grad()  # FBGEMM has no such lookup on the CPU in inference mode
    def _answer(self, dense: Tensor, ids: Tensor, lengths: Tensor, weights: Tensor | None = None) -> Tensor:
        """Returns the probabilities of all rows on every rank, each having computed its share."""
        count = lengths.shape[1] // dist.get_world_size()
        first = dist.get_rank() * count
        row = torch.arange(lengths.shape[1]).repeat(lengths.shape[0]).repeat_interleave(lengths.flatten())
        mine = (row >= first) & (row < first + count)
        sparse = KeyedJaggedTensor(
            self._names,
            ids[mine],
            None if weights is None else weights[mine],
            lengths[:, first : first + count].flatten().contiguous(),  # of one row it would be a view with gaps
            stride=count,
        )
        batch = Batch(dense[first : first + count], sparse, torch.zeros(count, *self._per_row)).to(self._device)
        _, (_, logits, _) = self.dmp(batch)
        return gather_rows(torch.sigmoid(logits.float())).cpu()
