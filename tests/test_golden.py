"""The published PyTorch code's numbers, in float64: every row of docs/parity.md."""

import pytest

from benchmarks import parity

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("x64")]


# Of Base size: two thirds of this file's time.
_LONG = dict.fromkeys(("vit_base", "hybrid_base", "vgg16"), pytest.mark.exhaustive)


@pytest.mark.parametrize(
    "group", [pytest.param(name, marks=_LONG.get(name, ())) for name in parity.GROUPS]
)
def test_published_numbers_are_met(group):
    comparisons = list(parity.GROUPS[group]())
    off = {row.what: row.difference for row in comparisons if not row.difference <= parity.LIMIT}
    assert comparisons and not off


def test_the_limit_can_be_missed():
    row = parity.compare("a map", [1.0, 2.0], [1.0, 2.0 + 4e-6])
    assert row.difference > parity.LIMIT
    with pytest.raises(ValueError, match=r"a map: shape \(2,\), the published code's is \(1, 2\)"):
        parity.compare("a map", [1.0, 2.0], [[1.0, 2.0]])
