import pytest

from dist_imsr.refresh.config import QualityConfig
from dist_imsr.refresh.quality import quality_of


def _lines(*values):
    return [{"test_span": span, "hr@5": value} for span, value in enumerate(values, 2)]


@pytest.mark.parametrize(
    ("values", "mean", "ratio", "objection"),
    [
        ((0.3,), None, None, None),  # nothing to compare with
        ((0.2, 0.4, 0.25), 0.3, 0.25 / 0.3, None),
        ((0.9, 0.2, 0.4, 0.25), 0.3, 0.25 / 0.3, None),  # the mean is over two spans
        (
            (0.2, 0.4, 0.2),
            0.3,
            0.2 / 0.3,
            "hr@5 of span 4 is 0.2; the mean of the 2 span(s) before is 0.3, 0.67 of it, "
            "less than refresh.min_ratio 0.8",
        ),
        ((0.2, None, 0.2), 0.2, 1.0, None),
        ((None, None, 0.2), None, None, None),
        ((0.0, 0.0, 0.0), 0.0, None, None),
        ((0.2, 0.2, None), 0.2, None, "hr@5 of span 4 is unknown: it has no tested users"),
    ],
)
def test_the_newest_span_against_those_before(values, mean, ratio, objection):
    quality = quality_of(_lines(*values), QualityConfig("hr@5", last_spans=2))
    assert quality.mean == (None if mean is None else pytest.approx(mean))
    assert quality.ratio == (None if ratio is None else pytest.approx(ratio))
    assert quality.objection == objection
    assert quality.span == len(values) + 1


def test_no_threshold_publishes_every_model():
    for values in ((0.2, 0.0), (0.2, None)):
        assert quality_of(_lines(*values), QualityConfig("hr@5", min_ratio=0)).objection is None


def test_nothing_is_tested():
    assert quality_of([], QualityConfig()) is None
