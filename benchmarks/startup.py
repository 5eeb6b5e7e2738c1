"""How soon the scripts answer: --help, one picture, and the first training step.

    python benchmarks/startup.py
    python benchmarks/startup.py --dataset emnist --data-dir DIR

Prints the seconds that --help of each script takes beyond the start of Python itself, those that one answer by the
bundled .onnx model takes, and those from the command to the end of the first training step (default network and batch,
evaluation to follow), in turns: by the clock, and the median processor time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

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


class Taken(NamedTuple):
    """Seconds by the clock, and of processor time, which other programs on the same cores hardly change."""

    clock: float
    processor: float

    def beyond(self, other: "Taken") -> "Taken":
        return Taken(self.clock - other.clock, self.processor - other.processor)


def command_seconds(*arguments: str) -> Taken:
    """How long Python takes with these arguments, in the repository."""
    started, before = time.perf_counter(), os.times()
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return Taken(time.perf_counter() - started, processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=DATASETS, default="demo", help="what to train on (default: demo)")
    parser.add_argument("--data-dir", default="./data", help="where it is (default: ./data)")
    parser.add_argument("--rounds", type=int, default=7, help="rounds; the median is reported (default: 7)")
    arguments = parser.parse_args()

    scripts = sorted(path.name for path in ROOT.glob("*.py"))
    rows: dict[str, list[Taken]] = {"Python itself, s": [], **{f"{name} --help, s beyond it": [] for name in scripts}}
    rows["one answer, s beyond it"] = []
    rows["to the end of the first training step, s"] = []
    with tempfile.TemporaryDirectory() as folder:
        training = ["--dataset", arguments.dataset, "--data-dir", arguments.data_dir, "--output-dir", folder]
        for _ in range(arguments.rounds):
            bare = command_seconds("-c", "pass")
            helps = [command_seconds(name, "--help").beyond(bare) for name in scripts]
            answer = command_seconds("inference.py", "--image", "samples/letter.jpg").beyond(bare)
            step = command_seconds("-c", FIRST_STEP, *training, "--overwrite")
            for times, value in zip(rows.values(), [bare, *helps, answer, step], strict=True):
                times.append(value)
    print(f"{'':52}{'median':>10}{'lowest':>10}{'highest':>10}{'processor':>12}")
    for name, taken in rows.items():
        clocks, processors = ([each[place] for each in taken] for place in (0, 1))
        figures = f"{statistics.median(clocks):10.3f}{min(clocks):10.3f}{max(clocks):10.3f}"
        print(f"{name:52}{figures}{statistics.median(processors):12.3f}")


if __name__ == "__main__":
    main()
