"""IMSR: inherit everything, train on the new interactions alone, grow and keep interests (Section IV of the paper)."""

from dataclasses import dataclass, field

import torch

from dist_imsr.checks import require
from dist_imsr.data.batch import Batch
from dist_imsr.data.span import SpanData
from dist_imsr.distributed.recommender import Extraction, Recommender, Scores
from dist_imsr.model.detector import DetectorConfig
from dist_imsr.model.retainers import RETAINERS, Drift, RetainerConfig
from dist_imsr.model.trimmer import TrimmerConfig, project
from dist_imsr.phases import Phase
from dist_imsr.strategies.base import Strategy, register_strategy
from dist_imsr.strategies.detection import detect
from dist_imsr.strategies.resources import Resources
from dist_imsr.strategies.span_trainer import SpanReport, SpanTrainer
from dist_imsr.strategies.trimming import trim


@dataclass
class IMSRConfig:
    """IMSR's parts, each of which can be switched off.

    Args:
        rho: as how many items an existing interest's stored vector counts in the new one (erratum E10); 0 is the
            paper's text.
        detector: NID, when new interests are created.
        trimmer: PIT, which of them are kept.
        retainer: EIR, how existing interests are held.
    """

    rho: float = 2.0
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    trimmer: TrimmerConfig = field(default_factory=TrimmerConfig)
    retainer: RetainerConfig = field(default_factory=RetainerConfig)

    def __post_init__(self) -> None:
        require(self.rho >= 0, "strategy.imsr.rho", self.rho, "at least 0")


@register_strategy("imsr", IMSRConfig)
class IMSR(Strategy):
    """Algorithms 1 and 2 of the paper.

    Cost per span: that of fine-tuning, plus a pass over the span's items that detects, a K x K system and two dot
    products per target and interest in each step, and two passes over the rank's store that expand and trim it.

    Args:
        config: the strategy's section.
    """

    def __init__(self, config: IMSRConfig) -> None:
        self.config = config

    def train_span(self, trainer: SpanTrainer, span: int) -> SpanReport:
        """Algorithm 2 for one span; span 0 is pre-training (line 7), where no interest exists yet."""
        if span == 0:
            return trainer.pretrain(self)
        trainer.add_items(span)
        data = trainer.open_span(span)
        trainer.admit_users(data)  # lines 2-6
        trainer.set_learning_rates(pretraining=False)
        for epoch in trainer.epochs(pretraining=False):  # line 19
            if trainer.progress.step == 0 and (epoch == 0 or self.config.detector.each_epoch):
                self.expand_interests(trainer, data, epoch)  # lines 20-22: Algorithm 1, lines 1-11
            loss = trainer.train_epoch(data, self)  # lines 23-26, by `extract` and `extra_loss`
            trainer.end_epoch(loss, trainer.validate(data, self))
        trainer.restore_best()  # line 28
        trainer.write_back(data, self)  # Algorithm 1, lines 12-13 and 18
        trainer.add_growth(trim(trainer.model.store, self.config.trimmer, span))  # Algorithm 1, lines 14-16
        return trainer.report()

    @Phase("detector", shown=True)
    def expand_interests(self, trainer: SpanTrainer, data: SpanData, epoch: int) -> None:
        """NID: gives new interests to the puzzled users of a span (Algorithm 1, lines 1-11); collective.

        Args:
            trainer: the model and the steps of training.
            data: the span.
            epoch: the one that follows; the span's new items are trained from the second on.
        """
        if not self.config.detector.enabled:
            return
        model = trainer.model
        model.engine.train(False)
        with torch.no_grad():
            batches = trainer.track(data.trainable(), f"detector in span {data.span}", trainer.config.batch.eval_size)
            trained_items = trainer.dataset.items_by_span[data.span - (epoch == 0)]
            detection, growth = detect(
                batches, data.span, trained_items, model.catalogue, model.store, self.config.detector
            )
        trainer.add_growth(growth)
        trainer.progress.detections = [*trainer.progress.detections, detection]

    def extract(self, model: Recommender, batch: Batch, training: bool = False) -> Extraction:
        """Extraction with carried evidence (E10); new interests are projected (Algorithm 1, lines 12-13)."""
        extraction = model.extract(batch, training=training, rho=self.config.rho)
        if not self.config.trimmer.project:
            return extraction
        with Phase("routing"):
            return extraction._replace(interests=project(extraction.interests, extraction.existing))

    def extra_loss(
        self, model: Recommender, batch: Batch, extraction: Extraction, scores: Scores
    ) -> torch.Tensor | None:
        """EIR: keeps existing interests close to what they were (Algorithm 2, line 25)."""
        retainer = self.config.retainer
        if retainer.name == "none" or not extraction.existing.any():
            return None
        drift = Drift(
            before=extraction.start.interests.vectors,
            now=extraction.interests.vectors,
            existing=extraction.existing,
            mask=extraction.interests.mask,
            targets=scores.targets,
            agreement=scores.agreement,
            target_mask=scores.target_mask,
            negatives=extraction.negatives,
        )
        return retainer.weight * RETAINERS[retainer.name](drift, retainer.tau)

    def resources(self) -> Resources:
        """Interests grow by the detector."""
        detector = self.config.detector
        return Resources(detector=detector, trims=detector.enabled and self.config.trimmer.trim)
