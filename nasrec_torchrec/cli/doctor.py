"""``nasrec doctor``."""

import sys
from dataclasses import asdict

from nasrec_torchrec import environment
from nasrec_torchrec.cli.program import Program
from nasrec_torchrec.finite import json_text


def doctor(json: bool = False) -> None:
    """Prints the installed versions and whether torch, TorchRec and FBGEMM match.

    If they do not, it prints the command that fixes it, and the exit code is 1.

    Args:
        json: whether to print one JSON object for programs.
    """
    found = environment.inspect()
    print(json_text(asdict(found)) if json else found)
    sys.exit(1 if found.problems else 0)


PROGRAM = Program(doctor, example="nasrec doctor", needs_torch=False)
