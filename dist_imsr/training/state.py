"""Where a run stands, and how a checkpoint holds it.

Nothing else of a run has a state. Its random numbers are functions of seed, span, epoch, step, bucket and user; the
retainer's teachers are the stored interests, which move only when a span ends, as life-long base models' states do;
what a strategy keeps beside the model is its companion's state.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist

from dist_imsr.distributed.interest_store import InterestStore, Slots, StoreSnapshot
from dist_imsr.distributed.rows import ShardRows
from dist_imsr.training.checkpoint import name_of
from dist_imsr.training.detection import Detection
from dist_imsr.training.export import column
from dist_imsr.training.growth import Growth
from dist_imsr.training.recommender import Recommender, Snapshot
from dist_imsr.training.storage import Stored, Tables

_HOST = torch.device("cpu")
_NUMBERS = ("span", "epoch", "step", "steps", "seconds", "losses", "targets", "lines")


@dataclass
class Best:
    """The epoch of a span that is kept, so far.

    Args:
        epoch: its number.
        quality: what validation measured.
        losses: its mean losses per target: Eq. 6, and the retainer's.
        growth: the span's account of interests when it ended.
        detections: how many times the detector had looked.
        snapshot: the model when it ended; None keeps the last state.
    """

    epoch: int = 0
    quality: float = math.nan
    losses: tuple[float, float] = (math.nan, math.nan)
    growth: Growth = field(default_factory=Growth)
    detections: int = 0
    snapshot: Snapshot | None = None

    def record(self) -> dict[str, float | None]:
        """The keys of metrics.jsonl.

        Returns:
            Numbers by key; None without targets.
        """
        told = zip(("loss", "retention_loss", "validation"), (*self.losses, self.quality), strict=True)
        return {name: None if math.isnan(value) else value for name, value in told}


@dataclass
class Progress:
    """Where a run stands between two steps.

    Args:
        span: at hand.
        epoch: at hand; those before are trained and validated.
        step: the next one of the epoch.
        steps: trained since the run began.
        seconds: for which the span was trained.
        losses: of the epoch, summed over its targets so far: Eq. 6, and the retainer's.
        targets: of the epoch so far.
        growth: the span's account of interests.
        detections: what the detector found in the span, one for each time that it looked.
        best: the epoch that is kept.
        lines: of metrics.jsonl.
    """

    span: int = 0
    epoch: int = 0
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)
    targets: int = 0
    growth: Growth = field(default_factory=Growth)
    detections: list[Detection] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    lines: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of a checkpoint that is written here."""
        return name_of(self.span, self.epoch, self.step)

    @property
    def begun(self) -> bool:
        """Whether some of the span is trained."""
        return (self.epoch, self.step) != (0, 0)

    def at(self, span: int) -> "Progress":
        """Where the run stands when it turns to a span.

        Args:
            span: the span.

        Returns:
            A new one.
        """
        return Progress(span, steps=self.steps, lines=self.lines)


def packed(
    model: Recommender, progress: Progress, bucket_offsets: list[int], buckets: range
) -> tuple[dict[str, ShardRows], Tables, dict[str, Any]]:
    """Copies everything that a checkpoint holds.

    Args:
        model: this rank's part.
        progress: where it stands.
        bucket_offsets: the first user of each bucket, and the number of users.
        buckets: those of this rank.

    Returns:
        Tensors and tables, which training does not change any more, and facts for the manifest.
    """
    best, store, rank, ranks = progress.best, model.store, model.topology.rank, model.topology.world_size
    cut = _Cut(bucket_offsets, buckets)
    snapshot = best.snapshot
    if snapshot is not None and (best.epoch + 1, 0) == (progress.epoch, progress.step):
        kept, now, interests = "this", snapshot.tensors, snapshot.store  # nothing has changed since
    else:
        kept, interests = "none", store.snapshot()
        now = {name: rows.copied(_HOST) for name, rows in model.tensors().items()}
    tensors = {f"now.{name}": rows for name, rows in now.items()}
    tables = cut.interests("interests", store, interests)
    if snapshot is not None and kept != "this":
        kept = "apart"
        tensors |= {f"best.{name}": rows for name, rows in snapshot.tensors.items()}
        if snapshot.store.offsets is not store.offsets or store.slots.queries.numel():
            kept = "interests apart"
            tables |= cut.interests("best_interests", store, snapshot.store)
    tables |= cut.detections("detections", progress.detections)
    tensors |= {f"companion.{name}": rows.copied(_HOST) for name, rows in model.companion.state().items()}
    accounts = {"growth": progress.growth, "best_growth": best.growth}
    tensors |= {name: ShardRows(account.flat().unsqueeze(0), rank, ranks) for name, account in accounts.items()}
    facts = {
        "world_size": ranks,
        "items": model.catalogue.items,
        "updates": model.catalogue.steps,
        "best_updates": 0 if snapshot is None else snapshot.updates,
        "companion": model.companion.awake,
        "progress": {name: getattr(progress, name) for name in _NUMBERS},
        "detections": len(progress.detections),
        "best": {name: getattr(best, name) for name in ("epoch", "quality", "losses", "detections")},
        "snapshot": kept,
    }
    return tensors, tables, facts


def unpack(
    stored: Stored, model: Recommender, bucket_offsets: list[int], buckets: range, group: dist.ProcessGroup
) -> Progress:
    """Puts a checkpoint in the place of a model's state, on any number of ranks; collective.

    Args:
        stored: the checkpoint.
        model: this rank's part, with as many items as the checkpoint knows.
        bucket_offsets: the first user of each bucket, and the number of users.
        buckets: those of this rank.
        group: speaks gloo.

    Returns:
        Where the run stands.
    """
    facts, cut = stored.manifest, _Cut(bucket_offsets, buckets)
    accounts = {
        name: ShardRows(torch.empty(stored.shape(name), dtype=torch.float64)) for name in ("growth", "best_growth")
    }
    if facts["companion"]:
        model.companion.wake()
    beside = {f"companion.{name}": rows for name, rows in model.companion.state().items()}
    stored.load({f"now.{name}": rows for name, rows in model.tensors().items()} | accounts | beside, group)
    model.catalogue.steps = facts["updates"]
    cut.load(stored, "interests", model)
    snapshot = None if facts["snapshot"] == "none" else model.snapshot()
    if snapshot is not None and facts["snapshot"] != "this":
        stored.load({f"best.{name}": rows for name, rows in snapshot.tensors.items()}, group)
        if facts["snapshot"] == "interests apart":
            cut.load(stored, "best_interests", model)
            snapshot = snapshot._replace(store=model.store.snapshot())
            cut.load(stored, "interests", model)
        snapshot = snapshot._replace(updates=facts.get("best_updates", facts["updates"]))  # as older checkpoints did
    # The ranks of today share the accounts of those of then.
    mine = slice(model.topology.rank, None, model.topology.world_size)
    growth, best_growth = (Growth.of(rows.values[mine].sum(0)) for rows in accounts.values())
    best = Best(**(facts["best"] | {"losses": tuple(facts["best"]["losses"])}), growth=best_growth, snapshot=snapshot)
    numbers = facts["progress"] | {"losses": tuple(facts["progress"]["losses"])}
    found = cut.read_detections(stored, "detections", facts["detections"])
    return Progress(**numbers, growth=growth, detections=found, best=best)


class _Cut:
    """What a rank holds of its users, cut into buckets, so that any number of ranks can read it."""

    def __init__(self, bucket_offsets: list[int], buckets: range) -> None:
        self.users = [
            (f"bucket={bucket:03d}.arrow", bucket_offsets[bucket], bucket_offsets[bucket + 1]) for bucket in buckets
        ]
        self.first = self.users[0][1]

    def interests(self, folder: str, store: InterestStore, snapshot: StoreSnapshot) -> Tables:
        # What is the store's own is written over when interests come or go and when the span ends.
        slots = Slots(
            *(
                column.to(_HOST, copy=column is held)
                for column, held in zip(store.slots_of(snapshot), store.slots, strict=True)
            )
        )
        offsets = snapshot.offsets.cpu()
        owners = torch.arange(len(offsets) - 1).repeat_interleave(offsets.diff()) + self.first
        columns = {"user": owners, "born": slots.birth_span, "vector": slots.values}
        if slots.queries.shape[1]:
            columns |= {"query": slots.queries, "moment": slots.moments}
        if slots.states.shape[1]:
            columns["state"] = slots.states
        tables = {}
        for name, first, end in self.users:
            place = slice(*offsets[[first - self.first, end - self.first]].tolist())
            tables[f"{folder}/{name}"] = _batch({key: part[place] for key, part in columns.items()})
        return tables

    def load(self, stored: Stored, folder: str, model: Recommender) -> None:
        read = self._read(stored, folder)
        names = {"values": "vector", "birth_span": "born", "queries": "query", "moments": "moment", "states": "state"}
        columns = {name: read[key] for name, key in names.items() if key in read}
        model.store.load(read["user"] - self.first, **columns)

    def detections(self, folder: str, found: list[Detection]) -> Tables:
        if not found:
            return {}
        looked = torch.arange(len(found), dtype=torch.int16).repeat_interleave(
            torch.tensor([len(one.users) for one in found])
        )
        # A run that resumed holds what the checkpoint had on the host, and what it found since on its device.
        users, fit, puzzled = (torch.cat([one.cpu() for one in part]) for part in zip(*found, strict=True))
        columns = {"looked": looked, "user": users, "fit": fit, "puzzled": puzzled}
        return {
            f"{folder}/{name}": _batch({key: part[(first <= users) & (users < end)] for key, part in columns.items()})
            for name, first, end in self.users
        }

    def read_detections(self, stored: Stored, folder: str, looked: int) -> list[Detection]:
        if not looked:
            return []
        read = self._read(stored, folder)
        of_each = (read["looked"] == number for number in range(looked))
        return [Detection(*(read[key][these] for key in ("user", "fit", "puzzled"))) for these in of_each]

    def _read(self, stored: Stored, folder: str) -> dict[str, torch.Tensor]:
        tables = [stored.table(f"{folder}/{name}") for name, *_ in self.users]
        names = tables[0].schema.names
        return {name: _tensor(table[name] for table in tables) for name in names}


def _batch(columns: dict[str, torch.Tensor]) -> pa.RecordBatch:
    return pa.record_batch({name: column(values) for name, values in columns.items()})


def _tensor(parts: Iterable[pa.Array]) -> torch.Tensor:
    arrays = []
    for part in parts:
        listed = pa.types.is_fixed_size_list(part.type)
        flat = (part.values if listed else part).to_numpy(zero_copy_only=False)
        arrays.append(flat.reshape(-1, part.type.list_size) if listed else flat)
    return torch.from_numpy(np.concatenate(arrays))
