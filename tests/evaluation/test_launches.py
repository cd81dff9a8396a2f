import pytest
import torch

from dist_imsr.evaluation.launches import CANDIDATES, launch_on


@pytest.mark.parametrize(("capability", "products"), [((7, 5), "ieee"), ((8, 0), "bf16x3"), ((9, 0), "bf16x3")])
def test_devices_before_ampere_use_no_tensor_cores(monkeypatch, capability, products):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch_on(torch.device("cuda", 0)).products == products


def test_candidates_differ_and_include_the_default():
    assert launch_on(torch.device("cpu")) == CANDIDATES["default"]
    assert len(set(CANDIDATES.values())) == len(CANDIDATES)
