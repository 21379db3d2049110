"""When Python looks for garbage, which only a program may decide and no library."""

import gc

_OFTEN_ENOUGH = 100_000  # objects made; Python's default is 700 to 2,000


def collect_rarely() -> None:
    """For the whole process: imports and loading make much that stays, and a command takes an eighth less time."""
    young, *older = gc.get_threshold()
    if 0 < young < _OFTEN_ENOUGH:
        gc.set_threshold(_OFTEN_ENOUGH, *older)
