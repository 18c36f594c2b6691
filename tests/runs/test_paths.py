import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from iopath.common.file_io import PathHandler
from moto.server import ThreadedMotoServer
from support import click_table, end_ranks, make_click_data, make_schema, run_process, start_ranks
from upath import UPath

from nasrec_torchrec.runs.files import (
    atomic_path,
    local_copy,
    local_folder,
    move,
    publish,
    read_text,
    remove,
    walk,
    write_text,
)
from nasrec_torchrec.runs.handlers import serve
from nasrec_torchrec.runs.paths import register_handlers, to_path

ROOT = Path(__file__).resolve().parents[2]
HANDLERS = """
from iopath.common.s3 import S3PathHandler


def register(paths):
    paths.register_handler(S3PathHandler(profile=None))
"""


class Shelves(PathHandler):
    """Of a scheme that nothing else knows."""

    def _get_supported_prefixes(self) -> list[str]:
        return ["shelf://"]


@pytest.fixture(scope="module")
def s3(tmp_path_factory) -> Iterator[dict[str, str]]:
    """Environment of processes that reach a bucket named clicks, by iopath's handler for S3."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    folder = tmp_path_factory.mktemp("s3")
    (folder / "company_paths.py").write_text(HANDLERS)
    address, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{address}:{port}",
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "FVCORE_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(folder),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.syspath_prepend(folder)
        boto3.client("s3").create_bucket(Bucket="clicks")
        yield variables
    server.stop()


@pytest.fixture(params=["memory://clicks", "s3://clicks"])
def folder(request, s3) -> Iterator[Path]:
    if request.param.startswith("s3"):
        register_handlers("company_paths:register")
    folder = to_path(f"{request.param}/some/folder")
    assert isinstance(folder, UPath)
    yield folder
    remove(folder)


@given(
    st.sampled_from(["s3://", "memory://", "shelf://"]),
    st.lists(st.text("abc.=*-_ 0", min_size=1).filter(lambda part: set(part) != {"."}), min_size=2, max_size=4),
)
@pytest.mark.usefixtures("s3")
def test_a_uri_is_a_path_and_back(scheme: str, parts: list[str]):
    register_handlers("company_paths:register")
    serve(lambda paths: paths.register_handler(Shelves()))
    uri = scheme + "/".join(parts)
    path = to_path(uri)
    assert str(path) == uri and path.name == parts[-1]
    assert str(path / "x") == f"{uri}/x" and (path / "x").parent == path
    assert str(path.with_name("y")) == f"{scheme}{'/'.join([*parts[:-1], 'y'])}"
    assert to_path("file:///tmp/x") == Path("/tmp/x") == to_path("/tmp/x")


def test_a_remote_folder_is_used_like_a_local_one(folder: Path):
    assert not folder.exists() and not folder.is_dir() and list(walk(folder)) == list(folder.glob("*")) == []
    with pytest.raises(ValueError, match=r"some/folder/a.txt: cannot be read"):
        read_text(folder / "a.txt")
    for name in ("a.txt", "b.json", "deep/er/c.txt"):
        write_text(folder / name, f"in {name}")
    assert folder.exists() and folder.is_dir() and not folder.is_file()
    assert (folder / "a.txt").is_file() and not (folder / "a.txt").is_dir()
    assert [path.name for path in folder.iterdir()] == ["a.txt", "b.json", "deep"]
    assert list(folder.glob("*.txt")) == [folder / "a.txt"]
    assert list(folder.glob("d*/er/*.txt")) == list(folder.glob("deep/*/c.txt")) == [folder / "deep/er/c.txt"]
    assert (folder / "b.json").open("rb").read() == b"in b.json"
    assert local_copy(folder / "a.txt").read_text() == "in a.txt"
    with local_folder(folder) as copies:
        assert (copies / "deep" / "er" / "c.txt").read_text() == "in deep/er/c.txt"
        write_text(copies / "a.txt", "changed")
        publish(copies, folder / "deep", last="a.txt", make_way=lambda: None)
    assert not copies.exists()
    # What was there before is gone; the copy on this machine is fetched again once the file has changed.
    files = ["a.txt", "b.json", "deep/a.txt", "deep/b.json", "deep/deep/er/c.txt"]
    assert list(walk(folder)) == files
    move(folder / "deep", folder / "moved")
    moved = [name.replace("deep", "moved", 1) for name in files]
    assert list(walk(folder)) == moved
    (folder / "moved" / "a.txt").unlink()
    (folder / "moved" / "a.txt").unlink(missing_ok=True)
    assert read_text(folder / "moved" / "b.json") == "in b.json"
    with pytest.raises(KeyboardInterrupt), atomic_path(folder / "half") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert not (folder / "half").exists()
    # Code that would use it as a path of this machine is told so.
    with pytest.raises(TypeError, match=r"should be string, bytes, os\.PathLike"):
        os.listdir(folder)


def test_a_changed_file_is_fetched_again(folder: Path):
    write_text(folder / "x", "one")
    assert local_copy(folder / "x").read_text() == "one"
    time.sleep(1.1)  # S3 tells times in seconds
    write_text(folder / "x", "two")
    assert local_copy(folder / "x").read_text() == "two"


def test_only_this_package_asks_what_kind_of_path_it_has():
    asks = re.compile(r"""is_remote|UPath|RemotePath|"http" (not )?in|://"|https\?:""")
    package = ROOT / "nasrec_torchrec"
    # The URI of a database is no path.
    exempt = package / "datasets" / "queries.py"
    for file in package.rglob("*.py"):
        if file != exempt and file.parent != package / "runs":
            assert not asks.search(file.read_text()), file


def test_handlers_that_are_not_there_are_told():
    for name in ("nowhere:register", "json:register", "json", ""):
        with pytest.raises(ValueError, match="path_handlers: expected module:function, found"):
            register_handlers(name)


def _run(s3: dict[str, str], program: str, *arguments: str, expected: int = 0) -> str:
    words = "-m", f"apps.{program}", *arguments, "--path-handlers", "company_paths:register"
    done = run_process(*words, folder=ROOT, environment=s3)
    assert done.returncode == expected, done.stderr[-3000:]
    return done.stderr if expected else done.stdout


@pytest.mark.extended
def test_every_file_of_all_jobs_lies_in_a_bucket(s3: dict[str, str], tmp_path: Path):
    register_handlers("company_paths:register")
    base = to_path("s3://clicks/road")
    schema = make_schema()
    write_text(base / "schema.json", schema.to_json())
    for number in (1, 2):
        with atomic_path(base / "raw" / f"log-{number}.parquet") as temporary:
            pq.write_table(click_table(make_click_data(schema, 1000, seed=number), schema), temporary)
    data, run = str(base / "data"), base / "run"
    table = ["table", "--source", f"{base}/raw/log-*.parquet", "--schema", f"{base}/schema.json", "--split", "time"]
    for _ in range(2):  # again: up to date
        assert json.loads(_run(s3, "prepare_data", *table, "--out", data))["splits"]["train"]["rows"] == 1600

    space = ["--num_blocks", "2", "--dense_widths", "[16,32]", "--sparse_widths", "[4,8]"]
    supernet = ["--data", data, "--out", str(base / "supernet"), *space, "--batch_size", "50", "--epochs", "1"]
    _run(s3, "train_supernet", *supernet)
    search = ["--supernet", str(base / "supernet"), "--data", data, "--out", str(base / "search"), "--population", "4"]
    search += ["--generations", "1", "--children", "2", "--tournament", "2", "--finetune_steps", "5"]
    refused = _run(s3, "search", *search, expected=2)
    assert "no process can lock a remote file, found s3://clicks/road/search/study.journal" in refused
    _run(s3, "search", *search, "--storage", f"sqlite:///{tmp_path}/search.db", "--top_k", "1")

    # Killed with everything it had on this machine, it resumes from what is in the bucket.
    best = str(base / "search" / "architectures" / "rank-01.json")
    train = ["--data", data, "--out", str(run), "--architecture", best, "--batch_size", "50"]
    train += ["--checkpoint_every", "20", "--log_every", "1", "--epochs", "4"]
    handlers, place = ["--path-handlers", "company_paths:register"], tmp_path / "printed"
    place.mkdir()
    ranks = start_ranks(place, 2, "-m", "apps.train", *train, *handlers, environment=s3)
    checkpoints = run / "trial-01-seed-0" / "checkpoints"
    while not list(checkpoints.glob("step-*/.metadata")):
        assert all(rank.is_alive() for rank in ranks), [file.read_text() for file in place.iterdir()]
        time.sleep(0.1)
    for rank in ranks:
        rank.kill()
        rank.join()
    assert "training loss" in _run(s3, "status", str(run))
    ranks = start_ranks(place, 2, "-m", "apps.train", *train, *handlers, "--json", environment=s3)
    kept = json.loads(end_ranks(ranks, place))["runs"][0]
    starts = [line for line in read_text(run / "trial-01-seed-0" / "log.jsonl").splitlines() if '"start"' in line]
    assert [json.loads(line)["step"] > 0 for line in starts] == [False, True]
    assert list((run / "trial-01-seed-0" / "tensorboard").glob("events*"))
    assert not list((run / "trial-01-seed-0").glob("checkpoints/*"))  # those of the best trial moved up
    assert list(run.glob("checkpoints/step-*/.metadata"))
    evaluated = json.loads(_run(s3, "evaluate", "--model", str(run), "--data", data, "--split", "test", "--json"))
    assert evaluated["test"]["log_loss"] == pytest.approx(kept["test"]["log_loss"], abs=1e-6)

    package, scores = str(base / "package"), base / "scores"
    _run(s3, "export", "--model", str(run), "--out", package, "--data", data)
    counts = json.loads(_run(s3, "score", "--package", package, "--data", f"{data}/test", "--out", str(scores)))
    assert counts == {"rows": 200, "rejected": 0}
    assert pq.read_table(local_copy(scores / "part-000000.parquet")).num_rows == 200
    for folder in (to_path(data), run, to_path(package)):
        assert "path_handlers: company_paths:register" in read_text(folder / "config.yaml")
    # Nothing was written beside: no file of this machine is named like the bucket.
    assert not list(ROOT.glob("s3:*"))


def test_a_file_system_that_is_not_installed_is_told():
    with pytest.raises(ValueError, match=r"gs://nothing/x: .*gcsfs"):
        read_text(to_path("gs://nothing/x"))
