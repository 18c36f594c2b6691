"""Several candidates in one pass over the rows, where blocks that agree are computed once.

The children of a generation are mutations of one parent, so most of their blocks have the same weights and inputs.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.modules.choice_block import BlockOutputs
from nasrec_torchrec.modules.interaction_arch import InteractionArch


class SharedFeatures:
    """Computes what the final layers of several subnets read.

    Outputs are kept for one chunk of rows and dropped after the last subnet that reads them, so the memory does not
    depend on the number of rows.

    Args:
        subnets: subnets of one supernet.
    """

    def __init__(self, subnets: Sequence[InteractionArch]) -> None:
        self._subnets = list(subnets)
        numbers: dict[Hashable, int] = {}
        self._keys = [block_keys(subnet.architecture, numbers) for subnet in subnets]
        self._last = {key: index for index, keys in enumerate(self._keys) for key in keys}

    @property
    def computed_share(self) -> float:
        """Blocks that are computed, as a share of the blocks of all subnets."""
        return len(self._last) / sum(map(len, self._keys))

    def __call__(self, dense: Tensor, embedded: Tensor) -> Iterator[Tensor]:
        """Yields the features ``(B, width)`` of every subnet, for ``(B, F_dense)`` and ``(B, F_sparse, E)``."""
        outputs: dict[int, BlockOutputs] = {}
        for index, (subnet, keys) in enumerate(zip(self._subnets, self._keys, strict=True)):
            known = {block: outputs[key] for block, key in enumerate(keys) if key in outputs}
            yield torch.cat(subnet.features(dense, embedded, known), dim=1)
            for block, key in enumerate(keys):
                if self._last[key] > index:
                    outputs[key] = known[block]
                else:
                    outputs.pop(key, None)


def block_keys(architecture: Architecture, numbers: dict[Hashable, int]) -> list[int]:
    """Numbers the blocks of an architecture, so that blocks with equal outputs have equal numbers.

    Two blocks in the same position have equal outputs if they compute the same and read the same.

    Args:
        architecture: the architecture.
        numbers: numbers that were given so far. They are extended.
    """
    keys: list[int] = []
    read = architecture.outputs_read()[1:]
    for index, (block, flags) in enumerate(zip(architecture.canonical().blocks, read, strict=True)):
        names = [field.name for field in fields(block) if field.name.endswith("_inputs")]
        inputs = {source for name in names for source in getattr(block, name)} - {0}
        # Architectures may read the tables at other widths; then their raw tokens are others.
        tokens = architecture.embedding_widths if 0 in block.sparse_inputs else ()
        key = index, block, flags, tokens, tuple((source, keys[source - 1]) for source in sorted(inputs))
        keys.append(numbers.setdefault(key, len(numbers)))
    return keys
