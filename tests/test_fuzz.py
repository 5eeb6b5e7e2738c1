"""Damaged files of every kind that the programs read: an answer or a GlyphError, whatever the bytes are."""

from pathlib import Path

import pytest

from benchmarks.torture import PICTURES, Kind, attack, write_kinds

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


@pytest.mark.parametrize("name", MUTATIONS)
def test_damage_ends_in_an_answer_or_one_error(name: str, kinds: dict[str, Kind]) -> None:
    counts, faults = attack(name, kinds[name], MUTATIONS[name], seed=0)
    assert faults == []
    assert counts.total() == MUTATIONS[name]
    if not name.startswith("cache"):  # which is mended
        assert counts["refused"] > 0
