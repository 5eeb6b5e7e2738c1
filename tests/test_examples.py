"""The examples in docstrings run, and give what they say."""

import doctest
from collections.abc import Callable

import pytest
from torch import Tensor

import glyphs.data.loaders
from glyphs.data.loaders import get_data_loaders
from glyphs.evaluation.evaluator import Evaluator
from glyphs.training.lr_finder import LRFinder
from glyphs.training.trainer import Trainer

EXAMPLES = (Trainer, Evaluator, LRFinder, get_data_loaders)


@pytest.mark.slow
@pytest.mark.parametrize("thing", EXAMPLES, ids=lambda thing: thing.__name__)
def test_example(
    thing: type | Callable[..., object],
    demo_data: dict[str, tuple[Tensor, Tensor]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(glyphs.data.loaders, "render_demo", demo_data.__getitem__)  # drawn once for all tests
    [test] = doctest.DocTestFinder(recurse=False).find(thing)
    assert test.examples
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0
