"""Runs a script under a clock that jumps: hours forward, then days back, and right again, every few seconds.

python -m tests.faults.jumping_clock SCRIPT [ARGUMENTS]
"""

import runpy
import sys
import time

_JUMPS = (0.0, 36_000.0, -360_000.0)  # seconds that it is wrong by, one after the other
_LASTS = 3.0  # seconds between two jumps
_true = time.time


def _jumping() -> float:
    return _true() + _JUMPS[int(time.monotonic() / _LASTS) % len(_JUMPS)]


if __name__ == "__main__":
    time.time = _jumping
    time.time_ns = lambda: int(_jumping() * 1e9)
    sys.argv = sys.argv[1:]
    sys.path.insert(0, "")
    runpy.run_path(sys.argv[0], run_name="__main__")
