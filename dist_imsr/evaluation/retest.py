"""Tests a finished run anew: other N, other options, each user's own values."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dist_imsr.checks import require, require_file
from dist_imsr.data.steps import Follow
from dist_imsr.distributed.topology import Topology
from dist_imsr.evaluation.evaluator import EvalConfig, Evaluator
from dist_imsr.evaluation.finished import FinishedRun, SpanState
from dist_imsr.evaluation.ranking import RankingConfig


@dataclass
class EvaluateConfig:
    """Evaluates a finished run: tests what its spans left on the spans after them, or compares it with planted truth.

    Args:
        run_dir: of a run that exported spans (--training.export last or every).
        data: where the run's prepared data stand, if elsewhere than when it was trained.
        span: the trained span to start from; all that were exported by default, but the pre-training span.
        per_user: a Parquet file of each tested user's own values, for paired tests; needs --span where several spans
            were exported.
        drift_truth: instead, compare the run with the truth that ``prepare.py --source drift`` planted in its data.
        match_cosine: a planted interest counts as held where its partner among the user's stored interests has at
            least this cosine with the mean embedding of its cluster.
        json: a file for the rows of the table.
        timeout_seconds: how long a rank may be waited for before the job ends.
        eval: what is measured; the run's own section is not read.
        ranking: how the catalogue is ranked.
    """

    run_dir: Path
    data: Path | None = None
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
    """The spans that a retest starts from.

    Args:
        config: which of them.
        run: which run.

    Returns:
        Trained spans that have a span after them.

    Raises:
        ValueError: naming the spans that there are.
    """
    spans = run.spans if config.span is None else [run.at(config.span)]
    spans = [span for span in spans if 0 < span < run.dataset.spans - 1 or span == config.span]
    if not spans or spans[-1] == run.dataset.spans - 1:
        raise ValueError(f"span: no span of {run.folder} has one after it to be tested on")
    if config.per_user and len(spans) > 1:
        raise ValueError(f"span: per_user holds the users of one test; name one of the spans {spans}")
    return spans


def retest(
    config: EvaluateConfig, run: FinishedRun, spans: list[int], topology: Topology, follow: Follow
) -> list[dict[str, Any]]:
    """Tests what spans left on the spans after them; collective.

    Args:
        config: what is measured.
        run: which run.
        spans: what `spans_to_test` gave.
        topology: this rank's place.
        follow: goes through batches.

    Returns:
        A row a span: the numbers of metrics.jsonl where ``eval`` is that of the run, and what is beyond them.
    """
    rows = []
    for span in spans:
        state = SpanState(run, span, run.dataset.items_by_span[span + 1], topology, config.ranking)
        evaluator = Evaluator(
            *(run.dataset, state.store, state.catalogue, state.ranker, topology, run.batch, config.eval), run.seed
        )
        rows.append({"span": span, "test_span": span + 1} | evaluator.test(span + 1, follow, config.per_user))
    return rows
