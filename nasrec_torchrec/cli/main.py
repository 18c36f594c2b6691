"""The command ``nasrec``, which finds the program of a job and passes it the rest of the command line."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module

from nasrec_torchrec import __version__
from nasrec_torchrec.cli.program import Program, fail
from nasrec_torchrec.messages import nearest

# Each is a module beside this one, which is imported when the job is chosen.
JOBS = {
    "auto": "find the best model for a prepared data set within a time budget",
    "prepare": "prepare raw click logs: schema, manifest, and Parquet files of each split",
    "supernet": "train a supernet that holds the weights of every architecture of a search space",
    "search": "search a trained supernet for the best architectures",
    "train": "train NASRecNets or baselines from scratch and keep the best",
    "incremental": "train one model day after day, and measure it on each day before it is trained on it",
    "evaluate": "measure a trained model on a split",
    "export": "compile a trained model into a package that scores without this project",
    "patch": "turn a package into a newer one by a file of what changed",
    "score": "score the rows of files with a package",
    "serve": "serve a package over HTTP",
    "status": "show the status of training runs",
    "report": "show a search, with its finalists beside the supernet's predictions, as one page",
    "doctor": "check that torch, TorchRec and FBGEMM match",
    "demo": "run everything end to end on MovieLens-100K",
}


def main(words: Sequence[str] | None = None) -> None:
    """Runs ``nasrec``.

    Args:
        words: words of the command line without the program's name; if unset, those of this process.
    """
    words = sys.argv[1:] if words is None else words
    if words and words[0] == "--version":
        print(f"nasrec {__version__}")
        return
    job = _choose("nasrec", words, JOBS, "Neural architecture search for click-through-rate models, on TorchRec.")
    start(job, f"nasrec {job}", words[1:])


def start(job: str, name: str, words: Sequence[str]) -> None:
    """Runs one job's program.

    Args:
        job: name of the job, one of :data:`JOBS`.
        name: name by which the user calls it, for the help.
        words: words of the command line after the name.
    """
    programs = programs_of(job)
    if "" in programs:
        program = programs[""]
    else:
        summaries = {subcommand: program.summary for subcommand, program in programs.items()}
        chosen = _choose(name, words, summaries, f"{JOBS[job][0].upper()}{JOBS[job][1:]}.")
        program, name, words = programs[chosen], f"{name} {chosen}", words[1:]
    program.main(name, words)


def programs_of(job: str) -> Mapping[str, Program]:
    """Returns the programs of a job by subcommand; a job without subcommands has one under an empty name."""
    module = import_module(f"nasrec_torchrec.cli.{job}")
    programs: Mapping[str, Program] = getattr(module, "PROGRAMS", None) or {"": module.PROGRAM}
    return programs


def _choose(name: str, words: Sequence[str], known: Mapping[str, str], about: str) -> str:
    """Returns the subcommand, which is the first word; prints the list of subcommands if that is asked for."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, known))
        print(f"usage: {name} COMMAND [flags]\n\n{about}\n\nCommands:")
        print("\n".join(f"  {command:<{width}}  {summary}" for command, summary in known.items()))
        print(f"\n`{name} COMMAND --help` shows the flags of a command and an example.")
        sys.exit(0 if words else 2)
    if words[0] not in known:
        fail(f"{words[0]}: no such command{nearest(words[0], known)}; {name} has {', '.join(known)}")
    return words[0]


if __name__ == "__main__":
    main()
