import math

import numpy as np
import pytest
import torch

from dist_imsr.model.transfer import Transfer


def _gelu(value):
    """gelu(x + 3) - 3 with the exact gelu."""
    shifted = value + 3.0
    return shifted * 0.5 * (1 + math.erf(shifted / math.sqrt(2))) - 3.0


def _reference(transfer, previous, tuned):
    """One row through convolutions, hidden and output layer, by loops."""
    state = {name: value.numpy() for name, value in transfer.state_dict().items()}
    scale, dim = float(state["scale"][0]), len(previous)
    product = previous * tuned
    product = product / np.linalg.norm(product) * math.sqrt(dim)
    image = np.stack([previous / scale, tuned / scale, product])
    filters, _, kernel = state["scan.weight"].shape
    found = []
    for one in range(filters):
        for place in range(dim):
            total = state["scan.bias"][one]
            for row in range(3):
                for tap in range(kernel):
                    at = place + tap - kernel // 2
                    if 0 <= at < dim:
                        total += state["scan.weight"][one, row, tap] * image[row, at]
            found.append(_gelu(total))
    hidden = [
        _gelu(float(weights @ found + bias))
        for weights, bias in zip(state["hidden.weight"], state["hidden.bias"], strict=True)
    ]
    return (state["output.weight"] @ hidden + state["output.bias"]) * scale


@pytest.mark.parametrize(("filters", "kernel", "hidden"), [(1, 3, 2), (4, 5, 9)])
def test_rows_equal_the_slow_reference(filters, kernel, hidden):
    torch.manual_seed(1)
    transfer = Transfer(6, filters, kernel, hidden).double()
    for parameter in transfer.parameters():
        parameter.data.normal_(std=0.4)
    transfer.scale.fill_(0.3)
    previous, tuned = torch.randn(2, 5, 6, dtype=torch.float64)
    found = transfer(previous, tuned).detach().numpy()
    wanted = [_reference(transfer, one.numpy(), other.numpy()) for one, other in zip(previous, tuned, strict=True)]
    np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_initial_weights_return_the_tuned_rows():
    transfer = Transfer(16, 5, 5, 16)
    transfer.scale.fill_(0.1)
    previous, tuned = 0.1 * torch.randn(2, 1000, 16)
    assert (transfer(previous, tuned) - tuned).norm() < 0.1 * tuned.norm()
    assert torch.equal(transfer(previous, tuned), transfer(torch.randn(1000, 16), tuned))  # independent of w_{t-1}


def test_initial_weights_with_fewer_hidden_units_are_a_projection():
    transfer, tuned = Transfer(16, 5, 5, 4), 0.2 * torch.randn(50, 16)
    once = transfer(tuned, tuned)
    assert torch.linalg.matrix_rank(once.detach(), rtol=1e-3) == 4
    torch.testing.assert_close(transfer(tuned, once), once, atol=2e-2, rtol=0)


def test_rows_of_zeros_are_finite():
    transfer, rows = Transfer(8, 2, 5, 8), torch.zeros(3, 8, requires_grad=True)
    transfer(rows, rows).sum().backward()
    assert rows.grad.isfinite().all()
