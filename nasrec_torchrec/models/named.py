"""The names of known architectures."""

from nasrec_torchrec.architecture import Architecture
from nasrec_torchrec.messages import nearest
from nasrec_torchrec.models.published import PUBLISHED
from nasrec_torchrec.models.reference import REFERENCE


def architecture_named(
    architecture: Architecture | str, dense_in_features: int, num_tokens: int, embedding_dim: int
) -> Architecture:
    """Returns an architecture, given itself or its name.

    Args:
        architecture: An architecture, or a name in ``PUBLISHED`` or ``REFERENCE``.
        dense_in_features: Number of dense features.
        num_tokens: Number of sparse features.
        embedding_dim: Width E of a token.

    Returns:
        The architecture. Those of ``REFERENCE`` are made for these sizes.

    Raises:
        TypeError: If it is neither an architecture nor text.
        ValueError: If no architecture has this name.
    """
    if isinstance(architecture, Architecture):
        return architecture
    if not isinstance(architecture, str):
        raise TypeError(
            f"architecture: expected an Architecture or a name, found a {type(architecture).__name__}; "
            "Architecture.from_json(text) reads a document"
        )
    if architecture in PUBLISHED:
        return PUBLISHED[architecture]
    if architecture in REFERENCE:
        return REFERENCE[architecture](dense_in_features, num_tokens, embedding_dim)
    if architecture.lstrip().startswith("{") or architecture.endswith(".json"):
        raise ValueError(
            f"architecture: expected an Architecture or a name, found {architecture[:40]!r}; for a document or a file, "
            "pass Architecture.from_json(text)"
        )
    names = [*PUBLISHED, *REFERENCE]
    hint = nearest(architecture, names, "'{}'")
    raise ValueError(f"architecture: expected one of {', '.join(names)}, found {architecture!r}{hint}")
