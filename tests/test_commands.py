"""The commands of the pages: each is run here as it is written, or by a test that is named here, or says what it needs.

What they work on is small, and so are the sizes that are added to them. Programs run in this process, as one rank;
:mod:`tests.apps.test_apps` launches some of them through torchx on two.
"""

import gzip
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import component_program, make_movielens, run_program

ROOT = Path(__file__).resolve().parents[1]
PAGES = [file.relative_to(ROOT) for file in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = re.compile(
    r"(\$ )?(nasrec |python -|python [a-z]|torchx |torchrun |make |pip |cmake |build/|docker |curl |nox -|buck2 )"
)

# What runs the commands that begin, or go on, like this.
ELSEWHERE = {
    r"make test": ".ci/run: make test",
    r"make demo": "tests/apps/test_demo.py: def test_the_demo_gives_three_races_the_same_budget",
    r"python benchmarks/quality\.py": "tests/benchmarks/test_quick.py: def test_quality",
    r"python benchmarks/auto_parts\.py": "tests/benchmarks/test_quick.py: def test_auto_parts",
    r"python benchmarks/throughput\.py": "tests/benchmarks/test_quick.py: def test_throughput",
    r"python benchmarks/scale\.py": "tests/benchmarks/test_quick.py: def test_scale",
    r"(git clone https://github\.com/facebookresearch/NasRec|python benchmarks/research_code\.py)": "tests/benchmarks/"
    "test_quick.py: def test_research_code",
    r"python benchmarks/generation_cost\.py": "tests/benchmarks/test_quick.py: def test_generation_cost",
    r"python benchmarks/kernels\.py": "tests/benchmarks/test_quick.py: def test_kernels",
    r"python benchmarks/record\.py": "tests/test_figures.py: def test_a_benchmark_writes_its_figure",
    r"python examples/incremental\.py": "tests/examples/test_incremental_days.py: def test_a_model_that_saw_all_days",
    r"python docs/figures\.py": "tests/test_figures.py: def test_pages_show_what_the_benchmarks_wrote",
    r"(cmake|build/score|python examples/cpp)": "tests/inference/test_cpp.py: def test_the_example_reproduces",
    r"nasrec patch": "tests/inference/test_delta.py: def test_a_delta_is_small_and_leads_to_the_very_package",
    r"(curl|nasrec serve)": "tests/inference/test_server.py: def test_it_speaks_the_open_inference_protocol",
    r".*postgresql\+psycopg:": "tests/search/test_study.py: def test_two_workers_killed_again_and_again",
    r".*s3://clicks/": "tests/runs/test_paths.py: def test_every_file_of_all_jobs_lies_in_a_bucket",
    r"torchx (run|list) -s slurm|.*slurm://": "tests/components/test_slurm.py: def test_a_cancelled_job",
}
# Added to the commands of these programs, so that they take seconds.
SIZES = {
    "auto": "--trials 3 --epochs 1 --final_seeds 1 --quiet true",
    "prepare": "--overwrite true",
    "supernet": "--epochs 1 --batch_size 40 --full_path_steps 2 --num_blocks 1 --dense_widths [16,32]"
    " --sparse_widths [4,8]",
    "search": "--population 4 --generations 2 --children 2 --tournament 2 --top_k 2 --finetune_steps 3"
    " --finetune_batch_size 20 --resume never",
    "train": "--epochs 1 --batch_size 40",
    "score": "--overwrite true",
    "benchmarks/candidate_evaluation.py": "--architectures 2 --finetune_steps 3 --finetune_batch_size 20",
    "benchmarks/rank_correlation.py": "--architectures 3 --epochs 1 --batch_size 40 --seeds [0,1] --supernet_epochs 1"
    " --supernets [single_operator_any_connection] --supernet_seeds [0] --finetune_steps 3",
}
# Where the pages name a reader's own files.
PLACES = {
    "s3://bucket/": "days/",
    "raw/train.txt": "train.txt",
    "FOLDER": "frappe",
    "runs/demo/supernet": "runs/supernet",
    "runs/demo/data": "DATA",
    "runs/criteo": "runs/supernet",
    "data/criteo_shaped": "DATA",
}
SCHEMA = """
label: clicked
dense: [{name: price, transform: log1p}]
sparse:
  - {name: shop, ids: dictionary}
  - {name: tags, ids: hash, num_embeddings: 100, multi_hot: true}
"""


def _blocks(page: Path) -> list[tuple[str, str]]:
    """Kind and text of the fenced blocks."""
    return BLOCK.findall((ROOT / page).read_text().replace("\\\n", ""))


def _commands(page: Path) -> list[tuple[str, str]]:
    """Commands that do not say that they need something, and what the page shows as their output."""
    found = []
    for kind, text in _blocks(page):
        if text.startswith("# needs "):
            continue
        if kind == "shell":
            found += [(line, "") for line in text.splitlines() if not line.strip().startswith("#")]
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((command, output))
    return found


def _elsewhere(command: str) -> str | None:
    return next((where for pattern, where in ELSEWHERE.items() if re.match(pattern, command)), None)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_blocks_of_commands_are_marked_as_such(page: Path):
    for kind, text in _blocks(page):
        if kind in ("", "console"):
            for line in text.splitlines():
                assert not PROGRAMS.match(line) or line.startswith("$ "), f"{page}: {line}"


def test_what_is_run_elsewhere_is_there():
    commands = [command for page in PAGES for command, _ in _commands(page)]
    for pattern, where in ELSEWHERE.items():
        file, _, text = where.partition(": ")
        assert text in (ROOT / file).read_text(), where
        assert any(re.match(pattern, command) for command in commands), f"no page has {pattern}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's files."""
    folder = tmp_path_factory.mktemp("files")
    lines = [f"{n % 2}\t" + "\t".join(["1"] * 13 + [f"{(n * k) % 50:08x}" for k in range(1, 27)]) for n in range(200)]
    (folder / "train.txt").write_text("\n".join(lines) + "\n")
    for name in ("days", "logs"):
        (folder / name).mkdir()
        for day in range(2):
            rows = [f"r{day}-{n},{n % 2},{n}.5,shop {n % 7},{'|'.join('abc'[: n % 4])}" for n in range(300)]
            text = "\n".join(["request_id,clicked,price,shop,tags", *rows]) + "\n"
            (folder / name / f"day_{day}.csv.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "schema.yaml").write_text(SCHEMA)
    fields = ["user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather", "country", "city"]
    (folder / "frappe").mkdir()
    for name, count in {"train": 200, "valid": 60, "test": 60}.items():
        rows = [",".join([str(n % 2), *(f"{field}{n % 9}" for field in fields)]) for n in range(count)]
        (folder / "frappe" / f"{name}.csv").write_text("\n".join([",".join(["label", *fields]), *rows]) + "\n")
    _write_flights(folder / "flights.csv")
    make_movielens(folder / "movielens")
    (folder / "docs").symlink_to(ROOT / "docs")
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")
    return folder


def _write_flights(file: Path) -> None:
    """A few rows like those of the tutorial: the label is a number that some rows lack, and the latest come last."""
    names = "month day sched_dep_time sched_arr_time arr_delay carrier flight tailnum origin dest distance hour minute"
    lines = [",".join([*names.split(), "time_hour"])]
    for n in range(3000):
        month, day, hour = 1 + n // 270, 1 + n % 28, 5 + n % 17
        delay = "" if n % 37 == 0 else f"{(n * 7) % 60 - 20 + 3 * (hour > 15)}.0"
        carrier, origin, dest = ("UA", "B6", "EV")[n % 3], ("EWR", "JFK", "LGA")[n % 3], ("IAH", "ORD")[n % 2]
        when = f"2013-{month:02d}-{day:02d}T{hour:02d}:00:00Z"
        flight = f"{carrier},{n % 400},N{n % 90},{origin},{dest},{200 + n % 50}"
        lines.append(f"{month},{day},{hour}15,{hour + 2}30,{delay},{flight},{hour},15,{when}")
    file.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def readme(files: Path) -> Path:
    """The same, and what README's commands make of them."""
    with pytest.MonkeyPatch.context() as patch:
        _follow(Path("README.md"), files, patch)
    shutil.copytree(files / "DATA", files / "data" / "frappe")
    return files


@pytest.mark.extended
@pytest.mark.parametrize("page", [page for page in PAGES if _commands(page)], ids=str)
def test_commands_run_as_they_are_written(page: Path, readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if page.name != "README.md":
        shutil.copytree(readme, tmp_path / "reader", symlinks=True)
        if page.name == "launch.md":  # which makes these itself
            shutil.rmtree(tmp_path / "reader" / "runs")
        _follow(page, tmp_path / "reader", monkeypatch)


def _follow(page: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Does what a page says, in a reader's folder."""
    patch.chdir(folder)
    before: list[str] = []
    for command, output in _commands(page):
        if _elsewhere(command):
            continue
        for place, ours in PLACES.items():
            command = command.replace(place, ours)
        words = shlex.split(command, comments=True)
        if "..." in words:
            # The flags of the command before that begins like this one.
            dots = words.index("...")
            assert before[:dots] == words[:dots], f"{page}: {command}: nothing before it begins like this"
            words[dots : dots + 1] = before[dots:]
        if words[0] != "cat":
            before = words
        _run(f"{page}: {command}", words, output, patch)


def _run(where: str, words: list[str], output: str, patch: pytest.MonkeyPatch) -> None:
    if words[0].startswith("PYTHONPATH="):
        patch.syspath_prepend(str(Path(words.pop(0).partition("=")[2]).resolve()))
    if words[0] == "cat":
        file = Path(words[1])
        if len(file.parts) > 1:  # made by a program
            assert file.read_text() == output, where
        else:  # the reader's
            file.write_text(output.rstrip("\n") + "\n")
        return
    if words[:2] == ["python", "-c"]:
        printed = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=True).stdout
        assert printed.endswith(output.partition("...\n")[2]), f"{where}\n{printed}"
        return
    if words[:4] == ["torchx", "run", "-s", "local_cwd"]:
        words = ["python", *component_program(words[4].removeprefix("nasrec."), words[5:])]
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[:3] == ["python", "-m", "nasrec_torchrec"]:
        words = ["nasrec", *words[3:]]
    ours = words[0] == "nasrec" or words[0] == "python"
    assert ours, f"{where}: not run here, nor by a test that is named here, nor says what it needs"
    program = words[2] if words[1] == "-m" else words[1]
    sizes = shlex.split(SIZES.get(program, "")) if "describe" not in words else []
    sizes += ["--source", "movielens"] if "movielens100k" in words else []
    done = run_program(*(words if words[0] == "nasrec" else words[1:]), *sizes)
    expected = re.search(r"^error: .*", output, re.MULTILINE | re.DOTALL)
    assert done.returncode == (2 if expected else 0), f"{where}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    if expected:
        assert " ".join(expected[0].split()) in " ".join(done.stderr.split()), where
