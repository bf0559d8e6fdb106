#!/usr/bin/env python3
"""tests/parity/statistics.json: what scipy and statsmodels-like formulas say (pip install scipy).

- normal, t: quantiles of scipy.stats.
- bootstrap: scipy.stats.bootstrap on fixed differences, unclustered, with very many resamples: the percentile
  interval at the widened tail of ours (with the halves that ours adds), and the standard error.
"""
import json
import pathlib

import numpy as np
from scipy import stats


def expanded_percentile(d):
    """Ours, by scipy.stats.bootstrap. The added halves weigh half an item each: a bootstrap of (sum, size) pairs."""
    s = np.append(d, [0.5, -0.5])
    n = np.append(np.ones(len(d)), [0.5, 0.5])
    effective = n.sum() ** 2 / (n**2).sum()
    t = stats.t.ppf(0.975, effective - 1)
    tail = stats.norm.cdf(-t * np.sqrt(len(s) / (len(s) - 1)))
    found = stats.bootstrap(
        (s, n),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        confidence_level=1 - 2 * tail,
        n_resamples=200_000,
        batch=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    return [found.low, found.high]


def symmetric_t(d):
    """Hall's symmetric bootstrap-t, plainly."""
    rng = np.random.default_rng(2)
    draws = rng.choice(d, size=(200_000, len(d)))
    error = d.std(ddof=1) / np.sqrt(len(d))
    t = np.abs(draws.mean(1) - d.mean()) / (draws.std(1, ddof=1) / np.sqrt(len(d)))
    reach = np.quantile(t, 0.95) * error
    return [d.mean() - reach, d.mean() + reach]


def main():
    rng = np.random.default_rng(0)
    right = [0] * 66 + [1] * 26 + [-1] * 8
    skewed = [round(float(x), 4) for x in rng.exponential(0.5, 60) - 0.35]
    out = {
        "normal": [[x, stats.norm.cdf(x)] for x in [-6.0, -3.0, -1.959963984540054, -0.5, 0.0, 0.3, 1.0, 1.6, 2.5]],
        "t": [
            [p, n, stats.t.isf(p / 2, n)]
            for p in [0.4, 0.1, 0.05, 0.01, 0.001]
            for n in [1.0, 2.0, 2.5, 4.0, 7.3, 15.0, 49.0, 499.0]
        ],
        "right": {
            "differences": right,
            "standard_error": float(np.std(right, ddof=1) / 10),
            "interval": expanded_percentile(np.array(right, float)),
        },
        "loss": {
            "differences": skewed,
            "standard_error": float(np.std(skewed, ddof=1) / np.sqrt(60)),
            "interval": symmetric_t(np.array(skewed)),
        },
    }
    path = pathlib.Path(__file__).parents[2] / "tests/parity/statistics.json"
    path.write_text(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
