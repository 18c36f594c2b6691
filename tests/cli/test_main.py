import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support import run_program

import nasrec_torchrec
from nasrec_torchrec.cli.main import JOBS, programs_of

COMMANDS = [[job, *filter(None, [subcommand])] for job in JOBS for subcommand in programs_of(job)]
COMMANDS += [[], ["prepare"]]


def test_every_help_takes_less_than_a_second_and_imports_no_torch(tmp_path: Path):
    code = (
        "import json, sys\n"
        "from nasrec_torchrec.cli.main import main\n"
        "try:\n    main([*json.loads(sys.argv[1]), '--help'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules and 'pyarrow' not in sys.modules"
    )
    for words in COMMANDS:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-c", code, json.dumps(words)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0 and done.stdout.startswith("usage: nasrec"), done.stderr
        # Of the processor: the machine may be busy with other tests.
        assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1, words


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_that_its_own_parser_takes(words: list[str]):
    text = run_program("nasrec", *words, "--help").stdout
    assert f"usage: {' '.join(['nasrec', *words])} " in text
    if words and words != ["prepare"]:
        program = programs_of(words[0])[words[1] if len(words) > 1 else ""]
        assert program.example.split()[: len(words) + 1] == ["nasrec", *words]
        assert "See" not in program.summary and all(flag.help for flag in program.flags), program.function


def test_the_version_is_printed_by_the_command_and_by_its_jobs():
    for words in (["--version"], ["train", "--version"]):
        assert nasrec_torchrec.__version__ in run_program("nasrec", *words).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "trian: no such command; did you mean train?"),
        (["prepare", "criteo1t"], "criteo1t: no such command; did you mean criteo1tb?"),
        (["train", "--data", "d", "--out", "o", "--epoch", "3"], "--epoch: no such flag; did you mean --epochs?"),
    ],
)
def test_a_wrong_name_is_answered_with_the_nearest(words: list[str], message: str):
    done = run_program("nasrec", *words)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_doctor_ends_well_where_the_stack_belongs_together():
    done = run_program("nasrec", "doctor")
    assert done.returncode == 0 and "torchrec" in done.stdout
    found = json.loads(run_program("nasrec", "doctor", "--json").stdout)
    assert found["problems"] == [] and found["versions"]["torchrec"]
