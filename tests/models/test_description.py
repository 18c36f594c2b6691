"""Descriptions of models: written, read, and compared with data."""

from dataclasses import replace

import pytest
from support import SMALL_SPACE, make_click_files, make_schema

from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
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
