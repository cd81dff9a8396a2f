"""The generated data sets have the sizes of the paper's Table II."""

from pathlib import Path

import numpy as np
import pytest

from dist_imsr.config import parse
from dist_imsr.data.drift import PlantedDrift
from dist_imsr.data.prepare import PrepareConfig

CONFIGS = Path(__file__).parents[2] / "configs"
# Users, items, and interactions by span.
TABLE_II = {
    "electronics": (87_912, 234_621, [1_689_188, 224_421, 428_149, 329_194, 129_482, 481_491, 196_451]),
    "clothing": (285_464, 376_859, [5_748_920, 864_371, 574_922, 957_329, 1_134_792, 943_422, 1_274_084]),
    "books": (459_133, 313_966, [8_898_041, 1_345_234, 1_324_545, 1_852_324, 1_593_281, 1_349_281, 1_433_376]),
    "taobao": (976_779, 1_708_530, [85_384_110, 12_329_481, 14_481_123, 22_129_123, 9_329_128, 14_238_129, 12_877_126]),
}


def _drift(name):
    config = parse(PrepareConfig, ["--config", str(CONFIGS / f"scale_{name}.yaml"), "--output", "unused"])
    return PlantedDrift(config.drift, config.alpha, config.spans)


@pytest.mark.parametrize("name", TABLE_II)
def test_the_configuration_equals_the_table(name):
    users, items, interactions = TABLE_II[name]
    drift = _drift(name)
    assert (drift.config.users, drift.config.interactions) == (users, interactions)
    assert items < drift.config.items < 1.12 * items


@pytest.mark.parametrize("name", ["electronics"])
def test_the_generated_data_equal_the_table(name):
    users, items, interactions = TABLE_II[name]
    drift = _drift(name)
    active, met, counts = 0, np.zeros(drift.config.items, bool), np.zeros(len(interactions))
    for chunk in range(drift.chunks):
        spans = list(drift.events(chunk))
        active += len(np.unique(np.concatenate([who for who, _, _ in spans])))
        counts += [len(what) for _, what, _ in spans]
        for _, what, _ in spans:
            met[what] = True
    assert active == pytest.approx(users, rel=0.002)
    assert met.sum() == pytest.approx(items, rel=0.005)
    assert counts == pytest.approx(interactions, rel=0.02)
