from dataclasses import replace

import numpy as np
import pytest
import torch
from support import make_schema
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from nasrec_torchrec import NASRecNet, SearchSpace
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.schema import Schema

SHARED_TABLE = Schema(
    "y",
    (DenseFeature("d", "standardize", 5e29, 1e-9), DenseFeature("e", "log1p")),
    (
        SparseFeature("seen", 20, "hash", multi_hot=True, separator=" ", pooling="mean", table="item"),
        SparseFeature("item", 20, "hash", pooling="mean", table="item"),
        SparseFeature("user", ids="dictionary", min_count=3),
    ),
    embedding_dim=8,
)


def test_schema_round_trips():
    for schema in (SHARED_TABLE, make_schema(weighted=True), make_schema(num_dense=0)):
        assert Schema.from_json(schema.to_json()) == schema


def test_yaml_with_defaults_left_out():
    text = """
    label: click
    dense: [age, {name: price, transform: log1p}]
    sparse:
      - {name: site, num_embeddings: 1000, ids: hash}
      - {name: user, ids: dictionary, min_count: 5}
    """
    schema = Schema.from_json(text)
    assert schema.dense == (DenseFeature("age"), DenseFeature("price", "log1p"))
    assert schema.sparse == (SparseFeature("site", 1000, "hash"), SparseFeature("user", ids="dictionary", min_count=5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "neither JSON nor YAML"),
        ("[]", "expected an object with the keys .*'label'.*, found list"),
        ("{dense: []}", r"expected the keys .* of which \['label'\] must be there, found \['dense'\]"),
        ("{label: y, sparse: [{num_embeddings: 3}]}", r"feature None: expected the keys .* \['name'\] must be there"),
        ("{label: y, sparse: [{name: a, size: 3}]}", r"feature 'a': expected the keys .*found \['name', 'size'\]"),
        ("{label: y, sparse: a}", "sparse: expected a list of objects"),
        ("{label: y}", "at least one feature"),
        ("{label: y, dense: [y], sparse: [{name: a, num_embeddings: 3}]}", r"more than once: \['y'\]"),
        ("{label: y, sparse: [{name: a, num_embeddings: 0}]}", "an integer, 1 or more, found 0"),
        ("{label: y, sparse: [{name: a, num_embeddings: 1, ids: hash}]}", "an integer, 2 or more, found 1"),
        ("{label: y, sparse: [{name: a}]}", "num_embeddings: only a dictionary can do without"),
        ("{label: y, sparse: [{name: a, ids: md5, num_embeddings: 9}]}", "ids: expected one of .*'hash'.*found 'md5'"),
        ("{label: y, dense: [{name: d, transform: sqrt}]}", "transform: expected one of .*found 'sqrt'"),
        ("{label: y.z, sparse: []}", "label: expected a non-empty name without '.'"),
        (
            "{label: y, sparse: [{name: a, num_embeddings: 9, table: t}, {name: b, num_embeddings: 8, table: t}]}",
            r"table 't': expected one num_embeddings for all its features, found \{'a': 9, 'b': 8\}",
        ),
        (
            "{label: y, sparse: [{name: a, num_embeddings: 9, weighted: true, multi_hot: true},"
            " {name: b, num_embeddings: 8}]}",
            "either every feature is weighted or none",
        ),
    ],
)
def test_bad_schemas_are_refused(text: str, message: str):
    with pytest.raises(ValueError, match=message):
        Schema.from_json(text)


def test_a_dictionary_that_was_not_counted_has_no_table_yet():
    with pytest.raises(ValueError, match="user: num_embeddings is not known yet"):
        SHARED_TABLE.tables()


def test_tables_start_xavier_normal():
    config = make_schema(rows=4000).tables()[0]
    table = torch.empty(4000, 16)
    config.init_fn(table)
    assert float(table.std()) == pytest.approx(float(np.sqrt(2 / 4016)), rel=0.02)


def test_features_share_a_table_inside_a_model():
    schema = Schema("y", (), SHARED_TABLE.sparse[:2], 8)
    (config,) = schema.tables()
    assert config.feature_names == ["seen", "item"] and config.num_embeddings == 20
    ebc = EmbeddingBagCollection(tables=schema.tables())
    space = SearchSpace(num_blocks=2, dense_widths=(8, 16), sparse_widths=(2, 4))
    model = NASRecNet(ebc, 0, space.sample(torch.Generator().manual_seed(0)))
    ids = KeyedJaggedTensor(["seen", "item"], torch.tensor([3, 5, 3, 4]), lengths=torch.tensor([2, 0, 1, 1]))
    tokens = model.sparse_arch(ids)
    weight = ebc.state_dict()["embedding_bags.item.weight"]
    assert torch.allclose(tokens[0, 0], (weight[3] + weight[5]) / 2)
    assert torch.equal(tokens[1, 0], torch.zeros(8)) and torch.equal(tokens[0, 1], weight[3])


def test_tables_may_have_widths_of_their_own():
    wide = SparseFeature("a", 10, embedding_dim=32)
    schema = Schema("y", (), (wide, SparseFeature("b", 20)), embedding_dim=8)
    assert [(table.name, table.embedding_dim) for table in schema.tables()] == [("t_a", 32), ("t_b", 8)]
    assert Schema.from_json(schema.to_json()) == schema
    assert [list(feature).count("embedding_dim") for feature in schema.to_dict()["sparse"]] == [1, 0]
    # The rows of a data set do not depend on the width of a table.
    assert schema.difference(replace(schema, sparse=(replace(wide, embedding_dim=None), schema.sparse[1]))) is None
    for wrong in (6, 0, True, "8"):
        with pytest.raises(ValueError, match="a: embedding_dim: expected a positive multiple of 4"):
            SparseFeature("a", 10, embedding_dim=wrong)
    with pytest.raises(ValueError, match=r"table 't_a': expected one embedding_dim for all its features, found"):
        Schema("y", (), (wide, SparseFeature("b", 10, table="t_a")))
