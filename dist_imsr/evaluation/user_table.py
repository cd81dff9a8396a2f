"""The table of users' own metrics, for paired tests."""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import torch

from dist_imsr.data.batch import TestBatch
from dist_imsr.data.dataset import Dataset


def user_table(
    dataset: Dataset, batch: TestBatch, ranks: torch.Tensor, values: Mapping[str, torch.Tensor], tops: Sequence[int]
) -> pa.Table:
    """One row for each tested user.

    Args:
        dataset: has the raw ids.
        batch: the users and their targets.
        ranks: ``[A]``, of all targets; those beyond the largest N are null.
        values: the users' metrics by name, ``[B]`` each; NaN becomes null.
        tops: every N.
    """
    items, last = batch.targets.values()[batch.last], ranks[batch.last].numpy(force=True)
    columns = {
        "user": dataset.raw_ids("users", batch.users.numpy(force=True)),
        "item": dataset.raw_ids("items", items.numpy(force=True)),
        "rank": pa.array(last, mask=last > max(tops)),
        "new": batch.last_is_new.numpy(force=True),
    }
    found = {name: pa.array(column.numpy(force=True), from_pandas=True) for name, column in values.items()}
    return pa.table(columns | found)
