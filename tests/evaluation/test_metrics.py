import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrec import JaggedTensor

from dist_imsr.data.batch import TestBatch as Targets
from dist_imsr.evaluation.metrics import Metrics, Ranks
from tests import reference

users = st.lists(
    st.tuples(st.lists(st.integers(2, 60), min_size=1, max_size=6), st.integers(0, 5), st.booleans()),
    min_size=1,
    max_size=8,
)


@settings(deadline=None)
@given(users, st.lists(st.integers(1, 25), min_size=1, max_size=3, unique=True), st.booleans())
def test_metrics_equal_the_definitions(users, tops, unseen_known):
    ranks = [[rank / 2 for rank in ranks] for ranks, *_ in users]  # ties give halves
    last = [place % len(own) for own, (_, place, _) in zip(ranks, users, strict=True)]
    new = [flag for *_, flag in users]
    lengths = torch.tensor([len(own) for own in ranks])
    first = lengths.cumsum(0) - lengths
    batch = Targets(
        users=torch.arange(len(users)),
        targets=JaggedTensor(torch.zeros(int(lengths.sum()), dtype=torch.int64), lengths=lengths),
        last=first + torch.tensor(last),
        last_is_new=torch.tensor(new),
    )
    metrics = Metrics(tops)
    among_all = torch.tensor([rank for own in ranks for rank in own])
    unseen = (among_all / 2).clamp(min=1)
    each = metrics.add(batch, Ranks(among_all, unseen if unseen_known else None))
    found = metrics.result()

    latest = [own[place] for own, place in zip(ranks, last, strict=True)]
    wanted = {"users": len(users)}
    for top in tops:
        hits = np.array([rank <= top for rank in latest])
        own = {
            f"hr@{top}": hits,
            f"ndcg@{top}": [reference.ndcg([rank], top) for rank in latest],
            f"hr@{top}_any": [min(own) <= top for own in ranks],
            f"ndcg@{top}_any": [reference.ndcg(own, top) for own in ranks],
            f"recall@{top}": [sum(rank <= top for rank in own) / len(own) for own in ranks],
            f"mrr@{top}": [1 / rank if rank <= top else 0 for rank in latest],
        }
        for name, values in own.items():
            np.testing.assert_allclose(each[name], values)
            wanted[name] = np.mean(values)
        for name in (f"hr@{top}", f"ndcg@{top}"):
            values = np.array(own[name], float)
            wanted[f"{name}_new"] = values[np.array(new)].mean() if any(new) else None
            wanted[f"{name}_existing"] = values[~np.array(new)].mean() if not all(new) else None
        for name, gain in (
            ("hr", lambda rank, top: rank <= top),
            ("ndcg", lambda rank, top: reference.ndcg([rank], top)),
        ):
            values = [gain(float(unseen[int(place)]), top) for place in batch.last] if unseen_known else []
            values = [value if flag else math.nan for value, flag in zip(values, new, strict=False)]
            if unseen_known:
                np.testing.assert_allclose(each[f"{name}@{top}_unseen"], values)
            wanted[f"{name}@{top}_unseen"] = np.nanmean(values) if unseen_known and any(new) else None
    assert found == pytest.approx(wanted)


def test_no_users():
    assert Metrics([20]).result()["hr@20"] is None


def test_perfect_ranking_has_ndcg_one():
    batch = Targets(
        users=torch.tensor([0]),
        targets=JaggedTensor(torch.tensor([5, 6, 7]), lengths=torch.tensor([3])),
        last=torch.tensor([2]),
        last_is_new=torch.tensor([False]),
    )
    metrics = Metrics([20])
    metrics.add(batch, Ranks(torch.tensor([1.0, 2.0, 3.0])))
    assert metrics.result()["ndcg@20_any"] == pytest.approx(1)
    assert metrics.result()["ndcg@20"] == pytest.approx(1 / math.log2(4))
