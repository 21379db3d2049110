"""Code that does not end is stopped, in any thread, and code that ends in time is left alone."""

import threading
import time

import pytest

from layerlens.limits import TookTooLongError, within


def endless():
    while True:
        pass


def test_what_does_not_end_is_stopped():
    began = time.perf_counter()
    with pytest.raises(TookTooLongError), within(0.2):
        endless()
    assert 0.15 < time.perf_counter() - began < 5


def test_what_ends_in_time_is_left_alone():
    for _ in range(200):
        with within(0.05):
            sum(range(100))
    with within(0.1):
        pass
    time.sleep(0.3)  # the time passes outside, where nothing is stopped
    assert threading.active_count() < 100


def test_other_threads_go_on():
    caught, counted = [], [0]

    def work():
        try:
            with within(0.2):
                endless()
        except TookTooLongError as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        counted[0] += 1
        time.sleep(0.01)
    assert len(caught) == 1
    assert counted[0] > 5
