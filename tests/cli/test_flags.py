import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest
from support import run_program

from nasrec_torchrec.cli import Program
from nasrec_torchrec.cli.flags import flags_of
from nasrec_torchrec.cli.main import JOBS, programs_of
from nasrec_torchrec.search_space import NASREC_2026, SPACES, SearchSpace

SEEN: dict[str, object] = {}


@dataclass(frozen=True)
class Recipe:
    """How something is cooked. More about it.

    Args:
        minutes: how long.
        method: ``boil`` it or ``fry`` it.
        salted: with salt.
        weights: of the parts.
    """

    minutes: int = 10
    method: Literal["boil", "fry"] = "boil"
    salted: bool = False
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.minutes < 1:
            raise ValueError(f"minutes: expected 1 or more, found {self.minutes}")


def cook(
    out: Path,
    recipe: Recipe,
    names: tuple[str, ...] = (),
    limit: int | None = None,
    sides: Sequence[Path | str] = (),
) -> str:
    """Cooks.

    Args:
        out: where it goes.
        names: of the dishes.
        limit: at most so many.
        sides: of other folders.
    """
    SEEN.update(out=out, recipe=recipe, names=names, limit=limit, sides=sides)
    return "done"


def stop(out: Path) -> None:
    """Is interrupted."""
    raise KeyboardInterrupt


PROGRAM = Program(cook, "cook --out pot", {"Taste": ("salted",)}, show=str, needs_torch=False)


def _cook(capsys: pytest.CaptureFixture[str], *words: str, program: Program = PROGRAM) -> tuple[int, str, str]:
    SEEN.clear()
    code = 0
    try:
        program.main("cook", words)
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_help_has_groups_plain_types_defaults_and_an_example(capsys):
    code, text, _ = _cook(capsys, "--help")
    assert code == 0
    groups = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert groups == [
        "options:",
        "Input and output:",
        "How something is cooked:",
        "Taste:",
        "Every program:",
        "Example:",
    ]
    assert "--out PATH" in text and "where it goes. (required)" in text
    assert "--minutes INTEGER" in text and "(default: 10)" in text and "--method boil|fry" in text
    assert "boil it or fry it. (default: boil)" in text and "--weights NUMBER,..." in text
    assert "  cook --out pot" in text and "class" not in text and "Literal" not in text


def test_help_leaves_out_what_another_job_uses_but_a_file_of_settings_may_hold_it(capsys, tmp_path: Path):
    program = Program(cook, "cook --out pot", show=str, needs_torch=False, unlisted=("minutes",))
    text = _cook(capsys, "--help", program=program)[1]
    assert "--method" in text and "--minutes" not in text
    (tmp_path / "settings.yaml").write_text("minutes: 3\n")
    assert _cook(capsys, "--out", "pot", "--config", str(tmp_path / "settings.yaml"), program=program)[0] == 0
    assert SEEN["recipe"].minutes == 3


@pytest.mark.parametrize("written", ["a,b/c", '["a", "b/c"]'])
def test_a_sequence_of_folders_is_a_list_too(capsys, written: str):
    assert _cook(capsys, "--out", "pot", "--sides", written)[:2] == (0, "done\n")
    assert [str(side) for side in SEEN["sides"]] == ["a", "b/c"]
    assert _cook(capsys, "--out", "pot", "--sides", "a")[0] == 0 and [str(side) for side in SEEN["sides"]] == ["a"]


@pytest.mark.parametrize("written", ["1,2.5", "[1, 2.5]", "1, 2.5"])
def test_lists_are_written_with_commas_or_as_json(capsys, written: str):
    assert _cook(capsys, "--out", "pot", "--weights", written, "--names=a,b")[:2] == (0, "done\n")
    assert SEEN["recipe"] == Recipe(weights=(1.0, 2.5)) and SEEN["names"] == ("a", "b") and SEEN["limit"] is None


def test_hyphens_bare_booleans_and_null(capsys):
    assert _cook(capsys, "--salted", "--out", "pot", "--limit", "null")[0] == 0
    assert SEEN["recipe"] == Recipe(salted=True) and SEEN["out"] == Path("pot")
    assert _cook(capsys, "--salted", "false", "--out=memory://bucket/pot", "--limit=3")[0] == 0
    assert SEEN["recipe"] == Recipe() and SEEN["limit"] == 3 and str(SEEN["out"]) == "memory://bucket/pot"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "pot", "--minute", "3"], "--minute: no such flag; did you mean --minutes?"),
        (["--out", "pot", "--minutes", "x"], "--minutes: expected an integer, found 'x'"),
        (["--out", "pot", "--method", "fri"], "--method: expected one of boil, fry, found 'fri'; did you mean fry?"),
        (["--out", "pot", "--weights", "1,x"], "--weights: expected a list such as a,b or [a, b], each a number"),
        (["--out", "pot", "--minutes", "0"], "minutes: expected 1 or more, found 0"),
        (["--out", "pot", "--plugins", "no_such_module"], "plugins: the module 'no_such_module' cannot be imported"),
        (["--out", "pot", "--config", "CONFIG"], "there is no flag minute; did you mean minutes?"),
        (["--minutes", "3"], "required: out"),
        (["--out", "pot", "stray"], "unrecognized arguments: stray"),
    ],
)
def test_wrong_input_is_one_line_that_teaches(capsys, tmp_path: Path, words: list[str], message: str):
    config = tmp_path / "config.yaml"
    config.write_text("minute: 3\n")
    code, out, err = _cook(capsys, *(str(config) if word == "CONFIG" else word for word in words))
    assert code == 2 and not out and not SEEN
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err


def test_flags_come_from_a_file_too_and_the_command_line_wins(capsys, tmp_path: Path):
    (tmp_path / "config.yaml").write_text("out: pot\nminutes: 3\nweights: [1, 2]\nmethod: fry\n")
    assert _cook(capsys, "--config", str(tmp_path / "config.yaml"), "--minutes", "4")[0] == 0
    assert SEEN["recipe"] == Recipe(4, "fry", weights=(1.0, 2.0))


def test_an_interruption_says_how_to_resume(capsys):
    program = Program(stop, resume="run the same command again to resume", needs_torch=False)
    code, _, err = _cook(capsys, "--out", "pot", program=program)
    assert code == 130 and err == "\ninterrupted; run the same command again to resume\n"


def test_a_script_becomes_a_program(tmp_path: Path):
    script = tmp_path / "double.py"
    script.write_text(
        "from nasrec_torchrec.cli import run\ndef main(number: int = 1) -> None:\n    print(2 * number)\nrun(main)\n"
    )
    assert run_program(script, "--number", "21").stdout == "42\n"


def name_space(out: Path, space: SearchSpace, names: tuple[str, ...] = ()) -> None:
    """Takes a search space."""
    SEEN.update(space=space)


def test_a_named_space_gives_flags_their_defaults_wherever_it_is_named(capsys, tmp_path: Path):
    program = Program(name_space, needs_torch=False, spaces=SPACES)
    file = tmp_path / "space.yaml"
    file.write_text("space: nasrec-2026\nmax_inputs: 2\n")
    for words, expected in (
        ((), SearchSpace()),
        (("--space", "nasrec-2026"), NASREC_2026),
        (("--num_blocks", "3", "--space", "nasrec-2026"), replace(NASREC_2026, num_blocks=3)),
        (("--config", str(file), "--dense_widths", "16,32"), replace(NASREC_2026, max_inputs=2, dense_widths=(16, 32))),
    ):
        assert _cook(capsys, "--out", "pot", *words, program=program)[0] == 0
        assert SEEN["space"] == expected
    code, _, error = _cook(capsys, "--out", "pot", "--space", "nasrec-206", program=program)
    assert code == 2 and "--space: expected one of nasrec-full, " in error and "did you mean nasrec-2026?" in error


def bake(out: Path, names: tuple[str, ...] = (), degrees: int = 180) -> str:
    """Bakes.

    Args:
        degrees: temperature of the oven.

    The other
    arguments are those of :func:`~cli_functions.cook`.
    """
    return "done"


def test_a_docstring_may_leave_arguments_to_another_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "cli_functions", sys.modules[cook.__module__])
    helps = {flag.name: flag.help for flag in flags_of(bake)}
    assert helps == {"out": "where it goes.", "names": "of the dishes.", "degrees": "temperature of the oven."}


@pytest.mark.parametrize("job", JOBS)
def test_every_flag_of_every_job_is_described(job: str):
    for name, program in programs_of(job).items():
        missing = [flag.name for flag in program.flags if not flag.help]
        assert not missing, f"nasrec {job} {name}"
