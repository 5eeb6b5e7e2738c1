"""Damaged files of every kind that the programs read: an answer or a GlyphError, whatever the bytes are."""

import warnings
from pathlib import Path

import pytest

from benchmarks.torture import PICTURES, Job, Kind, attack, kill, write_kinds

# How many mutations of each kind; a picture's formats share theirs.
MUTATIONS = {
    **dict.fromkeys((f"picture {suffix}" for suffix in PICTURES), 40),
    "checkpoint": 200,
    "export": 40,
    "export without a seal": 60,
    "IDX": 300,
    "IDX, gzipped": 300,
    "config.json": 300,
    "results to go on with": 300,
    "form": 300,
    "word list": 300,
    "cache index.jsonl": 40,
    "cache glyphs.u8": 40,
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, exported: tuple[Path, Path]) -> dict[str, Kind]:
    return write_kinds(tmp_path_factory.mktemp("kinds"), *exported)


def test_every_kind_is_tried(kinds: dict[str, Kind]) -> None:
    assert kinds.keys() == MUTATIONS.keys()
    for kind in kinds.values():
        kind.read(kind.path)  # it is valid


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_damage_ends_in_an_answer_or_one_error(name: str, kinds: dict[str, Kind]) -> None:
    counts, faults = attack(name, kinds[name], MUTATIONS[name], seed=0)
    assert faults == []
    assert counts.total() == MUTATIONS[name]
    if not name.startswith("cache"):  # which is mended
        assert counts["refused"] > 0


def test_what_is_not_an_error_of_ours_counts_as_a_fault(tmp_path: Path) -> None:
    def crash(path: Path) -> None:
        raise ValueError("a bug")

    def warn(path: Path) -> None:
        warnings.warn("a second line on the terminal", stacklevel=1)

    for read in (crash, warn):
        counts, faults = attack("word list", Kind(tmp_path / "words.txt", b"one\ntwo\n", read), 3, seed=0)
        assert counts.total() == 0
        assert [fault.number for fault in faults] == [0, 1, 2]


@pytest.mark.slow
def test_work_that_does_not_come_out_the_same_after_a_kill_counts_as_a_fault(tmp_path: Path) -> None:
    appends = "import time\nfor _ in range(200):\n    open('out', 'a').write('x')\n    time.sleep(0.005)\n"
    # With this seed the kill comes a little after the middle.
    met, faults = kill("appends", Job(["-S", "-c", appends], ("out",)), 1, 1, tmp_path / "appends")
    assert met == 1
    assert [fault.problem for fault in faults] == ["out differs"]
    starts_anew = appends.replace("for _", "open('out', 'w').close()\nfor _")
    assert kill("appends", Job(["-S", "-c", starts_anew], ("out",)), 1, 1, tmp_path / "anew")[1] == []
