"""Which rows every step of an epoch takes, in numbers alone.

The rows of an epoch are one line, which is cut into equal streams; a global batch takes equally many rows from each
stream. What is left of the line is a list of intervals, however many ranks there were.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Interval = tuple[int, int]  # rows first..last-1 of an epoch's line
_MIN_STREAMS = 8


@dataclass(frozen=True)
class Stage:
    """A part of an epoch that was read with one batch size and one number of streams.

    Args:
        rows: intervals of the line that were left when the part began.
        batch_size: number of rows in a global batch.
        streams: number of streams.
        steps: number of steps that were taken so far.
    """

    rows: tuple[Interval, ...]
    batch_size: int
    streams: int
    steps: int = 0

    @property
    def stream_length(self) -> int:
        return _count(self.rows) // self.streams

    @property
    def total_steps(self) -> int:
        return self.stream_length // (self.batch_size // self.streams)

    def step(self, stream: int, step: int) -> list[Interval]:
        """Returns the rows of a stream that a step takes.

        Every second stream runs backwards, so that two neighboring streams reach their common row group at the same
        time, and a rank that serves both reads it once.
        """
        share = self.batch_size // self.streams
        start, end = stream * self.stream_length, (stream + 1) * self.stream_length
        if stream % 2:
            return _slice(self.rows, end - (step + 1) * share, end - step * share)
        return _slice(self.rows, start + step * share, start + (step + 1) * share)

    def left(self) -> tuple[Interval, ...]:
        """Returns the intervals that no step has taken, including those that no step would take."""
        taken = self.steps * (self.batch_size // self.streams)
        left: list[Interval] = []
        for stream in range(self.streams):
            start, end = stream * self.stream_length, (stream + 1) * self.stream_length
            left += _slice(self.rows, start + (0 if stream % 2 else taken), end - (taken if stream % 2 else 0))
        left += _slice(self.rows, self.streams * self.stream_length, _count(self.rows))
        return tuple(_merged(left))


def number_of_streams(batch_size: int, world_size: int) -> int:
    """Returns the smallest multiple of the number of ranks, 8 or more if possible, that divides the batch size."""
    divisors = [n for n in range(world_size, batch_size + 1, world_size) if batch_size % n == 0]
    return next((n for n in divisors if n >= _MIN_STREAMS), divisors[-1])


def _count(intervals: Sequence[Interval]) -> int:
    return sum(last - first for first, last in intervals)


def _slice(intervals: Sequence[Interval], start: int, stop: int) -> list[Interval]:
    """Returns rows ``start`` to ``stop - 1`` of intervals laid end to end."""
    result: list[Interval] = []
    for first, last in intervals:
        length = last - first
        if start < length and stop > 0:
            result.append((first + max(start, 0), first + min(stop, length)))
        start, stop = start - length, stop - length
    return result


def _merged(intervals: Sequence[Interval]) -> list[Interval]:
    """Returns the same rows in ascending order, with as few intervals as possible."""
    result: list[Interval] = []
    for first, last in sorted(interval for interval in intervals if interval[0] < interval[1]):
        if result and result[-1][1] == first:
            result[-1] = result[-1][0], last
        else:
            result.append((first, last))
    return result
