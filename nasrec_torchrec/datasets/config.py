"""Settings of data preparation, which can be imported without PyTorch and PyArrow."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

SplitRule = Literal["stratified", "time", "column", "given"]


@dataclass(frozen=True)
class TextFormat:
    """How lines become columns. One line is one row. Of this, files with typed columns need ``missing`` alone.

    Args:
        delimiter: single character between two columns; ``\\t`` is a tab.
        columns: names of the columns. If left out, the first line of each file holds them.
        quoting: whether values may be enclosed in double quotes, with a quote inside written twice.
        missing: texts that stand for a missing value.
    """

    delimiter: str = ","
    columns: tuple[str, ...] = ()
    quoting: bool = True
    missing: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        for name in ("columns", "missing"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(entry, str) for entry in value):
                raise ValueError(f"{name}: expected a list of texts, found {value!r}")
            object.__setattr__(self, name, tuple(value))
        if not isinstance(self.delimiter, str):
            raise ValueError(f"delimiter: expected one character, found {self.delimiter!r}")
        object.__setattr__(self, "delimiter", self.delimiter.replace("\\t", "\t"))
        if len(self.delimiter.encode()) != 1 or self.delimiter in '"\r\n':
            raise ValueError(f"delimiter: expected one character, found {self.delimiter!r}")
        if not isinstance(self.quoting, bool):
            raise ValueError(f"quoting: expected true or false, found {self.quoting!r}")
        repeated = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if repeated:
            raise ValueError(f"columns: named more than once: {repeated}")


@dataclass(frozen=True)
class TextFlags:
    """How text files are read, where that differs from what the schema says.

    Args:
        columns: names of the columns of files without a header.

    The other arguments are those of :class:`~nasrec_torchrec.datasets.config.TextFormat`.
    """

    delimiter: str | None = None
    columns: tuple[str, ...] | None = None
    quoting: bool | None = None
    missing: tuple[str, ...] | None = None

    def over(self, base: TextFormat) -> TextFormat:
        """Returns the text format of a schema, overridden by the flags that are set."""
        return TextFormat(
            base.delimiter if self.delimiter is None else self.delimiter,
            base.columns if self.columns is None else tuple(self.columns),
            base.quoting if self.quoting is None else self.quoting,
            base.missing if self.missing is None else tuple(self.missing),
        )


@dataclass(frozen=True)
class SplitConfig:
    """How rows are divided into train, validation and test.

    Args:
        split: rule by which rows are divided. ``stratified`` divides 8/1/1 with the same share of clicks in each part,
            like folds 0-7, 8 and 9 of scikit-learn's ``StratifiedKFold(10, shuffle=True, random_state=split_seed)``.
            ``time`` puts the earliest rows into train and the latest into test. ``column`` reads the name of the split
            from a column. ``given`` assigns each source file to the split that its name begins with.
        split_column: column that ``time`` or ``column`` reads. For ``time`` it holds numbers, dates, timestamps, or
            text in ISO 8601; without it, the rows must be in chronological order. For ``column`` it holds train,
            validation or test.
        split_seed: seed of ``stratified``.
        validation_share: fraction of the rows that ``time`` puts into validation.
        test_share: fraction of the rows that ``time`` puts into test.
        keep_negatives: share of the training rows without a click that are kept, drawn at random by ``split_seed``. The
            model learns the click rate of all rows all the same, see
            :attr:`~nasrec_torchrec.datasets.reader.ClickFiles.log_odds_added`.
    """

    split: SplitRule = "stratified"
    split_column: str | None = None
    split_seed: int = 2018
    validation_share: float = 0.1
    test_share: float = 0.1
    keep_negatives: float = 1.0

    def __post_init__(self) -> None:
        if self.split not in get_args(SplitRule):
            raise ValueError(f"split: expected one of {list(get_args(SplitRule))}, found {self.split!r}")
        if self.split == "column" and self.split_column is None:
            raise ValueError("split_column: the split 'column' needs it")
        if self.split_column is not None and self.split not in ("time", "column"):
            raise ValueError(f"split_column: only the splits 'time' and 'column' read it; the split is {self.split!r}")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected 0 or more and less than 1, found {getattr(self, name)}")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share: nothing is left for train")
        if not 0 < self.keep_negatives <= 1:
            raise ValueError(f"keep_negatives: expected more than 0 and at most 1, found {self.keep_negatives}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON values; what is not used looks the same as in older versions."""
        document = asdict(self)
        if self.keep_negatives == 1:
            del document["keep_negatives"]
        return document


@dataclass(frozen=True)
class SplitFlags:
    """How rows are divided, where that differs from what the schema says.

    Args:
        split: rule by which rows are divided. If neither this nor the schema names one, ``stratified`` divides 8/1/1
            with the same share of clicks in each part, like folds 0-7, 8 and 9 of scikit-learn's
            ``StratifiedKFold(10, shuffle=True, random_state=split_seed)``. ``time`` puts the earliest rows into train
            and the latest into test. ``column`` reads the name of the split from a column. ``given`` assigns each
            source file to the split that its name begins with.
        validation_share: fraction of the rows that ``time`` puts into validation, 0.1 unless the schema says otherwise.
        test_share: fraction of the rows that ``time`` puts into test, 0.1 unless the schema says otherwise.
        keep_negatives: share of the training rows without a click that are kept, such as 0.1 where clicks are rare,
            which makes training cheaper. They are drawn at random. Predicted probabilities stay those of all rows,
            since training takes the share into account. Validation and test keep all rows.

    The other arguments are those of :class:`~nasrec_torchrec.datasets.config.SplitConfig`.
    """

    split: SplitRule | None = None
    split_column: str | None = None
    split_seed: int | None = None
    validation_share: float | None = None
    test_share: float | None = None
    keep_negatives: float | None = None

    def over(self, base: SplitConfig | None) -> SplitConfig:
        """Returns the split rule of a schema, overridden by the flags that are set.

        Raises:
            ValueError: If the result is no valid rule.
        """
        base = base or SplitConfig()
        if self.split not in (None, base.split):
            base = replace(base, split="stratified", split_column=None)
        return replace(base, **{name: value for name, value in asdict(self).items() if value is not None})


@dataclass(frozen=True)
class PreparationConfig:
    """How the work is done. Of these settings, only ``piece_mib`` affects the bytes of the result.

    Args:
        max_rejects: largest fraction of rows that may be rejected.
        piece_mib: size in MiB of the pieces of raw text that are read and finished one at a time.
        threads: number of pieces that are processed at the same time; 0 means one for each core.
        overwrite: whether to replace another data set in the same place.
    """

    max_rejects: float = 0.01
    piece_mib: int = 32
    threads: int = 0
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.max_rejects <= 1:
            raise ValueError(f"max_rejects: expected a share in 0..1, found {self.max_rejects}")
        if not 1 <= self.piece_mib <= 512:
            raise ValueError(f"piece_mib: expected 1..512, found {self.piece_mib}")
        if self.threads < 0:
            raise ValueError(f"threads: expected 0 or more, found {self.threads}")
