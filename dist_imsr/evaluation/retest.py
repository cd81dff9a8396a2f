"""Tests a finished run again, with other options or with the metrics of each user."""

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_imsr.addresses import Location
from dist_imsr.checks import require, require_file
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.topology import Topology, connect
from dist_imsr.evaluation.evaluator import EvalConfig, Evaluator
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.planted import compare_with_truth
from dist_imsr.evaluation.ranking import RankingConfig
from dist_imsr.launcher import rank_info
from dist_imsr.reporter import Reporter


@dataclass
class EvaluateConfig:
    """Evaluates a finished run: tests each span's model on the next span, or compares it with the planted truth.

    Args:
        run_dir: the folder of a run that exported spans (--training.export last or every).
        data: folder or address of the run's prepared data, if it was moved after training.
        span: the trained span whose model is tested; by default all exported ones except the pre-training span whose
            next span is not retired.
        per_user: a Parquet file for the metrics of each tested user, for paired tests; needs --span if several spans
            were exported.
        drift_truth: instead, compare the run with the truth that ``prepare.py --source drift`` planted in its data.
        match_cosine: a planted interest counts as held if its matched stored interest has at least this cosine with the
            mean embedding of its cluster.
        json: a file for the rows of the table.
        timeout_seconds: the longest wait for a rank before the job ends.
        eval: the metrics; the run's own section is not used.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    data: Location | None = None
    span: int | None = None
    per_user: Path | None = None
    drift_truth: bool = False
    match_cosine: float = 0.5
    json: Path | None = None
    timeout_seconds: float = 1800.0
    eval: EvalConfig = field(default_factory=lambda: EvalConfig(beyond=True))
    ranking: RankingConfig = field(default_factory=RankingConfig)

    def __post_init__(self) -> None:
        require(-1 <= self.match_cosine <= 1, "match_cosine", self.match_cosine, "-1 to 1")
        require(not self.eval.per_user, "eval.per_user", True, "--per_user FILE, since run_dir is only read here")
        for key in ("per_user", "json"):
            require_file(getattr(self, key), key)
        for key in ("per_user", "span"):
            require(
                not self.drift_truth or getattr(self, key) is None, key, getattr(self, key), "none with drift_truth"
            )


def spans_to_test(config: EvaluateConfig, run: FinishedRun) -> list[int]:
    """The exported spans to test, each of which has a next span.

    Raises:
        ValueError: naming the spans, if there are none or ``per_user`` needs a single one; or the retired rows that a
            test needs.
    """
    dataset = run.dataset
    config.eval.check(dataset)
    spans = run.spans if config.span is None else [run.resolve_span(config.span)]
    testable = range(max(1, dataset.first_kept - 1), dataset.spans - 1)
    spans = [span for span in spans if span in testable or span == config.span]
    if not spans or spans[-1] >= dataset.spans - 1:
        raise ValueError(f"span: no span of {run.folder} has one after it to be tested on")
    if spans[0] + 1 < dataset.first_kept:
        raise ValueError(f"span: {spans[0]} is tested on span {spans[0] + 1}, but {dataset.retired_rows}")
    if config.per_user and len(spans) > 1:
        raise ValueError(f"span: per_user holds the users of one test; name one of the spans {spans}")
    return spans


def evaluate_run(config: EvaluateConfig) -> list[dict[str, Any]]:
    """Tests a run again, or compares it with planted truth; every rank calls it.

    Args:
        config: the run and the metrics.

    Returns:
        One row per span, on rank 0; other ranks return none of the truth's.

    Raises:
        ValueError: naming the key or the file.
    """
    finished = FinishedRun(config.run_dir, config.data)
    if config.drift_truth:
        return compare_with_truth(finished, config.match_cosine) if rank_info().rank == 0 else []
    spans, topology = spans_to_test(config, finished), connect(config.timeout_seconds)
    reporter = Reporter(topology.rank == 0)

    def follow(steps: Any, phase: str, users: int) -> Iterator[Any]:
        return reporter.on_device(steps, topology.device, phase, users)

    return retest(config, finished, spans, topology, follow)


def retest(
    config: EvaluateConfig, run: FinishedRun, spans: list[int], topology: Topology, follow: Follow
) -> list[dict[str, Any]]:
    """Tests the model after each span on the next span; collective.

    Args:
        config: the metrics.
        run: the run.
        spans: the result of `spans_to_test`.
        topology: ranks and devices.
        follow: iterates over batches.

    Returns:
        One row per span, with the metrics of metrics.jsonl if ``eval`` is that of the run, and further ones.
    """
    return [_retest_span(config, run, span, topology, follow) for span in spans]


def _retest_span(
    config: EvaluateConfig, run: FinishedRun, span: int, topology: Topology, follow: Follow
) -> dict[str, Any]:
    """The row of one span; its table is freed before that of the next span is allocated."""
    gc.collect()  # the parts of TorchRec's modules refer to each other
    state = SpanState(run, span, run.dataset.items_by_span[span + 1], topology, config.ranking)
    evaluator = Evaluator(
        dataset=run.dataset,
        store=state.store,
        catalogue=state.catalogue,
        ranker=state.ranker,
        topology=topology,
        batch=run.batch,
        config=config.eval,
        seed=run.seed,
        repeats=state.origin.repeats,
    )
    return {"span": span, "test_span": span + 1} | evaluator.test(span + 1, follow, config.per_user)
