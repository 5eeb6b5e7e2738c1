"""What it costs to share the rows of a folder among processes and to join them: CPU time and bytes for each row.

    python benchmarks/joining.py

One process writes its part and joins it, as `torchrun ... inference.py --batch DIR --output x.jsonl` does, but for
pictures that are only named: reading and recognising them is what benchmarks/prediction.py measures.
"""

import argparse
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from glyphs.core.process import run
from glyphs.output.parts import Parts
from glyphs.output.rows import Candidate, Prediction, RowKind

CANDIDATES = tuple(Candidate(label, 0.2) for label in "ABCDE")


def parts_of(output: Path) -> Parts:
    return Parts(
        output, {}, kind=RowKind("prediction", len(CANDIDATES)), block=128, number=0, count=1, meet=lambda: None
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="rows (default: 100,000)")
    count = parser.parse_args().rows

    names = [(f"{number // 1000:06}/{number:09}.png", None) for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "rows.jsonl")
        parts = parts_of(output)
        started = time.process_time()
        with parts.opened():
            for name, _ in parts.share(names):
                parts.write(Prediction(name, "ok", "A", 0.2, CANDIDATES))
        written = time.process_time()
        parts.join(names, lambda row: None)
        joined = time.process_time()
        tracemalloc.start()
        again = parts_of(output)
        held = tracemalloc.get_traced_memory()[0]
        assert len(again.earlier.done) == count
        print(f"{'written, µs of a core a row':36}{1e6 * (written - started) / count:8.1f}")
        print(f"{'joined, µs of a core a row':36}{1e6 * (joined - written) / count:8.1f}")
        print(f"{'output, bytes a row':36}{output.stat().st_size / count:8.0f}")
        print(f"{'held of a finished row, bytes':36}{held / count:8.0f}")


if __name__ == "__main__":
    sys.exit(run(main))
