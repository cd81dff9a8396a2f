import math

import pytest

from dist_imsr.strategies.early_stopping import EarlyStopping, describe_epoch, describe_lack
from dist_imsr.strategies.progress import Best, Progress
from dist_imsr.strategies.training_config import TrainingConfig

_NAN = (math.nan, math.nan)


def _stops(epoch, best, **config):
    stopping = EarlyStopping(TrainingConfig(**({"epochs": 9, "incremental_epochs": 4, "patience": 2} | config)), None)
    return stopping.stops(Progress(epoch=epoch, best=best), pretraining=False)


def test_a_span_stops_after_its_patience_or_its_last_epoch():
    best = Best(epoch=0, quality=0.5, losses=(1.0, 0.0))
    assert [_stops(epoch, best) for epoch in range(5)] == [False, False, False, True, True]
    assert [_stops(epoch, best, patience=0) for epoch in range(5)] == [False] * 4 + [True]


def test_a_span_without_validation_targets_trains_all_epochs():
    for epoch in range(1, 4):  # each epoch counts as the best
        assert not _stops(epoch, Best(epoch=epoch - 1, losses=(1.0, 0.0)))
    assert _stops(4, Best(epoch=3, losses=(1.0, 0.0)))


@pytest.mark.parametrize("quality", [0.5, math.nan])
def test_a_span_without_training_targets_takes_one_epoch(quality):
    assert not _stops(0, Best())
    assert _stops(1, Best(epoch=0, quality=quality, losses=_NAN))


def test_descriptions_never_show_nan():
    assert describe_epoch((1.25, 0.0), "ndcg", 0.5, better=True) == "loss 1.2500, validation ndcg 0.5000 (best)"
    assert describe_epoch((1.25, 0.0), "ndcg", 0.5, better=False) == "loss 1.2500, validation ndcg 0.5000"
    assert describe_epoch((1.25, 0.0), "ndcg", math.nan, better=True) == "loss 1.2500, no validation targets"
    assert describe_epoch(_NAN, "mrr", math.nan, better=True) == "no targets to train on, no validation targets"


def test_what_a_span_lacks():
    assert describe_lack(Progress(span=3, epoch=2, best=Best(quality=0.5, losses=(1.0, 0.0)))) is None
    assert "span 3 has no validation targets" in describe_lack(Progress(3, epoch=2, best=Best(losses=(1.0, 0.0))))
    assert "span 3 has nothing to train on" in describe_lack(Progress(3, epoch=1, best=Best(quality=0.5, losses=_NAN)))
