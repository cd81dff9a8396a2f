"""The contents of a checkpoint: the model, the strategy's state, and the progress of the run.

Nothing else of a run has a state. Its random numbers are functions of seed, span, epoch, step, bucket and user; the
retainer's teachers are the stored interests, which change only when a span ends, as do the states of life-long base
models.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from dist_imsr import devices
from dist_imsr.data.user_ids import OwnedUsers
from dist_imsr.distributed.interest_store import InterestStore, StoreSnapshot
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.evaluation.repeats import Repeats
from dist_imsr.strategies import Strategy
from dist_imsr.strategies.detection import Detection, concatenate
from dist_imsr.strategies.growth import Growth
from dist_imsr.strategies.progress import Best, Progress
from dist_imsr.training.export import column
from dist_imsr.training.storage import Stored, Tables

_STRATEGY = "companion"  # the name of the strategy's state in checkpoints
_NUMBERS = (
    "span",
    "epoch",
    "step",
    "steps",
    "seconds",
    "losses",
    "targets",
    "repeats",
    "repeat_gains",
    "untested",
    "lines",
)


def pack(
    model: Recommender, strategy: Strategy, progress: Progress
) -> tuple[dict[str, ShardRows], Tables, dict[str, Any]]:
    """Copies the contents of a checkpoint.

    Args:
        model: this rank's part.
        strategy: with its state.
        progress: the position of the run.

    Returns:
        Tensors and tables that later training does not change, to be read after `dist_imsr.devices.copies_done`; and
        keys for the manifest.
    """
    best, store, rank, ranks = progress.best, model.store, model.topology.rank, model.topology.world_size
    users, snapshot = BucketSlices(store.owned), best.snapshot
    if snapshot is not None and (best.epoch + 1, 0) == (progress.epoch, progress.step):
        kept, now, interests = "this", snapshot.tensors, snapshot.store  # nothing has changed since
    else:
        kept, interests = "none", store.snapshot()
        now = {name: rows.host_copy() for name, rows in model.tensors().items()}
    tensors = {f"now.{name}": rows for name, rows in now.items()}
    tables = users.interests("interests", store, interests)
    if snapshot is not None and kept != "this":
        kept = "apart"
        tensors |= {f"best.{name}": rows for name, rows in snapshot.tensors.items()}
        if snapshot.store.offsets is not store.offsets or store.slots.queries.numel():
            kept = "interests apart"
            tables |= users.interests("best_interests", store, snapshot.store)
    tables |= users.detections("detections", progress.detections)
    state = strategy.state()
    tensors |= {f"{_STRATEGY}.{name}": rows.host_copy() for name, rows in state.items()}
    growths = {"growth": progress.growth, "best_growth": best.growth}
    tensors |= {name: ShardRows(growth.flat().unsqueeze(0), rank, ranks) for name, growth in growths.items()}
    facts = {
        "world_size": ranks,
        "items": model.catalogue.items,
        "capacity": model.catalogue.capacity,
        "users_per_bucket": store.users_per_bucket,
        "updates": model.catalogue.steps,
        "best_updates": 0 if snapshot is None else snapshot.updates,
        _STRATEGY: bool(state),
        "progress": {name: getattr(progress, name) for name in _NUMBERS},
        "detections": len(progress.detections),
        "best": {name: getattr(best, name) for name in ("epoch", "quality", "losses", "detections")},
        "snapshot": kept,
    }
    return tensors, tables, facts


def unpack(stored: Stored, model: Recommender, strategy: Strategy, group: dist.ProcessGroup) -> Progress:
    """Loads a checkpoint into a model and its strategy, on any number of ranks; collective.

    Args:
        stored: the checkpoint.
        model: this rank's part, with the number of items and the store's size in the checkpoint.
        strategy: its state is loaded as well.
        group: a gloo group.

    Returns:
        The position of the run.
    """
    facts, users = stored.manifest, BucketSlices(model.store.owned)
    growths = {
        name: ShardRows(torch.empty(stored.shape(name), dtype=torch.float64)) for name in ("growth", "best_growth")
    }
    if facts[_STRATEGY]:
        strategy.initialize_state(model)
    state = {f"{_STRATEGY}.{name}": rows for name, rows in strategy.state().items()}
    stored.load({f"now.{name}": rows for name, rows in model.tensors().items()} | growths | state, group)
    model.catalogue.steps = facts["updates"]
    users.load(stored, "interests", model)
    snapshot = None if facts["snapshot"] == "none" else model.snapshot()
    if snapshot is not None and facts["snapshot"] != "this":
        devices.synchronize(model.topology.device)  # the copy that is in its place now must have arrived
        stored.load({f"best.{name}": rows for name, rows in snapshot.tensors.items()}, group)
        if facts["snapshot"] == "interests apart":
            users.load(stored, "best_interests", model)
            snapshot = snapshot._replace(store=model.store.snapshot())
            users.load(stored, "interests", model)
        snapshot = snapshot._replace(updates=facts["best_updates"])
    # Possibly more ranks saved theirs than there are now: each rank sums a part of them.
    mine = slice(model.topology.rank, None, model.topology.world_size)
    growth, best_growth = (Growth.from_flat(rows.values[mine].sum(0)) for rows in growths.values())
    best = Best(**(facts["best"] | {"losses": tuple(facts["best"]["losses"])}), growth=best_growth, snapshot=snapshot)
    numbers = facts["progress"] | {"losses": tuple(facts["progress"]["losses"])}
    numbers["repeats"] = Repeats(*numbers["repeats"])
    detections = users.read_detections(stored, "detections", facts["detections"])
    return Progress(**numbers, growth=growth, detections=detections, best=best)


class BucketSlices:
    """A rank's users, bucket by bucket, so that any number of ranks can read what it writes.

    Args:
        owned: the rank's users.
    """

    def __init__(self, owned: OwnedUsers) -> None:
        self.owned = owned

    def interests(self, folder: str, store: InterestStore, snapshot: StoreSnapshot) -> Tables:
        """The interests of a snapshot as tables by path, one for each bucket."""
        slots, offsets = store.slots_of(snapshot), snapshot.offsets.cpu()
        owners = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff())
        columns = {"born": slots.birth_span, "vector": slots.values}
        if slots.queries.shape[1]:
            columns |= {"query": slots.queries, "moment": slots.moments}
        if slots.states.shape[1]:
            columns["state"] = slots.states
        return self._write(folder, self.owned.users(owners), columns)

    def load(self, stored: Stored, folder: str, model: Recommender) -> None:
        """Loads a folder of `interests` into the model's store."""
        read = self._read(stored, folder)
        names = {"values": "vector", "birth_span": "born", "queries": "query", "moments": "moment", "states": "state"}
        columns = {name: read[key] for name, key in names.items() if key in read}
        model.store.load(self.owned.rows(read["user"]), **columns)

    def detections(self, folder: str, detections: list[Detection]) -> Tables:
        """Results of the detector as tables by path, one for each bucket."""
        if not detections:
            return {}
        sizes = torch.tensor([len(one.users) for one in detections])
        number = torch.arange(len(detections), dtype=torch.int16).repeat_interleave(sizes)
        users, fit, puzzled = concatenate(detections)
        return self._write(folder, users.cpu(), {"looked": number, "fit": fit, "puzzled": puzzled})

    def read_detections(self, stored: Stored, folder: str, count: int) -> list[Detection]:
        """The results that `detections` saved, ``count`` of them."""
        if not count:
            return []
        read = self._read(stored, folder)
        masks = [read["looked"] == number for number in range(count)]
        return [
            Detection(users=read["user"][mask], fit=read["fit"][mask], puzzled=read["puzzled"][mask]) for mask in masks
        ]

    def _write(self, folder: str, users: torch.Tensor, columns: dict[str, torch.Tensor]) -> Tables:
        """Copies columns into tables by bucket, in which the users, on the host, keep their order."""
        bucket = (users % self.owned.n_buckets - self.owned.buckets.start).numpy().astype(np.uint16)  # a radix sort
        order = torch.from_numpy(bucket.argsort(kind="stable"))
        sizes = np.bincount(bucket, minlength=len(self.owned.buckets)).tolist()
        sorted_by_bucket = {
            name: devices.copy_to_host(values, order).split(sizes)
            for name, values in {"user": users, **columns}.items()
        }
        return {
            path: pa.record_batch({name: column(parts[place]) for name, parts in sorted_by_bucket.items()})
            for place, path in enumerate(self._paths(folder))
        }

    def _read(self, stored: Stored, folder: str) -> dict[str, torch.Tensor]:
        """Columns of all tables in the order of users; those of a user keep their order."""
        tables = [stored.table(path) for path in self._paths(folder)]
        order = _tensor(table["user"] for table in tables).argsort(stable=True)
        return {name: _tensor(table[name] for table in tables)[order] for name in tables[0].schema.names}

    def _paths(self, folder: str) -> list[str]:
        return [f"{folder}/bucket={bucket:03d}.arrow" for bucket in self.owned.buckets]


def _tensor(parts: Iterable[pa.Array]) -> torch.Tensor:
    arrays = []
    for part in parts:
        listed = pa.types.is_fixed_size_list(part.type)
        flat = (part.values if listed else part).to_numpy(zero_copy_only=False)
        arrays.append(flat.reshape(-1, part.type.list_size) if listed else flat)
    return torch.from_numpy(np.concatenate(arrays))
