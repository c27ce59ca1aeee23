import numpy as np
import pytest

from tldr.check import check_number, check_seed


@pytest.mark.parametrize("value", [0, 0.5, 1, np.float32(0.5), np.int64(1)])
def test_a_number_in_its_bounds_passes(value):
    check_number("share", value, "a share", low=0, high=1)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), "0.5", None, True, [0.5]])
def test_what_is_none_is_told_with_its_key(value):
    with pytest.raises(ValueError, match=r"^share=.* must be a share$"):
        check_number("share", value, "a share", low=0, high=1)


@pytest.mark.parametrize("value", [1.5, 1.0, 0, "2"])
def test_a_whole_one_has_no_fraction(value):
    check_number("steps", np.int64(1), "steps", low=1, whole=True)
    with pytest.raises(ValueError, match=r"^steps="):
        check_number("steps", value, "steps", low=1, whole=True)


@pytest.mark.parametrize("seed", [-1, 2**32, "a", 0.5])
def test_a_seed_is_one_for_every_library(seed):
    check_seed(2**32 - 1)
    with pytest.raises(ValueError, match=r"^seed=.*0 to 2\*\*32 - 1"):
        check_seed(seed)
