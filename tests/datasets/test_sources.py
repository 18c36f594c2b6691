"""Files are told apart by what is in them, and each is read once."""

import bz2
import gzip
import io
import lzma
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pcsv
import pyarrow.parquet as pq
import pytest

from nasrec_torchrec.datasets.features import SparseFeature
from nasrec_torchrec.datasets.preparation import RawData, prepare
from nasrec_torchrec.datasets.prepared import read_manifest
from nasrec_torchrec.datasets.schema import Schema

SCHEMA = Schema("click", (), (SparseFeature("shop", 20, "hash"),))
TEXT = b"click,shop\n" + b"".join(b"%d,shop %d\n" % (n % 2, n % 9) for n in range(300))


def _zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def _parquet(content: bytes) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pcsv.read_csv(io.BytesIO(content)), sink)
    return sink.getvalue()


def _zip(content: bytes) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("log.csv", content)
    return sink.getvalue()


def _prepared(out: Path, *files: Path | str) -> dict:
    prepare(RawData(tuple(map(str, files)), SCHEMA), out)
    manifest = read_manifest(out)
    return {"rows": manifest["rows"], "rejected": manifest["rejected"], "shops": _shops(out)}


def _shops(out: Path) -> list[int]:
    return sorted(shop for split in ("train", "validation", "test") for shop in _column(out / split))


def _column(folder: Path) -> list[int]:
    return pq.read_table(folder).column("shop").to_pylist()


@pytest.fixture
def expected(tmp_path: Path) -> dict:
    (tmp_path / "plain.csv").write_bytes(TEXT)
    found = _prepared(tmp_path / "expected", tmp_path / "plain.csv")
    assert found["rows"] == 300 and not found["rejected"]
    return found


@pytest.mark.parametrize(
    ("name", "encode"),
    [
        ("log.csv.gz", gzip.compress),
        ("LOG.CSV.GZ", gzip.compress),
        ("log.csv", gzip.compress),
        ("log.bz2", bz2.compress),
        ("log", lzma.compress),
        ("log.CSV.ZST", _zstd),
        ("log.csv", _parquet),
        ("LOG.PARQUET", _parquet),
        # Two archives one behind the other are one file for every one of these programs.
        ("log.gz", lambda content: gzip.compress(content[:100]) + gzip.compress(content[100:])),
        ("log.bz2", lambda content: bz2.compress(content[:100]) + bz2.compress(content[100:])),
        ("log.xz", lambda content: lzma.compress(content[:100]) + lzma.compress(content[100:])),
        ("log.zst", lambda content: _zstd(content[:100]) + _zstd(content[100:])),
    ],
)
def test_the_content_says_what_a_file_is(tmp_path: Path, expected: dict, name: str, encode):
    file = tmp_path / name
    file.write_bytes(encode(TEXT))
    assert _prepared(tmp_path / "data", file) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("log.csv", _zip(TEXT), r"log\.csv: cannot be read, it is a zip archive \(or a spreadsheet\): unpack it; read"),
        ("log.csv", TEXT.decode().encode("utf-16"), "UTF-16 text: convert it to UTF-8"),
        ("log.csv", TEXT.decode().encode("utf-16-le"), "not text in UTF-8"),
        ("log.csv.gz", gzip.compress(_parquet(TEXT)), "Parquet inside of gzip: unpack it"),
        ("log.csv.gz", TEXT, "it is not compressed by gzip, as its name says"),
        ("log.parquet", TEXT, "not a readable Parquet file"),
        ("log.csv", TEXT.replace(b"\n", b"\r"), "lines end in carriage returns alone"),
        ("log.csv", b"click,shop,shop\n1,a,b\n", r"columns named more than once: \['shop'\]"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, name: str, content: bytes, message: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        prepare(RawData((str(tmp_path / name),), SCHEMA), tmp_path / "data")
    assert not (tmp_path / "data").exists()


# What PyArrow writes as zstd has no checksum of its own.
@pytest.mark.parametrize("encode", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("place", [40, 90, -20])
def test_a_damaged_archive_is_one_line_that_names_it(tmp_path: Path, encode, place: int):
    content = bytearray(encode(TEXT * 3))
    content[place : place + 12] = bytes(255 - byte for byte in content[place : place + 12])
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(ValueError, match=r"log\.csv: cannot be read"):
        prepare(RawData((str(tmp_path / "log.csv"),), SCHEMA), tmp_path / "data")


@pytest.mark.parametrize("encode", [gzip.compress, bz2.compress, lzma.compress, _zstd])
def test_an_archive_that_ends_too_early_is_one_line_that_names_it(tmp_path: Path, encode):
    (tmp_path / "log.csv").write_bytes(encode(TEXT * 3)[:-20])
    with pytest.raises(ValueError, match=r"log\.csv: cannot be read"):
        prepare(RawData((str(tmp_path / "log.csv"),), SCHEMA), tmp_path / "data")


def test_a_file_that_is_named_twice_is_read_once(tmp_path: Path, expected: dict, capsys):
    file = tmp_path / "plain.csv"
    os.symlink(file, tmp_path / "link.csv")
    names = (file, f"{tmp_path}/../{tmp_path.name}/pl*.csv", tmp_path / "link.csv")
    assert _prepared(tmp_path / "data", *names) == expected
    assert capsys.readouterr().err.count("is named more than once and read once") == 2


def test_a_copy_is_read_and_said_aloud(tmp_path: Path, expected: dict, capsys):
    (tmp_path / "copy.csv").write_bytes(TEXT)
    assert _prepared(tmp_path / "data", tmp_path / "plain.csv", tmp_path / "copy.csv")["rows"] == 600
    assert "copy.csv holds the same bytes as" in capsys.readouterr().err


@pytest.mark.parametrize("ending", [b"\n", b"\n\n  \n"])
def test_blank_lines_are_no_rows(tmp_path: Path, expected: dict, ending: bytes):
    (tmp_path / "blank.csv").write_bytes(TEXT.replace(b"\n1,", b"\n\n1,") + ending)
    assert _prepared(tmp_path / "data", tmp_path / "blank.csv") == expected
