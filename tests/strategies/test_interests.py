import pytest
import torch

from dist_imsr.model.interests import Interests
from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig, project
from dist_imsr.strategies.interests import InterestPolicy


def _interests():
    return Interests(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool))


def _drift(existing):
    before, now = torch.randn(2, 2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    targets, asked = torch.randn(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)
    return Drift(before, now, existing, mask, targets, now @ targets.mT, asked, torch.randn(3, 4))


def test_plain_changes_nothing():
    policy, interests = InterestPolicy.plain(), _interests()
    existing = torch.tensor([[True, True, False]] * 2)
    assert policy.revise(interests, existing) is interests
    assert policy.penalty(_drift(existing)) == 0
    assert policy.rho == 0
    assert not policy.detector.enabled
    assert not policy.trimmer.trim


def test_projection_is_switched_by_its_key():
    interests, existing = _interests(), torch.tensor([[True, True, False]] * 2)
    torch.testing.assert_close(InterestPolicy().revise(interests, existing), project(interests, existing))
    assert InterestPolicy(trimmer=TrimmerConfig(project=False)).revise(interests, existing) is interests
    assert InterestPolicy().revise(interests, torch.zeros(2, 3, dtype=torch.bool)) is interests


@pytest.mark.parametrize("name", RETAINERS)
def test_penalty_is_the_weighted_loss(name):
    drift = _drift(torch.tensor([[True, True, False]] * 2))
    policy = InterestPolicy(retainer=RetainerConfig(name, weight=3.0, tau=2.0))
    assert policy.penalty(drift) == pytest.approx(3 * RETAINERS[name](drift, 2.0).item())
    assert policy.penalty(_drift(torch.zeros(2, 3, dtype=torch.bool))) == 0


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"strategy\.imsr\.rho"):
        InterestPolicy(rho=-1)
