"""Processes that get Ctrl-C while they work."""

import signal


def heed_interrupts() -> None:
    """To be called in a new process: what a shell starts in the background ignores Ctrl-C, and hands that on."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
