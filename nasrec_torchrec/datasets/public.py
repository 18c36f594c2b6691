"""Public data sets of click-through-rate research, as they are distributed.

Table sizes and rules are those of the NASRec research code: every categorical value is read as hexadecimal text and
folded into its table, even if it looks like a decimal number.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv

from nasrec_torchrec.datasets.config import SplitConfig, TextFormat
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import Derivation, RawData
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.datasets.sources import open_uri

_CRITEO_KAGGLE = (
    *(1461, 584, 10131227, 2202609, 306, 25, 12518, 634, 4, 93146, 5684, 8351593, 3195),
    *(28, 14993, 5461307, 11, 5653, 2174, 5, 7046548, 19, 16, 286182, 106, 142573),
)
# Distinct values of the 24 days, at most 40 million a table, as MLPerf Training uses them.
_CRITEO_1TB = (
    *(39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10),
    *(2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36),
)
_AVAZU = {
    **{"id": 10000, "hour": 241, "C1": 8, "banner_pos": 8, "site_id": 4738, "site_domain": 7746, "site_category": 27},
    **{"app_id": 8553, "app_domain": 560, "app_category": 37, "device_id": 2686409, "device_ip": 6729487},
    **{"device_model": 8252, "device_type": 6, "device_conn_type": 5, "C14": 2627, "C15": 9, "C16": 10, "C17": 436},
    **{"C18": 5, "C19": 69, "C20": 173, "C21": 61},
}
_KDD_COLUMNS = (
    *("click", "impression", "url", "ad", "advertiser", "depth", "position"),
    *("query", "keyword", "title", "description", "user"),
)
_KDD = {
    **{"url": 26274, "ad": 641708, "advertiser": 14848, "query": 22122011, "keyword": 1188090, "title": 3735797},
    **{"description": 2934102, "user": 20004011, "gender": 4, "age": 8},
}
_FRAPPE = ("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city")


def criteo_kaggle(file: str, max_num_embeddings: int, embedding_dim: int) -> RawData:
    """Returns Criteo Kaggle's ``train.txt``, split as in the research code."""
    return replace(_criteo((file,), _CRITEO_KAGGLE, max_num_embeddings, embedding_dim), title="Criteo Kaggle")


def criteo_1tb(files: Sequence[str], max_num_embeddings: int, embedding_dim: int) -> RawData:
    """Returns the days of Criteo 1TB in chronological order; the last of 24 is half validation, half test."""
    raw = _criteo(tuple(files), _CRITEO_1TB, max_num_embeddings, embedding_dim)
    return replace(raw, title="Criteo 1TB", split=SplitConfig("time", validation_share=1 / 48, test_share=1 / 48))


def avazu(file: str, max_num_embeddings: int, embedding_dim: int) -> RawData:
    """Returns Avazu's ``train.csv``, with 23 categorical features and no dense one."""
    sparse = _hex(_AVAZU, max_num_embeddings)
    return RawData((file,), Schema("click", (), sparse, embedding_dim), title="Avazu")


def kdd_2012(folder: str, max_num_embeddings: int, embedding_dim: int) -> RawData:
    """Returns KDD Cup 2012 track 2: ``training.txt`` joined with ``userid_profile.txt``; any click is a click."""
    return RawData(
        (f"{folder}/training.txt",),
        kdd_schema(max_num_embeddings, embedding_dim),
        TextFormat("\t", _KDD_COLUMNS, quoting=False),
        title="KDD Cup 2012 track 2",
        derivation=_user_profile(f"{folder}/userid_profile.txt"),
    )


def kdd_schema(max_num_embeddings: int, embedding_dim: int) -> Schema:
    """Returns the columns of KDD Cup 2012 after its files are joined."""
    dense = tuple(DenseFeature(name, "log1p") for name in ("impression", "depth", "position"))
    return Schema("click", dense, _hex(_KDD, max_num_embeddings), embedding_dim, label_above=0)


def frappe(folder: Path, embedding_dim: int) -> RawData:
    """Returns Frappe as BARS distributes it: ``train.csv``, ``valid.csv`` and ``test.csv``."""
    sparse = tuple(SparseFeature(name, ids="dictionary") for name in _FRAPPE)
    return RawData(
        tuple(str(folder / f"{name}.csv") for name in ("train", "valid", "test")),
        Schema("label", (), sparse, embedding_dim),
        split=SplitConfig("given"),
        title="Frappe",
    )


def _hex(sizes: dict[str, int], largest: int) -> tuple[SparseFeature, ...]:
    return tuple(SparseFeature(name, min(size, largest), "hex") for name, size in sizes.items())


def _criteo(files: tuple[str, ...], sizes: Sequence[int], largest: int, embedding_dim: int) -> RawData:
    dense = tuple(DenseFeature(f"I{number}", "log1p") for number in range(1, 14))
    sparse = _hex({f"C{number}": size for number, size in enumerate(sizes, start=1)}, largest)
    schema = Schema("label", dense, sparse, embedding_dim)
    names = ("label", *(feature.name for feature in dense), *schema.feature_names)
    return RawData(files, schema, TextFormat("\t", names, quoting=False))


def _user_profile(uri: str) -> Derivation:
    """Returns gender and age of each row's user, missing if the profiles do not contain the user."""
    with open_uri(uri) as file:
        try:
            profile = pcsv.read_csv(
                file,
                pcsv.ReadOptions(column_names=["user", "gender", "age"]),
                pcsv.ParseOptions(delimiter="\t", quote_char=False),
                pcsv.ConvertOptions(column_types={"user": pa.int64(), "gender": pa.int8(), "age": pa.int8()}),
            )
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{uri}: expected user, gender and age, three integers a line: {error}") from None
    users = profile.column("user")
    texts = {name: profile.column(name).combine_chunks().cast(pa.string()) for name in ("gender", "age")}

    def add(table: pa.Table) -> pa.Table:
        text = table.column("user").combine_chunks()
        digits = pc.match_substring_regex(text, "^[0-9]{1,18}$")
        wanted = pc.if_else(digits, text, pa.scalar(None, text.type)).cast(pa.string()).cast(pa.int64())
        rows = pc.index_in(wanted, value_set=users, skip_nulls=True)
        for name, column in texts.items():
            table = table.append_column(name, column.take(rows))
        return table

    return Derivation(("user",), ("gender", "age"), add, f"user profile of {len(users)} users")
