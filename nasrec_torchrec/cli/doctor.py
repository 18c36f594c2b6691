"""``nasrec doctor``."""

import sys

from nasrec_torchrec import environment
from nasrec_torchrec.cli.program import Program


def doctor() -> None:
    """Prints the versions that are installed, whether torch, TorchRec and FBGEMM belong together, and, where they do
    not, the command that fixes it. The exit code is then 1."""
    sys.exit(environment.main())


PROGRAM = Program(doctor, example="nasrec doctor", needs_torch=False)
