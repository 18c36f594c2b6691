"""What is known of a race when the next thing to do is decided."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from nasrec_torchrec.search.race.chance import Judgement, accepted_sets, judgements
from nasrec_torchrec.search.race.choice import regularized
from nasrec_torchrec.search.race.trial import Entry, Trial


@dataclass(frozen=True)
class Situation:
    """What a decision depends on.

    Args:
        entries: all trials in the order of their proposal.
        spent: share of the budget that is gone, 0 to 1.
        busy: numbers of the trials that other workers train at the moment.
        seconds_left: seconds until the trainings must end; unset if trials are counted instead.
        features: names of the added features, for each time that they were ranked the most promising first.
        crosses: those among them that are crosses by dictionary.
        combinations: number of combinations of columns among which they were chosen.
        buckets: names of the buckets of dense features, which are tried together before all other added features.
        droppable: sets of columns that models may do without, in the order in which they are tried.
    """

    entries: Sequence[Entry]
    spent: float
    busy: Collection[int] = ()
    seconds_left: float | None = None
    features: Sequence[Sequence[str]] = ()
    crosses: Collection[str] = ()
    combinations: int = 0
    buckets: Sequence[str] = ()
    droppable: Sequence[Sequence[str]] = ()

    @cached_property
    def judgements(self) -> list[Judgement]:
        """The verdicts on the added features that were tried."""
        return judgements(self.entries, self.combinations)

    @property
    def histories(self) -> list[list[str]]:
        """Those of the features that are no crosses, for each ranking."""
        return [[name for name in found if name not in self.crosses] for found in self.features]

    @property
    def lacks_histories(self) -> bool:
        """Whether no trial has all histories of the first ranking yet."""
        first = set(self.histories[0]) if self.features else set()
        return bool(first) and not any(first <= set(entry.trial.features) for entry in self.entries)

    @property
    def history_helps(self) -> bool:
        """Whether a set with more than buckets is better than chance explains."""
        return any(one.verdict == "accepted" and set(one.features) - set(self.buckets) for one in self.judgements)

    @cached_property
    def eligible(self) -> list[Entry]:
        """The measured trials that may win, the best first: added features have to be better than chance explains."""
        accepted = accepted_sets(self.judgements)
        found = [entry for entry in self.entries if entry.measured and frozenset(entry.trial.features) in accepted]
        return sorted(found, key=lambda entry: entry.loss)

    @cached_property
    def leader(self) -> Trial:
        """What later trials start from: the best that may win, or a better regularized one that is about as good."""
        return regularized(self.eligible[0], self.eligible).trial
