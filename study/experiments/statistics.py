"""The statistics of the reports: intervals of shares and means, the spread of runs, tests of differences."""

import math

import numpy as np

Z = 1.959963984540054  # standard normal quantile of 97.5%: all intervals are of 95%


def wilson(right, total):
    """95% interval (low, high) of a share, right of total (Wilson 1927; Newcombe 1998, method 3)."""
    share, spread = right / total, Z * math.sqrt(right * (total - right) / total + Z**2 / 4)
    middle = total * share + Z**2 / 2
    low, high = (middle - spread) / (total + Z**2), (middle + spread) / (total + Z**2)
    return max(low, 0.0), min(high, 1.0)


def difference(right_a, total_a, right_b, total_b):
    """95% interval of share a minus share b, of independent runs.

    Newcombe 1998, Statistics in Medicine 17:873, method 10.
    """
    a, b = right_a / total_a, right_b / total_b
    (low_a, high_a), (low_b, high_b) = wilson(right_a, total_a), wilson(right_b, total_b)
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)


def fisher_exact(right_a, total_a, right_b, total_b):
    """Two-sided p of Fisher's exact test that two shares are equal: the sum of all tables no likelier."""
    right, total = right_a + right_b, total_a + total_b
    possible = range(max(0, right - total_b), min(right, total_a) + 1)
    # With whole numbers ties are exact.
    ways = {k: math.comb(total_a, k) * math.comb(total_b, right - k) for k in possible}
    return sum(n for n in ways.values() if n <= ways[right_a]) / math.comb(total, right)


def mcnemar_exact(only_a, only_b):
    """Two-sided p of McNemar's exact test that two paired shares are equal (a sign test of the discordant).

    only_a, only_b: pairs of which a alone, or b alone, has the property.
    """
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def paired_difference(both, only_a, only_b, neither):
    """95% interval of share a minus share b of pairs.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10.
    """
    total, in_a, in_b = both + only_a + only_b + neither, both + only_a, both + only_b
    a, b = in_a / total, in_b / total
    (low_a, high_a), (low_b, high_b) = wilson(in_a, total), wilson(in_b, total)
    product = both * neither - only_a * only_b
    if product > 0:
        product = max(product - total / 2, 0)  # continuity correction
    margins = math.sqrt(in_a * in_b * (total - in_a) * (total - in_b))
    phi = product / margins if margins else 0.0

    def distance(x, y):
        return math.sqrt(max(x**2 - 2 * phi * x * y + y**2, 0))

    return a - b - distance(a - low_a, high_b - b), a - b + distance(high_a - a, b - low_b)


def mean_interval(values):
    """95% percentile interval of a mean, by bootstrap over its values."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(axis=1)
    return tuple(float(bound) for bound in np.percentile(drawn, (2.5, 97.5)))


def quartiles(values):
    """(first quartile, median, third quartile), numpy's linear interpolation."""
    return tuple(float(q) for q in np.percentile(values, (25, 50, 75)))


def two_way_shares(table):
    """Shares of a table's sum of squares, one value a cell: of its rows, of its columns, of the rest."""
    table = np.asarray(table, dtype=float)
    mean = table.mean()
    rows = table.shape[1] * ((table.mean(axis=1) - mean) ** 2).sum()
    columns = table.shape[0] * ((table.mean(axis=0) - mean) ** 2).sum()
    total = ((table - mean) ** 2).sum()
    return (rows / total, columns / total, 1 - (rows + columns) / total) if total else (0.0, 0.0, 0.0)


def permutation_p(table, draws=10_000):
    """p of the rows' share of the sum of squares and of the columns': how often shuffling gives as much.

    Values are shuffled within columns to test the rows, within rows to test the columns.
    """
    table, rng = np.asarray(table, dtype=float), np.random.default_rng(0)
    tests = []
    for values in (table, table.T):  # the share of the rows, each time
        shuffled = rng.permuted(np.repeat(values[None], draws, axis=0), axis=1)
        spread = ((shuffled.mean(axis=2) - values.mean()) ** 2).sum(axis=1)
        observed = ((values.mean(axis=1) - values.mean()) ** 2).sum()
        tests.append((1 + (spread >= observed * (1 - 1e-12)).sum()) / (1 + draws))
    return tuple(float(p) for p in tests)


def paired_p(differences, draws=10_000):
    """Two-sided p of a paired permutation test that the mean difference is zero: signs are flipped."""
    differences, rng = np.asarray(differences, dtype=float), np.random.default_rng(0)
    signs = rng.choice([-1, 1], size=(draws, len(differences)))
    at_least = np.abs((signs * differences).mean(axis=1)) >= abs(differences.mean()) - 1e-12
    return float((1 + at_least.sum()) / (1 + draws))


def holm(ps):
    """p values with Holm's correction for testing all of them (Holm 1979), in the order given."""
    order = np.argsort(ps)
    steps = [min(1.0, (len(ps) - rank) * ps[i]) for rank, i in enumerate(order)]
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(steps)
    return [float(p) for p in corrected]


def bootstrap(statistic, groups):
    """95% percentile interval of statistic(groups), with the runs of each group drawn again.

    groups: a list of lists of values.
    """
    rng, groups = np.random.default_rng(0), [np.asarray(group, dtype=float) for group in groups]
    # The draws of rng.choice(), in half the time.
    values = [statistic([group[rng.integers(len(group), size=len(group))] for group in groups])
              for _ in range(2000)]
    return tuple(float(bound) for bound in np.percentile(values, (2.5, 97.5)))


def half_width(widths, shares, falling=False, censored=False):
    """The width at which mean shares (from 0 to 1) pass a half; nan if they do not.

    Rising: where they first reach 0.5. Falling: where they last pass half of their maximum, to the right of
    it. Between two widths the logarithm of the width is interpolated linearly. censored: where they do not
    pass it, the end of the widths beyond which they would.
    """
    widths, shares = np.log(widths), np.asarray(shares, dtype=float)
    level = shares.max() / 2 if falling else 0.5
    above = np.flatnonzero(shares >= level)
    if falling:
        right = above[-1] + 1
    else:
        right = above[0] if len(above) else len(shares)
    if not 0 < right < len(shares):
        return float(np.exp(widths[-1 if right else 0])) if censored else math.nan
    share = (level - shares[right - 1]) / (shares[right] - shares[right - 1])
    return float(np.exp(widths[right - 1] + share * (widths[right] - widths[right - 1])))
