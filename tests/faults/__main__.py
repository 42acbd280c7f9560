"""The embedded pipeline under kills and other faults: in the end the same bytes as without them.

All runs use `configs/testing.py`, and must leave what an undisturbed run leaves on this machine.

python -m tests.faults [--kills 30] [--seed 0] [--only NAME] [--folder runs/faults]
"""

import argparse
import shutil
import sys
from pathlib import Path

from tests.faults.injected import inject
from tests.faults.kills import kill_everywhere
from tests.faults.pipeline import Pipeline


def main() -> None:
    """Prints tables in Markdown; exits with 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose name has this; no kills")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"))
    flags = parser.parse_args()
    folder = flags.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pipeline, undisturbed = Pipeline(folder), folder / "undisturbed"
    pipeline.finish(undisturbed)
    wrong = inject(pipeline, undisturbed, flags.only)
    if not flags.only:
        wrong += kill_everywhere(pipeline, undisturbed, flags.kills, flags.seed)
    if wrong:
        sys.exit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
