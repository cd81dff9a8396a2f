"""The keys of launch/baselines.py."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_imsr.baselines.ials import IALSConfig
from dist_imsr.baselines.item_knn import ItemKNNConfig
from dist_imsr.baselines.measure import BASELINES, check_kept, measure_baselines
from dist_imsr.baselines.own_history import OwnHistoryConfig
from dist_imsr.baselines.popular import PopularConfig
from dist_imsr.checks import require, require_file
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.distributed.topology import connect, read_topology
from dist_imsr.evaluation.evaluator import EvalConfig
from dist_imsr.files import write_whole
from dist_imsr.keys import free

_DISTRIBUTED = ("popular", "own_history")


@dataclass
class BaselinesConfig:
    """Tests baselines that need no training run, with the users and the metrics of a run's tests.

    Args:
        data: the prepared data.
        baselines: ``popular``, ``own_history``, ``item_knn``, ``ials``; the last two score every item for every tested
            user, on one rank.
        spans: how many spans after the pre-training span a run would train, each of which is tested on the next; all by
            default.
        output: a file for the lines, which have the keys of metrics.jsonl.
        users: a folder for the metrics of each tested user, for paired tests; for one baseline alone.
        timeout_seconds: the longest wait for a rank before the job ends.
        eval: the metrics.
        popular: the most popular items.
        own_history: a user's own items.
        item_knn: items with the same users.
        ials: matrix factorisation.
    """

    data: DataConfig = field(metadata=free(compare="grid"))
    baselines: list[str] = field(
        default_factory=lambda: ["popular", "own_history", "item_knn"], metadata=free(compare="grid")
    )
    spans: int | None = field(default=None, metadata=free(compare="grid"))
    output: Path | None = field(default=None, metadata=free(compare="grid"))
    users: Path | None = field(default=None, metadata=free(compare="grid"))
    timeout_seconds: float = field(default=1800.0, metadata=free(compare="grid"))
    eval: EvalConfig = field(default_factory=EvalConfig, metadata=free(compare="grid"))
    popular: PopularConfig = field(default_factory=PopularConfig)
    own_history: OwnHistoryConfig = field(default_factory=OwnHistoryConfig)
    item_knn: ItemKNNConfig = field(default_factory=ItemKNNConfig)
    ials: IALSConfig = field(default_factory=IALSConfig)

    def __post_init__(self) -> None:
        known = set(self.baselines) <= set(BASELINES) and len(set(self.baselines)) == len(self.baselines) > 0
        require(known, "baselines", self.baselines, f"different ones of {', '.join(BASELINES)}")
        require(self.spans is None or self.spans >= 1, "spans", self.spans, "at least 1")
        require(self.timeout_seconds > 0, "timeout_seconds", self.timeout_seconds, "above 0")
        one = self.users is None or len(self.baselines) == 1
        require(one, "users", str(self.users), "none with several baselines: the folder holds the users of one")
        for key in ("beyond", "per_user"):
            require(not getattr(self.eval, key), f"eval.{key}", True, "false with baselines")

    @property
    def sections(self) -> dict[str, Any]:
        """The sections of the baselines by name."""
        return {name: getattr(self, name) for name in self.baselines}

    def check(self, dataset: Dataset, ranks: int) -> range:
        """Refuses what cannot be tested, before anything heavy starts.

        Args:
            dataset: the prepared data.
            ranks: their number.

        Returns:
            The spans that are tested on the next one.

        Raises:
            ValueError: naming the key.
        """
        most = dataset.spans - 2
        require(most >= 1, "data.path", str(dataset.path), "a data set with three spans, of which one is tested")
        require((self.spans or 1) <= most, "spans", self.spans, f"at most {most} with these data")
        require_file(self.output, "output")
        check_kept(dataset)
        for name, section in self.sections.items():
            require(ranks == 1 or name in _DISTRIBUTED, "baselines", name, f"{_DISTRIBUTED} on {ranks} ranks")
            if name not in _DISTRIBUTED:
                section.check_size(name, dataset)
        return range(1, 1 + (self.spans or most))


def run_baselines(config: BaselinesConfig) -> list[dict[str, Any]]:
    """Tests baselines as launch/baselines.py does; every rank calls it, and rank 0 writes the lines.

    Args:
        config: the keys.

    Returns:
        The lines.

    Raises:
        ValueError: naming the key.
    """
    dataset, here = Dataset(config.data), read_topology()
    spans = config.check(dataset, here.world_size)
    here.buckets(dataset.buckets)
    if config.users is not None:
        config.users.mkdir(parents=True, exist_ok=True)
    lines = measure_baselines(
        config.sections,
        dataset=dataset,
        spans=spans,
        topology=connect(config.timeout_seconds),
        config=config.eval,
        users=config.users,
    )
    if config.output is not None and here.rank == 0:
        write_whole(config.output, "".join(json.dumps(line) + "\n" for line in lines))
    return lines
