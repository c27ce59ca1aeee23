import numpy as np
import pytest

from tldr.data.truth import truths


def test_what_files_say():
    said = [True, False, np.True_, 1, 0, 1.0, "True", "false", " FALSE ", "1", "0"]
    assert truths(said, "label") == [True, False, True, True, False, True, True, False, False, True, False]


@pytest.mark.parametrize("value", [None, "yes", 2, "", float("nan")])
def test_what_says_neither_is_named(value):
    with pytest.raises(ValueError, match=r"the column label must say true or false .* here it also has "):
        truths([True, value], "label")
