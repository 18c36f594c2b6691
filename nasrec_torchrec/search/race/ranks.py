"""The ranks of one worker: the leader tells the others what they train together."""

import sys
from typing import Any

import torch
import torch.distributed as dist

from nasrec_torchrec.search.race.training import UnbuildableError, fit_finally, train_trial
from nasrec_torchrec.training.guard import DivergedError


def tell(message: Any) -> None:
    """Gives the other ranks their next task; None ends them, and a text with that error."""
    if dist.get_world_size() > 1:
        dist.broadcast_object_list([message], 0)


def follow(device: torch.device) -> None:
    """The other ranks train what the leader says."""
    while True:
        message: list[Any] = [None]
        dist.broadcast_object_list(message, 0)
        if message[0] is None:
            return
        if isinstance(message[0], str):
            raise ValueError(message[0])
        trial, until, data, folder, finally_fit = message[0]
        try:
            if finally_fit:
                fit_finally(trial, until, data, folder, device)
            else:
                train_trial(trial, until, data, folder, device, None)
        except (DivergedError, UnbuildableError) as error:
            print(f"{folder}: {error}", file=sys.stderr)
