"""Percentiles are numpy's by the inverted distribution function."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scripts.percentiles import percentile


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from([0.25, 0.5, 0.75, 0.95, 1.0]))
def test_it_is_the_smallest_value_that_a_share_of_all_do_not_exceed(values, share):
    assert percentile(values, share) == np.percentile(values, 100 * share, method="inverted_cdf")
