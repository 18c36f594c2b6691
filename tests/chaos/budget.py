"""How long chaos lasts, how often it strikes, and the table of what came of it."""

import os
import random
import sys
import time
from dataclasses import dataclass, field

# Given, it repeats a run; printed, so that a failure can be repeated.
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 30))
# SIGKILLs of each program; where they are set, the seconds do not matter.
KILLS = int(os.environ.get("CHAOS_KILLS", "0"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "inf" if KILLS else "180"))
EXAMPLES = int(os.environ.get("CHAOS_EXAMPLES", "300"))
_STARTED = time.monotonic()
_HEAD = "| disturbance | tries | what happened | wrong results, unreadable states, tracebacks |\n|---|---:|---|---:|"


def seconds_left() -> float:
    """Seconds until all of it is to end."""
    return _STARTED + SECONDS - time.monotonic()


@dataclass
class Tally:
    """What one test tried; a test that finds a fault fails, so that a row of the table stands for none.

    Args:
        what: the disturbance.
        tries: how often.
        happened: counts by what they count, such as ``SIGKILLs``.
    """

    what: str
    tries: int = 0
    happened: dict[str, int] = field(default_factory=dict)

    def count(self, happened: str, more: int = 1) -> None:
        self.happened[happened] = self.happened.get(happened, 0) + more

    def show(self, first: bool) -> None:
        """Prints the row, below the head of the table if it is the first."""
        if first:
            print(f"CHAOS_SEED={SEED}", file=sys.stderr)
            print(f"\n{_HEAD}")
        happened = ", ".join(f"{number:,} {name}" for name, number in sorted(self.happened.items()))
        print(f"| {self.what} | {self.tries:,} | {happened} | 0 |", flush=True)
