"""Why work ends early: SIGTERM, which is sent before a machine is taken away, Ctrl-C, and ranks that are gone."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class LostRankError(RuntimeError):
    """Another rank ended while this one waited for it."""


class StopRequest:
    """Remembers a signal that asks the process to end, so that it ends where its work is whole."""

    def __init__(self) -> None:
        self.signal = 0
        """The number of the signal, or 0 while there was none."""

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a program that this signal ended."""
        return 128 + self.signal

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Takes SIGTERM or Ctrl-C as a request to end.

        A second SIGTERM says nothing new: a scheduler sends it to every process of a job, and a launcher that gets it
        forwards it to its ranks. A second Ctrl-C acts as it did before. Only the main thread may listen; in any other
        thread this does nothing.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.getsignal(number) for number in _SIGNALS}

        def ask(number: int, _: FrameType | None) -> None:
            self.signal = number
            if number == signal.SIGINT:
                signal.signal(number, previous[signal.SIGINT])

        for number in _SIGNALS:
            signal.signal(number, ask)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
