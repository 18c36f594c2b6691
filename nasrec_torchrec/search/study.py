"""Where a search keeps its candidates: an Optuna study, a finished trial for each."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.search.evaluator import Candidate
from nasrec_torchrec.search_space import SearchSpace
from nasrec_torchrec.training.metrics import ClickMetrics

JOURNAL = "study.journal"


class CandidateStudy:
    """The candidates of a search, in an Optuna study that outlives a killed process.

    Every candidate is one finished trial: its value is the validation log loss, its parameters are the choices of each
    block, so that Optuna's dashboard and parameter importances read it as it is.

    Args:
        storage: a journal file, or any URL of a database that Optuna takes (``sqlite:///...``, ``postgresql://...``).
        name: of the study.
        space: the candidates' search space.
        settings: JSON values that all candidates of a study have in common; otherwise their losses do not compare.
        anew: drop what the study holds.

    Raises:
        ValueError: when the storage cannot be opened, or the study holds candidates of other settings.
    """

    def __init__(
        self, storage: str | Path, name: str, space: SearchSpace, settings: dict[str, Any], anew: bool = False
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self.place = _shown(storage)
        backend = _open(storage)
        settings = json.loads(json.dumps(settings | {"space": asdict(space)}))
        if anew and name in optuna.get_all_study_names(backend):
            optuna.delete_study(study_name=name, storage=backend)
        self._study = optuna.create_study(study_name=name, storage=backend, direction="minimize", load_if_exists=True)
        theirs = self._study.user_attrs.get("settings")
        if theirs is None:
            self._study.set_user_attr("settings", settings)
        elif theirs != settings:
            differing = sorted(key for key in settings.keys() | theirs.keys() if settings.get(key) != theirs.get(key))
            raise ValueError(
                f"{self.place}: the study {name!r} holds candidates of another {', '.join(differing)}; "
                "choose another --out or --study, or --resume never to start anew"
            )
        self.candidates = [
            _candidate(trial) for trial in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        ]
        self._known = {candidate.architecture.canonical(): candidate for candidate in self.candidates}

    def remembering(self, evaluate: Callable[[Architecture], Candidate]) -> Callable[[Architecture], Candidate]:
        """An evaluation that takes from the study what it holds, and puts into it what it does not.

        A search whose draws follow from its seed and its candidates' losses alone, repeated with this, comes to where
        it was killed without evaluating anything twice.
        """

        def lookup(architecture: Architecture) -> Candidate:
            known = self._known.get(architecture.canonical())
            if known is None:
                known = evaluate(architecture)
                self.add(known)
            return known

        return lookup

    def add(self, candidate: Candidate) -> None:
        """Records an evaluated candidate; it is in the storage when this returns."""
        parameters, distributions = _parameters(candidate.architecture, self._space)
        self._study.add_trial(
            create_trial(
                value=candidate.metrics.log_loss,
                params=parameters,
                distributions=distributions,
                user_attrs={
                    "architecture": json.loads(candidate.architecture.to_json()),
                    "metrics": asdict(candidate.metrics),
                    "multiply_adds": candidate.multiply_adds,
                    "parameters": candidate.parameters,
                    "seconds": candidate.seconds,
                },
            )
        )
        self.candidates.append(candidate)
        self._known[candidate.architecture.canonical()] = candidate


def _shown(storage: str | Path) -> str:
    """Without the user and the password that a URL may have."""
    scheme, separator, rest = str(storage).partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}"


def _open(storage: str | Path) -> BaseStorage:
    if "://" not in str(storage):
        Path(storage).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(str(storage)))
    try:
        return optuna.storages.get_storage(str(storage))
    except (ImportError, ValueError, SQLAlchemyError) as error:
        raise ValueError(f"storage: {_shown(storage)} cannot be opened: {str(error).splitlines()[0]}") from None


def _candidate(trial: optuna.trial.FrozenTrial) -> Candidate:
    attributes = trial.user_attrs
    return Candidate(
        Architecture.from_json(json.dumps(attributes["architecture"])),
        ClickMetrics(**attributes["metrics"]),
        attributes["multiply_adds"],
        attributes["parameters"],
        attributes["seconds"],
    )


def _parameters(architecture: Architecture, space: SearchSpace) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """The choices of every block, and what each could have been."""
    values: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}

    def choose(name: str, value: Any, choices: tuple[Any, ...]) -> None:
        values[name], distributions[name] = value, CategoricalDistribution(choices)

    for index, block in enumerate(architecture.blocks):
        prefix = f"block{index}"
        sources = tuple(range(index + 1))
        for side, operators, widths in (
            ("dense", space.dense_operators, space.dense_widths),
            ("sparse", space.sparse_operators, space.sparse_widths),
        ):
            (operator,) = getattr(block, f"{side}_operators")  # a search draws one per side
            choose(f"{prefix}.{side}_operator", operator, operators)
            choose(f"{prefix}.{side}_width", getattr(block, f"{side}_width"), widths)
            for source in sources:
                reads = source in getattr(block, f"{side}_inputs")
                choose(f"{prefix}.{side}_reads_{source}", reads, (False, True))
        for operand in ("left", "right"):
            (source,) = getattr(block, f"{operand}_inputs")
            choose(f"{prefix}.{operand}_input", source, sources)
        for merger in ("dense_to_sparse", "sparse_to_dense"):
            choose(f"{prefix}.{merger}", getattr(block, merger), (False, True))
    return values, distributions
