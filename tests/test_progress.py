"""Progress bars: where there are any, and around what takes long."""

import io
import re
import sys
import time
from pathlib import Path

import pytest
import torch
import tqdm.auto
import tqdm.std
from torch import nn

from glyphs.core.progress import line_above, progress
from glyphs.data.loaders import TensorLoader
from glyphs.evaluation.evaluator import Evaluator
from glyphs.models.network import EnhancedGlyphCNN
from glyphs.training.lr_finder import LRFinder
from glyphs.training.trainer import Trainer
from tests.small import CLASSES, make_config, make_loaders


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_has_bars_and_a_file_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for stderr, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stderr)
        assert list(progress(range(3), desc="counting")) == [0, 1, 2]
        line_above("a word")
        assert ("counting" in stderr.getvalue()) == shown
        assert stderr.getvalue().endswith("a word\n")


def test_without_a_terminal_there_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(12), seconds=0.1, desc="preparing", unit=" pictures"):
        time.sleep(0.05)
    bar = progress(total=12, seconds=0.1, desc="training", delay=1)
    for _ in range(12):
        time.sleep(0.05)
        bar.update()
    bar.close()
    for _ in progress(range(12), desc="short"):
        pass
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 12  # how many depends on the clock
    assert all(re.match(r"(preparing|training): +\d+% \d+/12 \[", line) for line in lines)
    assert {line.split(":")[0] for line in lines} == {"preparing", "training"}


def test_a_notebook_has_bars_though_its_stderr_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr(tqdm.auto, "tqdm", type("tqdm_notebook", (tqdm.std.tqdm,), {"__module__": "tqdm.notebook"}))
    bar = progress(total=3)
    assert not bar.disable
    bar.close()


def test_the_learning_rate_finder_shows_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    torch.manual_seed(0)
    labels = torch.arange(60) % 3
    images = (labels * 80).to(torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 28, 28).contiguous()
    model = EnhancedGlyphCNN(3, use_residual=False)
    finder = LRFinder(model, torch.optim.AdamW(model.parameters()), nn.CrossEntropyLoss())
    finder.range_test(TensorLoader(images, labels, 12, shuffle_seed=1), num_steps=60)
    assert isinstance(sys.stderr, Terminal)
    assert "learning-rate finder" in sys.stderr.getvalue()
    assert "/60" in sys.stderr.getvalue()


def test_validation_and_evaluation_show_their_batches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    model = EnhancedGlyphCNN(len(CLASSES), use_residual=False)
    trainer = Trainer(model, *make_loaders(), make_config(tmp_path), CLASSES)
    trainer.validate()
    Evaluator(model, CLASSES).evaluate(make_loaders()[1])
    assert isinstance(sys.stderr, Terminal)
    for word in ("validating", "evaluating"):  # how far each came to be drawn depends on the clock
        assert re.search(rf"{word}: .*/2 \[", sys.stderr.getvalue())
