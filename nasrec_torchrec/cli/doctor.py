"""``nasrec doctor``."""

import sys

from nasrec_torchrec import environment
from nasrec_torchrec.cli.program import Program


def doctor() -> None:
    """Prints the installed versions and whether torch, TorchRec and FBGEMM match.

    If they do not, it prints the command that fixes it, and the exit code is 1.
    """
    sys.exit(environment.main())


PROGRAM = Program(doctor, example="nasrec doctor", needs_torch=False)
