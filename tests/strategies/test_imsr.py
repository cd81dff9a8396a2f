from types import SimpleNamespace

import pytest
import torch

from dist_imsr.distributed.objective import Extraction, Scores
from dist_imsr.distributed.slots import Layout
from dist_imsr.model.interests import Interests, Start
from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from dist_imsr.model.scoring import Candidates, Scoring
from dist_imsr.model.trimmer import TrimmerConfig, project
from dist_imsr.strategies.imsr import IMSR, IMSRConfig


def _extraction(existing):
    then, now = torch.randn(2, 2, 3, 4)
    mask = torch.ones(2, 3, dtype=torch.bool)
    layout = Layout(counts=mask.sum(1), older=existing.sum(1))
    start = Start(Interests(then, mask))
    return Extraction(Interests(now, mask), start, existing, torch.randn(2, 4), torch.randn(3, 4), layout)


def _scores(extraction):
    targets, mask = torch.randn(2, 1, 4), torch.ones(2, 1, dtype=torch.bool)
    agreement = extraction.interests.vectors @ targets.mT
    return Scores(Candidates(torch.zeros(2), torch.zeros(2, 3)), targets, mask, agreement)


def _extracted(config, extraction):
    model = SimpleNamespace(extract=lambda batch, training, rho: extraction)
    return IMSR(config).extract(model, None)


def test_projection_is_switched_by_its_key():
    extraction = _extraction(torch.tensor([[True, True, False]] * 2))
    projected = _extracted(IMSRConfig(), extraction).interests
    torch.testing.assert_close(projected, project(extraction.interests, extraction.existing))
    assert _extracted(IMSRConfig(trimmer=TrimmerConfig(project=False)), extraction) is extraction
    no_existing = _extraction(torch.zeros(2, 3, dtype=torch.bool))
    assert _extracted(IMSRConfig(), no_existing).interests is no_existing.interests


def test_the_carried_evidence_is_the_key_rho():
    seen = []
    model = SimpleNamespace(extract=lambda batch, training, rho: seen.append(rho) or _extraction(torch.zeros(2, 3) > 0))
    IMSR(IMSRConfig(rho=1.5)).extract(model, None)
    assert seen == [1.5]


@pytest.mark.parametrize("name", RETAINERS)
def test_the_extra_loss_is_the_weighted_retention_loss(name):
    extraction = _extraction(torch.tensor([[True, True, False]] * 2))
    scores, scoring = _scores(extraction), Scoring(scale=3.0)
    imsr, model = IMSR(IMSRConfig(retainer=RetainerConfig(name, weight=3.0, tau=2.0))), SimpleNamespace(scoring=scoring)
    drift = Drift(
        before=extraction.start.interests.vectors,
        now=extraction.interests.vectors,
        existing=extraction.existing,
        mask=extraction.interests.mask,
        targets=scores.targets,
        agreement=scores.agreement / 3,
        target_mask=scores.target_mask,
        negatives=extraction.negatives,
    )
    loss = imsr.extra_loss(model, None, extraction, scores)
    assert loss == pytest.approx(3 * RETAINERS[name](drift, 2.0).item())
    no_existing = _extraction(torch.zeros(2, 3, dtype=torch.bool))
    assert imsr.extra_loss(model, None, no_existing, _scores(no_existing)) is None


def test_without_a_retainer_nothing_is_added():
    extraction = _extraction(torch.tensor([[True, True, False]] * 2))
    imsr = IMSR(IMSRConfig(retainer=RetainerConfig("none")))
    assert imsr.extra_loss(None, None, extraction, _scores(extraction)) is None


def test_impossible_values_are_refused():
    with pytest.raises(ValueError, match=r"strategy\.imsr\.rho"):
        IMSRConfig(rho=-1)
