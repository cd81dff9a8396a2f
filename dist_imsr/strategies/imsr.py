"""IMSR: fine-tuning that expands and retains interests (Section IV of the paper; Algorithms 1 and 2)."""

from dataclasses import dataclass, field

import torch

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.columns import send_to
from dist_imsr.distributed.objective import Extraction, Scores
from dist_imsr.distributed.recommender import Recommender
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig, project
from dist_imsr.phases import Phase
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.detection import detect, draw_null_items
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer
from dist_imsr.strategies.trimming import trim


@dataclass
class IMSRConfig:
    """IMSR's parts, each of which can be switched off.

    Args:
        rho: the number of items that an existing interest's stored vector counts as in the new one (erratum E10); 0
            is the paper's text.
        detector: NID, which users get new interests.
        trimmer: PIT, which new interests are kept.
        retainer: EIR, the loss that keeps existing interests.
    """

    rho: float = 4.0
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    trimmer: TrimmerConfig = field(default_factory=TrimmerConfig)
    retainer: RetainerConfig = field(default_factory=RetainerConfig)

    def __post_init__(self) -> None:
        require(self.rho >= 0, "strategy.imsr.rho", self.rho, "at least 0")


@register_strategy("imsr", IMSRConfig)
class IMSR(Strategy):
    """Algorithm 2 of the paper, which calls Algorithm 1.

    Algorithm 1 is spread over a span: users get new interests before an epoch (lines 1-11), every step extracts and
    projects (lines 12-13 and 18), and the span ends with trimming (lines 14-16).

    Cost per span: that of fine-tuning, a pass over the span's items for the detector, a K x K system and two dot
    products per target and interest in each step, and two passes over the rank's store to expand and trim it.

    Args:
        config: the strategy's section.
    """

    def __init__(self, config: IMSRConfig) -> None:
        self.config = config

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Algorithm 2 for one span; the span loop of its lines 8-17 is `Trainer.run`."""
        if span == 0:
            return trainer.pretrain(self)  # lines 1-7
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)  # lines 2-6, for users who are new in this span
        trainer.set_learning_rates(pretraining=False)
        for epoch in trainer.epochs(pretraining=False):  # line 19
            if trainer.progress.step == 0 and self.config.detector.runs_before(epoch):
                self.expand_interests(trainer, data, epoch)  # lines 20-22: Algorithm 1, lines 1-11
            loss = trainer.train_epoch(data, self)  # lines 23-27: Eq. 6 for what `extract` returns, plus `extra_loss`
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()  # line 28
        trainer.write_back(data, self)  # Algorithm 1, lines 12-13 and 18, by `extract`
        trainer.add_growth(trim(trainer.model.store, self.config.trimmer, span))  # Algorithm 1, lines 14-16
        return trainer.report()  # line 29

    @Phase("detector", shown=True)
    def expand_interests(self, trainer: SpanTrainer, data: SpanData, epoch: int) -> None:
        """NID: new interests for the puzzled users of a span (Algorithm 1, lines 1-11); collective.

        Args:
            trainer: the model and the steps of training.
            data: the span.
            epoch: the epoch that follows; before the first one, the span's new items are untrained.
        """
        model = trainer.model
        model.engine.train(False)
        with torch.no_grad():
            batches = trainer.track(data.trainable(), f"detector in span {data.span}", trainer.config.batch.eval_size)
            trained_items = trainer.dataset.items_by_span[data.span - (epoch == 0)]
            detector = self.config.detector
            null = draw_null_items(trainer.dataset, data.span, trained_items, detector.null_items, trainer.config.seed)
            detection, growth = detect(
                batches=batches,
                span=data.span,
                trained_items=trained_items,
                catalogue=model.catalogue,
                store=model.store,
                detector=detector,
                null=null.to(model.topology.device),
            )
        trainer.add_growth(growth)
        trainer.progress.detections = [*trainer.progress.detections, detection.cpu()]

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """Extraction with carried evidence (E10), and the projection of new interests."""
        extraction = model.extract(batch, training=training, rho=self.config.rho)  # Algorithm 1, lines 12 and 18
        if not self.config.trimmer.project:
            return extraction
        with Phase("routing"):
            new = send_to(extraction.layout.new(), extraction.existing.device)
            projected = project(extraction.interests, extraction.existing, new)  # Algorithm 1, line 13
            return extraction._replace(interests=projected)

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """EIR: a penalty on changes of existing interests (Algorithm 2, line 25)."""
        retainer = self.config.retainer
        if retainer.name == "none" or not extraction.layout.older.any():
            return None
        dim = extraction.interests.vectors.shape[-1]
        drift = Drift(  # in units that scale and bias of the scores do not move
            before=extraction.start.interests.vectors,
            now=extraction.interests.vectors,
            existing=extraction.existing,
            mask=extraction.interests.mask,
            targets=scores.targets[..., :dim],
            agreement=model.scoring.plain_agreement(scores.agreement, scores.targets),
            target_mask=scores.target_mask,
            negatives=extraction.negatives[:, :dim],
        )
        return retainer.weight * RETAINERS[retainer.name](drift, retainer.tau)

    def resources(self) -> Resources:
        """The detector creates interests, and the trimmer removes some of them."""
        detector = self.config.detector
        return Resources(detector=detector, trims=detector.enabled and self.config.trimmer.trim)
