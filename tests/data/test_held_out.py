import numpy as np

from dist_imsr.data.held_out import held_out


def test_held_out():
    assert held_out(np.arange(6)).tolist() == [0, 0, 0, 2, 2, 2]
