"""What the optimizer of a fixed model is given."""

import torch
from support import SMALL_SPACE, make_schema

from nasrec_torchrec.distributed.sharding import parallelize
from nasrec_torchrec.models.description import ModelDescription
from nasrec_torchrec.modules.table_collection import bags_of
from nasrec_torchrec.training.config import TrainConfig
from nasrec_torchrec.training.paths import FixedPath
from nasrec_torchrec.training.task import ClickTask


def test_the_penalty_applies_to_tables_that_were_built_on_the_meta_device(one_rank):
    description = ModelDescription(make_schema(), SMALL_SPACE.sample(torch.Generator().manual_seed(3)))
    model, cpu = description.build(torch.device("meta")), torch.device("cpu")
    tables = bags_of(model.sparse_arch.embedding_bag_collection)
    path = FixedPath(tables, TrainConfig(optimizer="adam", embedding_l2=0.1))
    # As on a GPU: TorchRec allocates the parameters again.
    dmp = parallelize(ClickTask(model, cpu), cpu, replicate=True)
    _, penalized = path.make_optimizer(list(dmp.parameters())).param_groups
    assert {id(table) for table in penalized["params"]} == {id(table) for table in tables.parameters()}
    assert len(penalized["params"]) == 4 and penalized["weight_decay"] == 0.1
