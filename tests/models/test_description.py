"""Descriptions of models: written, read, and compared with data."""

from dataclasses import replace

import pytest
import torch
from support import SMALL_SPACE, make_click_files, make_schema

from nasrec_torchrec.architecture import recorded
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.inference.config import ExportConfig
from nasrec_torchrec.inference.scoring_model import scoring_model
from nasrec_torchrec.models.description import ModelDescription

SCHEMA = make_schema()
DESCRIPTION = ModelDescription(SCHEMA, SMALL_SPACE, True, (("f0.parquet", "12"), ("f1.parquet", "34")))


def test_a_description_is_read_as_it_was_written():
    assert ModelDescription.from_json(DESCRIPTION.to_json()) == DESCRIPTION


def _sparse(**values) -> tuple[SparseFeature, ...]:
    return (replace(SCHEMA.sparse[0], **values), *SCHEMA.sparse[1:])


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"label": "bought"}, "label is 'label' here and 'bought' there"),
        ({"dense": SCHEMA.dense[::-1]}, r"the dense features are \['d0', 'd1', 'd2'\] here and \['d2', 'd1', 'd0'\]"),
        ({"dense": (DenseFeature("d0", "log1p"), *SCHEMA.dense[1:])}, "'d0': transform is 'none' here and 'log1p'"),
        ({"sparse": SCHEMA.sparse[1:]}, "the sparse features are"),
        ({"sparse": _sparse(num_embeddings=60)}, "'f0': num_embeddings is 50 here and 60 there"),
    ],
)
def test_the_first_difference_to_data_is_named(changes, difference):
    files = replace(make_click_files(SCHEMA, 10), schema=replace(SCHEMA, **changes))
    with pytest.raises(ValueError, match=f"trained on data of another preparation: {difference}"):
        DESCRIPTION.require_fits(files)


def test_other_words_are_another_preparation_and_another_width_is_not():
    files = make_click_files(SCHEMA, 10)
    DESCRIPTION.require_fits(replace(files, schema=replace(SCHEMA, embedding_dim=32)))
    DESCRIPTION.require_fits(replace(files, dictionaries=DESCRIPTION.dictionaries))
    with pytest.raises(ValueError, match=r"the dictionary f1\.parquet gives other ids to the words"):
        DESCRIPTION.require_fits(replace(files, dictionaries=(("f0.parquet", "12"), ("f1.parquet", "35"))))


def test_a_model_reads_data_with_more_features_than_it_has():
    names = [SCHEMA.dense[1].name, SCHEMA.sparse[0].name]
    files = make_click_files(SCHEMA, 10)
    narrow = replace(DESCRIPTION, schema=SCHEMA.without(names))
    found = narrow.read(files)
    assert found.schema == narrow.schema == files.without(names).schema
    assert found.load().sparse.keys() == [feature.name for feature in SCHEMA.sparse[1:]]
    with pytest.raises(ValueError, match=r"features to leave out: expected some of .* found \['f99'\]"):
        SCHEMA.without(["f99"])
    with pytest.raises(ValueError, match="sparse: expected at least one feature"):
        SCHEMA.without(SCHEMA.feature_names)


def test_tables_get_the_widths_that_an_architecture_chooses():
    space = replace(SMALL_SPACE, embedding_widths=(4, 32)).for_tables(SCHEMA.table_names)
    architecture = space.sample(torch.Generator().manual_seed(0))
    found = ModelDescription(SCHEMA, architecture)
    assert {table.name: table.embedding_dim for table in found.schema.tables()} == dict(architecture.embedding_widths)
    assert ModelDescription.from_json(found.to_json()) == found
    files = make_click_files(SCHEMA, 10)
    found.require_fits(files)
    batch = next(files.evaluation_batches(10))
    model = found.build()
    model(batch.dense_features, batch.sparse_features).sum().backward()
    scoring = scoring_model(model, ExportConfig(), SCHEMA.feature_names)
    lengths = batch.sparse_features.lengths().view(len(SCHEMA.sparse), -1).long()
    scored = scoring(batch.dense_features, batch.sparse_features.values(), lengths)
    torch.testing.assert_close(scored, model(batch.dense_features, batch.sparse_features).flatten(), rtol=0, atol=1e-5)


def test_a_supernet_has_tables_of_the_largest_width_and_keeps_those_that_are_no_choice():
    space = replace(SMALL_SPACE, embedding_widths=(4, 32), width_tables=("t_f1",))
    found = ModelDescription(SCHEMA, space)
    assert [table.embedding_dim for table in found.schema.tables()] == [16, 32, 16, 16]
    assert ModelDescription.from_json(found.to_json()) == found
    with pytest.raises(ValueError, match=r"width_tables: there is no table \['f9'\]"):
        ModelDescription(SCHEMA, replace(space, width_tables=("f9",)))


def test_descriptions_without_widths_look_as_before():
    assert "embedding_widths" not in DESCRIPTION.to_json()
    architecture = SMALL_SPACE.sample(torch.Generator().manual_seed(0))
    assert set(recorded(architecture)) == {"blocks", "dense_outputs", "sparse_outputs"}
