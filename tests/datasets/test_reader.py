import multiprocessing
import os
import signal
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import make_click_files, make_schema

from nasrec_torchrec.datasets.reader import ClickFiles, TrainingReader

SCHEMA = make_schema()


def _rows(batches: object) -> list[float]:
    """The first dense value of every row, which tells the rows apart."""
    return [value for batch in batches for value in batch.dense_features[:, 0].tolist()]


def _all_rows(files: ClickFiles) -> list[float]:
    return files.load().dense[:, 0].tolist()


@pytest.fixture(scope="module")
def files() -> ClickFiles:
    return make_click_files(SCHEMA, 1000)


@settings(max_examples=30)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 9), st.booleans())
def test_evaluation_counts_every_row_once_on_any_number_of_ranks(rows, world_size, batch_size, weighted):
    files = make_click_files(make_schema(weighted=weighted), rows, row_group=7)
    shares = [list(files.evaluation_batches(batch_size, rank, world_size)) for rank in range(world_size)]
    sizes = [[batch.labels.numel() for batch in share] for share in shares]
    assert all(size == sizes[0] for size in sizes), "every rank must take equally many steps"
    gathered = torch.tensor([row for share in shares for row in _rows(share)])
    assert files.restore(gathered).tolist() == _all_rows(files)


@settings(max_examples=30)
@given(st.integers(24, 200), st.sampled_from([1, 2, 4, 8]), st.sampled_from([8, 16, 24]), st.integers(0, 3))
def test_global_batches_do_not_depend_on_the_number_of_ranks(rows, world_size, batch_size, seed):
    files = make_click_files(SCHEMA, rows, row_group=9)
    alone = list(TrainingReader(files, batch_size, seed))
    shared = [list(TrainingReader(files, batch_size, seed, rank, world_size)) for rank in range(world_size)]
    assert len({len(share) for share in shared}) == 1 and len(shared[0]) == len(alone) >= 1
    assert rows - len(alone) * batch_size < 2 * batch_size + 8
    for step, whole in enumerate(alone):
        parts = [share[step] for share in shared]
        assert _rows([whole]) == _rows(parts)
        for name in whole.sparse_features.keys():
            bags = [ids.tolist() for part in parts for ids in part.sparse_features[name].to_dense()]
            assert bags == [ids.tolist() for ids in whole.sparse_features[name].to_dense()]
    seen = _rows(alone)
    assert len(set(seen)) == len(seen), "a row was seen twice in an epoch"


@settings(max_examples=60)
@given(
    st.integers(60, 300),
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(0, 3),
)
def test_no_row_is_lost_or_repeated_when_the_number_of_ranks_changes(rows, stages, seed):
    files = make_click_files(SCHEMA, rows, row_group=16)
    seen: list[float] = []
    state = None
    for world_size, steps in [*stages, (1, None)]:
        readers = [TrainingReader(files, 12, seed, rank, world_size) for rank in range(world_size)]
        taken = []
        for reader in readers:
            if state is not None:
                reader.load_state_dict(state)
            left = reader.steps_left if steps is None else min(steps, reader.steps_left)
            batches = iter(reader)
            taken.append(_rows(next(batches) for _ in range(left)))
        states = [reader.state_dict() for reader in readers]
        assert all(other == states[0] for other in states), "the position must be the same on every rank"
        state = states[0]
        seen += [row for share in taken for row in share]
    assert len(set(seen)) == len(seen)
    assert len(seen) > rows - 2 * 12, "less than a batch, and what does not fill equal streams, may be left"


def test_a_position_continues_with_the_very_batches(files: ClickFiles):
    reader = TrainingReader(files, 40, 0)
    epochs = [_rows(reader), _rows(reader)]
    for ahead in (0, 2):
        reader = TrainingReader(files, 40, 0)
        _rows(reader)
        batches = iter(reader)
        for _ in range(5 + ahead):
            next(batches)
        other = TrainingReader(files, 40, 0)
        other.load_state_dict(reader.state_dict(ahead))
        assert other.epoch == 1 and other.steps_left == other.steps_per_epoch - 5
        assert _rows(other) == epochs[1][5 * 40 :]
        assert _rows(other) == _rows(_third_epoch(files))


def _third_epoch(files: ClickFiles) -> TrainingReader:
    reader = TrainingReader(files, 40, 0)
    for _ in range(2):
        _rows(reader)
    return reader


def test_epochs_and_seeds_are_shuffled_differently(files: ClickFiles):
    reader = TrainingReader(files, 1000, 0)
    first, second = _rows(reader), _rows(reader)
    other = _rows(TrainingReader(files, 1000, 1))
    assert sorted(first) == sorted(second) == sorted(other) == sorted(_all_rows(files))
    assert first != second and first != other
    assert first == _rows(TrainingReader(files, 1000, 0))


def test_rows_of_one_row_group_are_spread_over_an_epoch(files: ClickFiles):
    first_group = set(_all_rows(files)[:64])
    places = [place for place, row in enumerate(_rows(TrainingReader(files, 40, 0))) if row in first_group]
    assert max(places) - min(places) > 100 and places != list(range(min(places), max(places) + 1))


@settings(max_examples=10)
@given(st.integers(1, 8).filter(lambda n: 48 % n == 0))
def test_ranks_read_row_groups_of_their_own_except_at_the_cuts(world_size):
    files = make_click_files(SCHEMA, 1000, row_group=16)
    read: list[set[int]] = []
    for rank in range(world_size):
        groups: list[int] = []
        opened = _Recording(files, groups)
        list(TrainingReader(opened, 48, 0, rank, world_size))
        assert len(groups) == len(set(groups)), "a rank decodes a row group once"
        read.append(set(groups))
    common = sum(len(groups) for groups in read) - len(set.union(*read))
    assert common <= world_size - 1


class _Recording(ClickFiles):
    def __init__(self, files, record):
        super().__init__(files.schema, files.files, files.groups, files.checksums)
        object.__setattr__(self, "record", record)

    def read(self, group, order=None):
        self.record.append(group)
        return super().read(group, order)


@pytest.mark.slow
def test_the_background_process_delivers_the_same_batches(files: ClickFiles):
    reader = TrainingReader(files, 40, 0, background=True)
    plain = TrainingReader(files, 40, 0)
    for _ in range(2):
        for batch, expected in zip(reader, plain, strict=True):
            assert torch.equal(batch.dense_features, expected.dense_features)
            assert torch.equal(batch.labels, expected.labels)
            found, wanted = batch.sparse_features, expected.sparse_features
            assert found.keys() == wanted.keys() and torch.equal(found.values(), wanted.values())
            assert torch.equal(found.lengths(), wanted.lengths())


@pytest.mark.slow
def test_an_error_in_the_background_arrives_with_its_traceback(tmp_path: Path):
    table = pq.read_table(make_click_files(SCHEMA, 300).files[0])
    wrong = table.set_column(table.schema.get_field_index("f0"), "f0", pa.array([7] * 299 + [999], pa.int32()))
    pq.write_table(wrong, tmp_path / "part.parquet", row_group_size=50)
    reader = TrainingReader(ClickFiles.open(tmp_path, SCHEMA), 20, 0, background=True)
    with pytest.raises(ValueError, match=r"(?s)Traceback.*column 'f0': row 49: id 999 is outside of 0\.\.49"):
        list(reader)


@pytest.mark.slow
def test_a_killed_background_process_stops_the_trainer_within_ten_seconds(files: ClickFiles):
    others = multiprocessing.active_children()
    batches = iter(TrainingReader(files, 8, 0, background=True))
    next(batches)
    (worker,) = (child for child in multiprocessing.active_children() if child not in others)
    killed = time.monotonic()
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly|the process that reads .* died"):
        for _ in range(200):
            next(batches)
    assert time.monotonic() - killed < 10


def test_batches_that_ranks_cannot_share_are_refused(files: ClickFiles):
    with pytest.raises(ValueError, match="positive multiple of the 2 ranks, found 51"):
        TrainingReader(files, 51, 0, 0, 2)
    with pytest.raises(ValueError, match="2000 rows do not fit into a split of 1000 rows"):
        TrainingReader(files, 2000, 0)


def test_a_position_of_other_rows_is_refused(files: ClickFiles):
    state = TrainingReader(files, 40, 0).state_dict()
    with pytest.raises(ValueError, match="expected seed 1, found 0"):
        TrainingReader(files, 40, 1).load_state_dict(state)
    with pytest.raises(ValueError, match="expected rows 500, found 1000"):
        TrainingReader(make_click_files(SCHEMA, 500), 40, 0).load_state_dict(state)


def test_bad_files_are_one_clear_error(tmp_path: Path):
    source = make_click_files(SCHEMA, 100).files[0]
    file = tmp_path / "part.parquet"
    pq.write_table(pq.read_table(source).drop(["f1"]), file)
    with pytest.raises(ValueError, match=r"part.parquet: missing columns \['f1'\]"):
        ClickFiles.open(tmp_path, SCHEMA)
    content = source.read_bytes()
    file.write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"part\.parquet: not a readable Parquet file"):
        ClickFiles.open(file, SCHEMA)
    file.write_bytes(b"PAR1" + bytes(2000) + content[2004:])
    with pytest.raises(ValueError, match=r"part\.parquet"):
        ClickFiles.open(file, SCHEMA).load()
    with pytest.raises(ValueError, match="absent: no Parquet file found"):
        ClickFiles.open(tmp_path / "absent", SCHEMA)


def test_a_split_without_rows_has_no_batches(tmp_path: Path):
    table = pq.read_table(make_click_files(SCHEMA, 10).files[0])
    pq.write_table(table.slice(0, 0), tmp_path / "part.parquet")
    files = ClickFiles.open(tmp_path, SCHEMA)
    assert len(files) == 0 and list(files.evaluation_batches(4)) == [] and len(files.load()) == 0
