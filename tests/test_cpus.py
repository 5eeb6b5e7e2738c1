"""How many threads this process may run."""

import os
from pathlib import Path

import pytest

from glyphs.core import cpus


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with four cores, and no container."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(4), raising=False)
    monkeypatch.setattr(cpus, "CGROUP", tmp_path)


def test_affinity_counts() -> None:
    assert cpus.usable_cpus() == 4


@pytest.mark.parametrize(("limit", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 4)])
def test_a_containers_quota_counts(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert cpus.usable_cpus() == expected


@pytest.mark.parametrize(("quota", "expected"), [("200000", 2), ("-1", 4)])
def test_a_quota_of_the_first_version_counts(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert cpus.usable_cpus() == expected


def test_the_users_own_choice_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert cpus.usable_cpus() == 7


@pytest.mark.parametrize(("given", "expected"), [(None, 2), ("1", 2), ("3", 3)])
def test_processes_that_torchrun_started_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: int
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    if given is not None:  # torchrun sets 1 where the user has set nothing
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert cpus.usable_cpus() == expected
