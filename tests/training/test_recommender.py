import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec import JaggedTensor

from dist_imsr.data.batch import Batch
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.training.recommender import Recommender
from tests.ranks import run_ranks


def _recommender(topology, items, users):
    model = Recommender(
        *(ModelConfig(dim=8), CatalogueConfig(headroom=0.0), InterestStoreConfig(), EngineConfig()),
        items=items,
        bucket_offsets=[0, users],
        seed=0,
        topology=topology,
    )
    model.store.expand(torch.arange(users), 4, span=0)
    return model


def _batch(users, items):
    def jagged(*sequences):
        values = [item for sequence in sequences for item in sequence]
        return JaggedTensor(torch.tensor(values), lengths=torch.tensor([len(sequence) for sequence in sequences]))

    return Batch(
        users=torch.tensor([0, 3, users - 1]),
        history=jagged([1, 2, items - 1], [5], [7, 7]),
        targets=jagged([3], [4, 1], [items - 1]),
        negatives=jagged([0, 8, 9]),
        world_targets=4,
    )


class _Largest(TorchDispatchMode):
    """The largest tensor that an operator makes, views and in-place results left out."""

    numel = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        made = operator(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(tensor, torch.Tensor) and not any(value.alias_info for value in operator._schema.returns):
                self.numel = max(self.numel, tensor.numel())
        return made


def _largest(topology, items, users):
    model = _recommender(topology, items, users)
    batch = _batch(users, items)
    for _ in range(2):
        with _Largest() as largest:
            model.engine.update(model.loss(batch))
    return largest.numel


def test_a_step_costs_its_batch_and_not_the_catalogue_or_the_users():
    small, large = (run_ranks(1, _largest, *size)[0] for size in [(50, 20), (50_000, 20_000)])
    assert 0 < large <= 2 * small


def _snapshots(topology):
    model = _recommender(topology, 50, 20)
    batch = _batch(20, 50)
    fresh = model.snapshot()  # before the dense optimizer has moments
    model.engine.update(model.loss(batch))
    one = model.snapshot()
    model.engine.update(model.loss(batch))
    two = model.snapshot()
    model.restore(one)
    model.engine.update(model.loss(batch))
    again = model.snapshot()
    model.restore(fresh)
    model.engine.update(model.loss(batch))
    return one, two, again, model.snapshot()


def test_training_goes_on_from_a_snapshot_bit_for_bit():
    ((one, two, again, from_fresh),) = run_ranks(1, _snapshots)
    assert any(not torch.equal(a, b) for a, b in zip(one, two, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(two, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, from_fresh, strict=True))


def _unsharded(topology):
    """Loss and new rows against the same step in plain autograd."""
    from dist_imsr.model.interests import Interests
    from dist_imsr.model.scoring import attend, sampled_softmax

    model, batch = _recommender(topology, 50, 20), _batch(20, 50)
    table = model.catalogue.weight.clone().requires_grad_()
    start = model.store.gather(batch.users)
    history = table[batch.history.values()].split(batch.history.lengths().tolist())
    padded = torch.nn.utils.rnn.pad_sequence(history, batch_first=True)
    mask = torch.arange(padded.shape[1]) < batch.history.lengths().unsqueeze(1)
    interests = model.engine.module(padded, mask, start)
    owners = torch.tensor([0, 1, 1, 2])
    targets, negatives = table[batch.targets.values()], table[batch.negatives.values()]
    users = attend(Interests(interests.vectors[owners], interests.mask[owners]), targets)
    wanted = sampled_softmax(users, targets, negatives, batch.targets.values(), batch.negatives.values())
    (gradient,) = torch.autograd.grad(wanted, table)
    loss = model.loss(batch)
    model.engine.update(loss)
    moved, rate = model.catalogue.weight - table.detach(), model.catalogue.learning_rate
    scale = gradient.square().mean(1, keepdim=True).sqrt()
    return loss.item(), wanted.item(), moved, torch.where(scale > 0, -rate * gradient / (scale + 1e-8), 0.0)


def test_sharded_step_equals_plain_autograd():
    ((loss, wanted, moved, step),) = run_ranks(1, _unsharded)
    assert loss == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(moved, step, rtol=1e-4, atol=1e-6)
