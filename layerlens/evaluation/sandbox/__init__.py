"""Runs code that a model wrote, where it can do no harm.

Each program is a process of its own. Its time, memory, processor time and output are limited, and the kernel lets it
neither write a file, nor read one outside of Python's own, nor open a socket, nor start a process, nor send a signal.
That needs Linux with Landlock and seccomp; elsewhere nothing is run.
"""

from layerlens.evaluation.sandbox.parent import Limits, Outcome, refuse_unsafe, run_function, run_program

__all__ = ["Limits", "Outcome", "refuse_unsafe", "run_function", "run_program"]
