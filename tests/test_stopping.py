"""Signals that ask a process to end."""

import os
import signal

import pytest

from nasrec_torchrec.stopping import StopRequest


def test_a_job_that_is_cancelled_may_be_told_twice():
    before = signal.getsignal(signal.SIGTERM)
    request = StopRequest()
    with request.listening():
        for _ in range(2):  # from the scheduler, and from the launcher that got it too
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM and request.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_second_interrupt_ends_at_once():
    # A job that a shell starts in the background ignores Ctrl-C from the beginning.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request = StopRequest()
    with request.listening():
        os.kill(os.getpid(), signal.SIGINT)
        assert request.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)
