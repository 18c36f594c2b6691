"""What went wrong in a race: with its data, and with its trainings, each kind once."""

from collections.abc import Mapping, Sequence


def race_warnings(
    data: Sequence[str], trainings: Sequence[tuple[str, Mapping[str, str]]], winner: Mapping[str, str] | None = None
) -> list[str]:
    """Returns a sentence for each thing that went wrong.

    Args:
        data: warnings about the data.
        trainings: title and warnings by kind of every trial.
        winner: warnings of the winner, if there is one.

    Returns:
        The warnings about the data, then those of trainings, with the message of the winner or of the latest one.
    """
    found = list(dict.fromkeys(data))
    latest = {kind: (title, message) for title, warnings in trainings for kind, message in warnings.items()}
    for kind, (title, message) in latest.items():
        among = sum(kind in warnings for _, warnings in trainings)
        if message in found:  # said of the data already
            continue
        whose = f"such as {title}" if winner is None else f"not the winner's, but such as {title}"
        if winner is not None and kind in winner:
            whose, message = "the winner's among them", winner[kind]
        found.append(f"{among} of {len(trainings)} trainings ({whose}): {message}")
    return found
