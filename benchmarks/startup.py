"""How soon the scripts answer: --help, and the first training step.

    python benchmarks/startup.py
    python benchmarks/startup.py --dataset emnist --data-dir DIR

Prints the seconds that --help of each script takes beyond the start of Python itself, and those from the command to
the end of the first training step (default network and batch, evaluation to follow), in turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from glyphs.core.config import DATASETS

ROOT = Path(__file__).parent.parent
# The script itself, but for its end: after one step.
FIRST_STEP = """
import os, sys
from glyphs.training.trainer import Trainer
whole_step = Trainer.train_step
def step_and_end(*arguments):
    whole_step(*arguments)[0].item()
    os._exit(0)
Trainer.train_step = step_and_end
from enhanced_glyph_recognition import main
main(sys.argv[1:])
"""


def command_seconds(*arguments: str) -> float:
    """How long Python takes with these arguments, in the repository."""
    started = time.perf_counter()
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="demo", help="what to train on (default: demo)")
    parser.add_argument("--data-dir", default="./data", help="where it is (default: ./data)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    arguments = parser.parse_args()

    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    rows: dict[str, list[float]] = {"Python itself, s": [], **{f"{name} --help, s beyond it": [] for name in scripts}}
    rows["to the end of the first training step, s"] = []
    with tempfile.TemporaryDirectory() as folder:
        training = ["--dataset", arguments.dataset, "--data-dir", arguments.data_dir, "--output-dir", folder]
        for _ in range(arguments.rounds):
            bare = command_seconds("-c", "pass")
            helps = [command_seconds(name, "--help") - bare for name in scripts]
            step = command_seconds("-c", FIRST_STEP, *training, "--overwrite")
            for times, value in zip(rows.values(), [bare, *helps, step], strict=True):
                times.append(value)
    print(f"{'':52}{'median':>10}{'lowest':>10}{'highest':>10}")
    for name, times in rows.items():
        print(f"{name:52}{statistics.median(times):10.3f}{min(times):10.3f}{max(times):10.3f}")


if __name__ == "__main__":
    main()
