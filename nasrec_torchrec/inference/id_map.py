"""The rows of ids that were not known beforehand, in the form for serving."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingBagCollection
from torchrec.modules.mc_modules import ManagedCollisionModule

from nasrec_torchrec.id_space import ID_SPACE, UNKNOWN_ROW
from nasrec_torchrec.inference.tables import Tables
from nasrec_torchrec.models.description import ClickModel
from nasrec_torchrec.modules.dynamic_ids import DynamicIds, KnownIds
from nasrec_torchrec.modules.table_collection import parts_of


class IdMap(nn.Module):
    """Maps ids to rows, as the maps in front of the tables did when training ended.

    An id that has no row of its own gets the row that the unknown ids of its bucket share. Ids outside of the range get
    the row of the missing id.

    Args:
        maps: The trained maps.
        features: The features of each map, by their places in the inputs.
        count: Number of features of the model.
    """

    def __init__(self, maps: Sequence[DynamicIds], features: Sequence[Sequence[int]], count: int) -> None:
        super().__init__()
        self._sizes: list[tuple[int, int]] = []
        for number, (ids, mine) in enumerate(zip(maps, features, strict=True)):
            known, rows = ids.id_map()
            # The last one is above all ids, so that a search always ends at an entry.
            end = known.new_full((1,), torch.iinfo(torch.int64).max)
            self.register_buffer(f"ids_{number}", torch.cat([known, end]))
            self.register_buffer(f"rows_{number}", torch.cat([rows, torch.zeros_like(end)]))
            self.register_buffer(f"has_{number}", torch.tensor([feature in mine for feature in range(count)]))
            self._sizes.append((ids.shift, ids.bucket_rows))

    @classmethod
    def of(cls, model: ClickModel, tables: Tables) -> "IdMap | None":
        """Returns the map for a model, None if its ids are all known.

        Args:
            model: The model, not sharded.
            tables: Its tables in the form for serving.
        """
        places = {config.name: place for place, config in enumerate(tables.configs)}
        found = parts_of(model, DynamicIds)
        if not found:
            return None
        features = [
            [feature for feature, table in enumerate(tables.table_of_feature) if table == places[name]]
            for name in found
        ]
        return cls(list(found.values()), features, len(tables.table_of_feature))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Returns the rows of the ids ``(T,)`` of bags of the given lengths ``(F_sparse, B)``; other ids are kept."""
        places = torch.arange(ids.shape[0], device=ids.device)
        feature = torch.bucketize(places, lengths.sum(1).cumsum(0), right=True)
        mapped = ids
        for number, (shift, bucket_rows) in enumerate(self._sizes):
            known, rows = getattr(self, f"ids_{number}"), getattr(self, f"rows_{number}")
            place = torch.searchsorted(known, ids)
            shared = torch.where((ids > 0) & (ids < ID_SPACE), (ids >> shift) * bucket_rows + UNKNOWN_ROW, 0)
            row = torch.where(known[place] == ids, rows[place], shared)
            mapped = torch.where(getattr(self, f"has_{number}")[feature], row, mapped)
        return mapped

    def known(self, feature: int) -> Tensor:
        """Returns the ids of a feature that have a row of their own; none if its ids are rows."""
        for number in range(len(self._sizes)):
            if bool(getattr(self, f"has_{number}")[feature]):
                known: Tensor = getattr(self, f"ids_{number}")[:-1].cpu()
                return known
        return torch.empty(0, dtype=torch.int64)


def has_known_maps(collection: nn.Module) -> bool:
    """Returns whether a collection maps ids in no other way than :class:`IdMap` does."""
    if not isinstance(collection, ManagedCollisionEmbeddingBagCollection):
        return False
    maps = [module for module in collection.modules() if isinstance(module, ManagedCollisionModule)]
    return all(isinstance(module, DynamicIds | KnownIds) for module in maps)
