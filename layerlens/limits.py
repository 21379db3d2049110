"""A limit on the time that somebody else's code may take."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Timer, get_ident


class TookTooLongError(Exception):
    """Code that was given so many seconds did not end."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """TookTooLongError inside where what runs there takes longer. Only what is Python's own can be stopped, such as a
    chat template, which jinja makes into Python; a call into a library written in C ends first."""
    thread, lock, is_over = get_ident(), Lock(), False

    def stop() -> None:
        with lock:
            if not is_over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TookTooLongError))

    timer = Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            is_over = True
        timer.cancel()
