"""The tour runs from top to bottom, in a kernel of its own, and learns what it shows."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

TOUR = ROOT / "notebooks" / "tour.ipynb"
MOST_BYTES = 250_000


def read_tour() -> Any:
    return nbformat.read(TOUR, as_version=4)  # type: ignore[no-untyped-call]


def texts(notebook: Any) -> list[str]:
    """What each code cell printed and gave, as text."""
    return [
        "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # those of Jupyter's libraries
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = read_tour()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    accuracy = re.search(r"accuracy (0\.\d+) on 1,880 images", "".join(texts(notebook)))
    assert accuracy
    assert float(accuracy[1]) > 0.9
    labels = re.findall(r"label='(.)'", texts(notebook)[-1])
    assert len(labels) == 2
    assert labels[0] == labels[1]  # the checkpoint and its export
    assert (tmp_path / "outputs" / "tour" / "best_model.onnx").exists()


def test_the_tour_is_kept_with_small_outputs() -> None:
    assert TOUR.stat().st_size < MOST_BYTES
    notebook = read_tour()
    nbformat.validate(notebook)
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert not [text for text in texts(notebook) if re.search(r"/(home|root|work|tmp|Users)/|Traceback", text)]
