"""The examples in docstrings run, and give what they say."""

import doctest

import pytest

from glyphs.training.trainer import Trainer

EXAMPLES = (Trainer,)


@pytest.mark.parametrize("thing", EXAMPLES, ids=lambda thing: thing.__name__)
def test_example(thing: object) -> None:
    [test] = doctest.DocTestFinder(recurse=False).find(thing)
    assert test.examples
    result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
    assert result.failed == 0
