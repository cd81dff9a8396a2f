import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchrec import JaggedTensor

from dist_imsr import devices
from dist_imsr.data.batch import Batch
from dist_imsr.distributed.catalogue import CatalogueConfig
from dist_imsr.distributed.engine import EngineConfig
from dist_imsr.distributed.interest_store import InterestStoreConfig
from dist_imsr.distributed.objective import NextItem, score_batch
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.model.extractors import ModelConfig
from dist_imsr.model.scoring import candidates, sampled_softmax
from tests.devices import on
from tests.late_copies import late_copies
from tests.ranks import on_devices, run_ranks


def _recommender(topology, items, users, base="comirec_dr"):
    model = Recommender(
        model=ModelConfig(base, dim=8),
        catalogue=CatalogueConfig("rowwise_adagrad", headroom=0.0),
        store=InterestStoreConfig(),
        engine=EngineConfig(),
        items=[items],
        n_buckets=1,
        users_per_bucket=users,
        seed=0,
        topology=topology,
    )
    model.store.expand(torch.arange(users), 4, span=0)
    return model


def _batch(users, items, device="cpu"):
    def jagged(*sequences):
        values = [item for sequence in sequences for item in sequence]
        return JaggedTensor(torch.tensor(values), lengths=torch.tensor([len(sequence) for sequence in sequences]))

    return Batch(
        span=0,
        users=torch.tensor([0, 3, users - 1]),
        history=jagged([1, 2, items - 1], [5], [7, 7]),
        targets=jagged([3], [4, 1], [items - 1]),
        negatives=jagged([0, 8, 9]),
        world_targets=4,
    ).to(torch.device(device))


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
            model.train_step(batch)
    return largest.numel


def test_a_step_costs_by_its_batch_and_not_by_the_catalogue_or_the_users():
    small, large = (run_ranks(1, _largest, *size)[0] for size in [(50, 20), (50_000, 20_000)])
    assert 0 < large <= 2 * small


def _steps(topology, base, prefetch):
    """Steps of the same users, each of which updates their queries."""
    model, batches = _recommender(topology, 50, 20, base), [_batch(20, 50) for _ in range(4)]
    losses = [
        model.train_step(batch, following if prefetch else None)
        for batch, following in itertools.zip_longest(batches, batches[1:])
    ]
    return torch.stack(losses), {name: rows.host_copy().values for name, rows in model.tensors().items()}


@pytest.mark.parametrize("base", ["comirec_dr", "comirec_sa"])
def test_prefetching_changes_nothing(base):
    (prefetched, state), (plain, same) = (run_ranks(1, _steps, base, prefetch)[0] for prefetch in (True, False))
    assert torch.equal(prefetched, plain)
    assert state.keys() == same.keys()
    assert all(torch.equal(state[name], same[name]) for name in same)


def _snapshots(topology, base):
    model = _recommender(topology, 50, 20, base)
    batch = _batch(20, 50, topology.device)
    fresh = model.snapshot()  # before the first update
    model.train_step(batch)
    one = model.snapshot()
    model.train_step(batch)
    two = model.snapshot()
    model.restore(one)
    model.train_step(batch)
    again = model.snapshot()
    model.restore(fresh)
    model.train_step(batch)
    last = model.snapshot()
    devices.synchronize(topology.device)
    return [
        [
            torch.tensor(taken.updates),
            *(on("cpu", value) for value in (*(rows.values for rows in taken.tensors.values()), *taken.store)),
        ]
        for taken in (one, two, again, last)
    ]


@on_devices("base", cpu=["comirec_dr", "comirec_sa"], cuda=["comirec_dr", "comirec_sa"])
def test_training_continues_from_a_snapshot_bit_for_bit(device, base):
    ((one, two, again, from_fresh),) = run_ranks(1, _snapshots, base, device=device)
    assert (int(one[0]), int(two[0])) == (1, 2)
    assert any(not torch.equal(a, b) for a, b in zip(one[1:], two[1:], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(two, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, from_fresh, strict=True))


def _changed_after_copies(topology, change):
    """The model's tensors, and their copies, which are late, after one of its parts was changed."""
    model = _recommender(topology, 50, 20)
    before = {name: rows.values.detach().clone() for name, rows in model.tensors().items()}
    with late_copies():
        copied = {name: rows.values for name, rows in model.snapshot().tensors.items()}
        if change == "step":
            model.train_step(_batch(20, 50))
        elif change == "table":
            model.catalogue.set_column(0, range(50), torch.ones(50))
        else:
            model.engine.assign({name: weight + 1 for name, weight in model.extractor.named_parameters()})
    return before, copied, {name: rows.values.detach() for name, rows in model.tensors().items()}


@pytest.mark.parametrize("change", ["step", "table", "dense weights"])
def test_parameters_change_after_copies_of_them_are_made(change):
    before, copied, after = run_ranks(1, _changed_after_copies, change)[0]
    assert all(torch.equal(copied[name], before[name]) for name in before)
    assert not all(torch.equal(after[name], before[name]) for name in before)


def _histories(table, batch):
    """Each user's rows of the table, and ones in their places."""
    rows = table[batch.history.values()].split(batch.history.lengths().tolist())
    return rows, [torch.ones(len(row), dtype=torch.bool, device=table.device) for row in rows]


def _queries(topology):
    """The store's queries before and after a step, and their gradient in plain autograd."""
    model, batch = _recommender(topology, 50, 20, "comirec_sa"), _batch(20, 50, topology.device)
    before = model.store.slots.queries.clone()
    gradients, real = [], model.store.update_queries
    model.store.update_queries = lambda users, gradient, span: gradients.append(gradient) or real(users, gradient, span)
    with torch.no_grad():
        table = model.catalogue.flushed_weight().clone()
    start = model.extract(batch).start
    padded, mask = (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in _histories(table, batch))
    queries = start.queries.clone().requires_grad_()
    interests = model.extractor(padded[..., : model.config.dim], mask, start._replace(queries=queries))
    interests = model.scoring.queries(interests)
    scores = score_batch(batch, interests, table[batch.targets.values()], table[batch.negatives.values()])
    loss = sampled_softmax(scores.candidates)
    (gradient,) = torch.autograd.grad(loss / batch.world_targets, queries)
    model.train_step(batch)
    torch.testing.assert_close(gradients[0], gradient)
    slots = on("cpu", model.store.slots)
    return on("cpu", before), slots.queries, slots.moments, on("cpu", gradient), model.store.config


def test_queries_are_trained_by_rowwise_adagrad_for_their_users_alone(device):
    ((before, after, moments, gradient, config),) = run_ranks(1, _queries, device=device)
    touched = torch.zeros(20, dtype=torch.bool)
    touched[[0, 3, 19]] = True
    before, after = before.view(20, 4, -1), after.view(20, 4, -1)
    assert torch.equal(before[~touched], after[~touched])
    square = gradient.square().mean(-1, keepdim=True)
    step = config.query_learning_rate * gradient / (square.sqrt() + 1e-8)
    torch.testing.assert_close(before[touched] - after[touched], step, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(moments.view(20, 4, 1)[touched], square, rtol=1e-3, atol=1e-12)
    assert not moments.view(20, 4, 1)[~touched].any()


def _unsharded(topology):
    """The loss and the change of the table, and those of the same step in plain autograd."""
    from dist_imsr.model.interests import Interests, Start
    from dist_imsr.model.scoring import attend

    model, batch = _recommender(topology, 50, 20), _batch(20, 50, topology.device)
    table = model.catalogue.flushed_weight().clone().requires_grad_()
    start = model.store.gather(batch.users)
    history = table[batch.history.values()].split(batch.history.lengths().tolist())
    padded = torch.nn.utils.rnn.pad_sequence(history, batch_first=True)
    mask = torch.arange(padded.shape[1], device=topology.device) < batch.history.lengths().unsqueeze(1)
    interests = model.extractor(padded[..., : model.config.dim], mask, Start(start))
    owners = torch.tensor([0, 1, 1, 2], device=topology.device)
    targets, negatives = table[batch.targets.values()], table[batch.negatives.values()]
    own = model.scoring.queries(Interests(interests.vectors[owners], interests.mask[owners]))
    users = attend(own, own.vectors @ targets.unsqueeze(-1)).squeeze(1)
    wanted = sampled_softmax(candidates(users, targets, negatives, batch.targets.values(), batch.negatives.values()))
    (gradient,) = torch.autograd.grad(wanted, table)
    extraction = model.extract(batch)
    scores = score_batch(batch, model.scoring.queries(extraction.interests), extraction.targets, extraction.negatives)
    assert NextItem().extra_loss(model, batch, extraction, scores) is None
    loss = sampled_softmax(scores.candidates)
    model.engine.update(loss)
    change, rate = model.catalogue.flushed_weight() - table.detach(), model.catalogue.learning_rate
    scale = gradient.square().mean(1, keepdim=True).sqrt()
    step = torch.where(scale > 0, -rate * gradient / (scale + 1e-8), 0.0)
    return loss.item(), wanted.item(), on("cpu", change), on("cpu", step)


def test_sharded_step_equals_plain_autograd(device):
    ((loss, wanted, change, step),) = run_ranks(1, _unsharded, device=device)
    assert loss == pytest.approx(wanted, rel=1e-6)
    torch.testing.assert_close(change, step, rtol=1e-4, atol=1e-6)
