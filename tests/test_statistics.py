"""Check the statistics of the reports against published examples."""

import numpy as np
import pytest

from study.experiments.statistics import (
    difference, fisher_exact, permutation_p, quartiles, two_way_shares, wilson)


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
