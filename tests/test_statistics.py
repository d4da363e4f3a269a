"""Check the statistics of the reports against published examples."""

import numpy as np
import pytest

from study.experiments.statistics import (
    bootstrap, difference, fisher_exact, half_width, holm, mcnemar_exact, mean_interval, paired_difference,
    paired_p, permutation_p, quartiles, two_way_shares, wilson,
)


@pytest.mark.parametrize("right, total, low, high", [
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718),
])
def test_wilsons_interval_matches_newcombes_table_1(right, total, low, high):
    # Statistics in Medicine 17:857 (1998), method 3
    assert wilson(right, total) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = wilson(total - right, total)
    assert mirrored == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


@pytest.mark.parametrize("counts, low, high", [
    ((56, 70, 48, 80), 0.0524, 0.3339), ((9, 10, 3, 10), 0.1705, 0.8090), ((10, 10, 0, 10), 0.6075, 1.0),
])
def test_the_interval_of_a_difference_matches_newcombes_table_2(counts, low, high):
    # Statistics in Medicine 17:873 (1998), method 10
    assert difference(*counts) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.mark.parametrize("counts, p", [
    ((3, 4, 1, 4), 0.4857),  # the lady tasting tea (Fisher 1935)
    ((10, 13, 2, 17), 0.0005367),  # convictions of like-sex twins (Fisher 1962)
    ((0, 5, 0, 7), 1.0),
])
def test_fishers_exact_test_matches_published_examples(counts, p):
    assert fisher_exact(*counts) == pytest.approx(p, rel=2e-4)


def test_mcnemars_exact_test_is_a_sign_test_of_the_discordant_pairs():
    assert mcnemar_exact(1, 7) == mcnemar_exact(7, 1) == pytest.approx(2 * (1 + 8) / 2**8)
    assert mcnemar_exact(0, 0) == mcnemar_exact(3, 3) == 1


@pytest.mark.parametrize("counts, low, high", [
    ((1, 1, 7, 12), -0.507, -0.026),  # airway reactivity (Fagerland, Lydersen and Laake 2014)
    ((14, 5, 0, 22), 0.011, 0.226),  # Altman et al. 2000, Statistics with Confidence, table 6.2
])
def test_the_interval_of_a_paired_difference_matches_published_examples(counts, low, high):
    assert paired_difference(*counts) == (pytest.approx(low, abs=6e-4), pytest.approx(high, abs=6e-4))
    both, only_a, only_b, neither = counts
    swapped = paired_difference(both, only_b, only_a, neither)
    assert swapped == (pytest.approx(-high, abs=6e-4), pytest.approx(-low, abs=6e-4))


def test_pairs_that_all_agree_leave_room_for_a_difference():
    low, high = paired_difference(0, 0, 0, 10)
    assert low == -high and high == pytest.approx(wilson(0, 10)[1])


def test_the_interval_of_a_mean_has_its_width():
    values = np.arange(100.0)
    low, high = mean_interval(values)
    half = 1.96 * values.std() / 10
    assert (low, high) == (pytest.approx(49.5 - half, abs=0.5), pytest.approx(49.5 + half, abs=0.5))
    assert mean_interval(values) == (low, high) and mean_interval([3.0, 3.0]) == (3, 3)


def test_quartiles_are_in_ascending_order():
    assert quartiles([4, 1, 3, 2, 5]) == (2, 3, 4)


def test_variance_shares_of_rows_columns_and_cells():
    by_row = np.repeat(np.arange(4.0)[:, None], 3, axis=1)
    assert two_way_shares(by_row) == pytest.approx((1, 0, 0))
    assert two_way_shares(by_row.T) == pytest.approx((0, 1, 0))
    # Computed by hand: the mean is 5, the rows have means 3 and 7, the columns 4 and 6.
    assert two_way_shares([[3, 3], [5, 9]]) == pytest.approx((16 / 24, 4 / 24, 4 / 24))
    assert two_way_shares(np.ones((3, 3))) == (0, 0, 0)


def test_a_permutation_test_detects_only_rows_that_differ():
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(12, 5))
    p_rows, p_columns = permutation_p(noise + 3 * np.arange(12)[:, None], draws=500)
    assert p_rows == pytest.approx(1 / 501) and p_columns > 0.05
    assert permutation_p(noise, draws=500) == permutation_p(noise, draws=500)  # the draws are seeded
    trials = [permutation_p(rng.normal(size=(6, 4)), draws=200)[0] for _ in range(200)]
    assert 0.01 < np.mean(np.array(trials) <= 0.05) < 0.11  # one in twenty tables without an effect


def test_a_paired_test_sees_a_small_difference_that_all_pairs_have():
    rng = np.random.default_rng(0)
    assert paired_p([0.1] * 12) < 0.001 and paired_p([1, -1, 1, -1]) == 1
    assert paired_p([0.0] * 5) == 1
    trials = [paired_p(rng.normal(size=10), draws=200) for _ in range(300)]
    assert 0.02 < np.mean(np.array(trials) <= 0.05) < 0.09


def test_holms_correction_is_stepwise_and_keeps_the_order():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # by hand
    assert holm([0.5]) == [0.5] and max(holm([0.6, 0.9])) == 1


def test_a_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = np.random.default_rng(1).normal(size=400)
    low, high = bootstrap(lambda groups: groups[0].mean(), [values])
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1) and low < values.mean() < high
    assert np.isnan(bootstrap(lambda groups: np.nan, [values])).all()


def test_the_width_at_a_half_is_interpolated_on_a_logarithmic_axis():
    assert half_width([4, 16, 64], [0, 1, 1]) == pytest.approx(8)
    assert half_width([4, 16, 64], [0.8, 0.8, 0], falling=True) == pytest.approx(32)  # half of the maximum
    assert half_width([2, 4, 16, 64], [0, 1, 0.75, 0.25], falling=True) == pytest.approx(32)
    for never in ([0.1, 0.2, 0.4], [0.6, 0.7, 0.8]):
        assert np.isnan(half_width([4, 16, 64], never))
    assert np.isnan(half_width([4, 16, 64], [0, 0.5, 1], falling=True))
