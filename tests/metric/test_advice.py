import numpy as np
import pytest

from tldr.metric.advice import advise, percent

FULL = {0: 50.0, 1: 60.0, 2: 55.0}


def scores(a, b, noise=None):
    """Measurements on the curve itself, with ``noise`` (seed -> points) on every one."""
    noise = noise or dict.fromkeys(FULL, 0.0)
    x = {ratio: -np.log(1 - ratio) for ratio in (0.5, 0.75, 0.9)}
    return {ratio: {s: FULL[s] + a * x[ratio] + b * x[ratio] ** 2 + noise[s] for s in FULL} for ratio in x}


def test_a_known_curve_is_found_and_its_crossing():
    """d = 2x - 2x^2 is -1 where x = (1 + sqrt(3)) / 2, which is c = 0.7449."""
    found = advise(scores(2.0, -2.0), FULL, tolerance=1.0)
    assert found is not None
    crossing = 1 - np.exp(-(1 + np.sqrt(3)) / 2)
    assert found.recommended == pytest.approx(crossing, abs=0.9 / 399)
    assert found.residual == pytest.approx(0, abs=1e-9)
    assert found.earliest == pytest.approx(found.latest) == pytest.approx(found.recommended)  # no noise
    assert not found.whole
    x = -np.log1p(-found.compression)
    np.testing.assert_allclose(found.difference, 2 * x - 2 * x**2, atol=1e-9)
    assert str(found) == "74% (3)"


def test_noise_widens_the_interval_around_the_truth():
    found = advise(scores(0.0, -1.0, noise={0: -1.5, 1: 0.0, 2: 1.5}), FULL, tolerance=1.0)
    assert found is not None
    crossing = 1 - np.exp(-1)
    assert found.earliest < crossing - 0.02 < crossing + 0.02 < found.latest
    assert (found.low <= found.difference + 1e-9).all()
    assert (found.difference <= found.high + 1e-9).all()
    assert "[" in str(found)


def test_a_gain_that_lasts_is_recommended_as_far_as_it_was_measured():
    found = advise(scores(3.0, 0.0), FULL, tolerance=0.0)
    assert found is not None
    assert found.whole
    assert found.recommended == 0.9
    assert str(found) == "≥ 90% (3)"


def test_the_first_time_counts():
    """A curve that dips below and returns: what lies behind the dip is not recommended."""
    found = advise({0.5: {0: 40.0}, 0.9: {0: 60.0}}, {0: 50.0}, tolerance=1.0)
    assert found is not None
    assert found.recommended < 0.5
    assert np.isnan(found.low).all()


def test_the_measured_loss_is_believed_before_the_fit():
    """A curve of two coefficients misses three points by more than the loss that may be: it says so, too."""
    found = advise({0.5: {0: 47.0}, 0.75: {0: 53.0}, 0.9: {0: 47.0}}, {0: 50.0, 1: 50.0}, tolerance=1.0)
    assert found is not None
    assert found.difference[len(found.difference) * 5 // 9] > -1
    assert 0.49 < found.recommended < 0.5
    assert found.seeds == (0,)
    assert str(found) == f"50% (1, fit off by {found.residual:.1f})"


def test_the_interval_holds_the_estimate():
    """What was measured limits both: every seed lost too much at a half, and won at three quarters."""
    losses = {0.5: (-2.5, -2.0, -1.2), 0.75: (0.6, 1.0, 1.5), 0.9: (-0.5, -1.2, -2.0)}
    measured = {ratio: {s: FULL[s] + loss for s, loss in enumerate(lost)} for ratio, lost in losses.items()}
    found = advise(measured, FULL, tolerance=1.0)
    assert found is not None
    assert found.earliest <= found.recommended <= found.latest < 0.5


def test_shares_near_all_keep_what_tells_them_apart():
    assert [percent(share) for share in (0.5, 0.746, 0.9875, 0.995, 0.9975)] == ["50%", "75%", "99%", "99.5%", "99.75%"]


def test_one_compression_makes_a_line():
    found = advise({0.5: {0: 48.0, 1: 58.0}}, {0: 50.0, 1: 60.0, 2: 0.0}, tolerance=1.0)
    assert found is not None
    assert found.difference[-1] == pytest.approx(-2)
    assert found.recommended == pytest.approx(1 - np.sqrt(0.5), abs=0.5 / 399)


def test_what_cannot_be_advised():
    assert advise({}, FULL, tolerance=1.0) is None
    assert advise({0.5: {7: 1.0}}, FULL, tolerance=1.0) is None
    with pytest.raises(ValueError, match="tolerance=-1"):
        advise(scores(1, 1), FULL, tolerance=-1)
    with pytest.raises(ValueError, match="share removed"):
        advise({1.0: {0: 1.0}}, FULL, tolerance=1.0)
