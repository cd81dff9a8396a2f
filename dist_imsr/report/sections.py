"""The sections of the page: what computes their tables, what draws them, and how to read them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pyarrow as pa

from dist_imsr.report.figures.comparison import ablation as draw_ablation
from dist_imsr.report.figures.comparison import comparison as draw_comparison
from dist_imsr.report.figures.comparison import sensitivity as draw_sensitivity
from dist_imsr.report.figures.groups import groups as draw_groups
from dist_imsr.report.figures.interests import interests as draw_interests
from dist_imsr.report.figures.one_user import one_user as draw_one_user
from dist_imsr.report.figures.over_spans import over_spans as draw_over_spans
from dist_imsr.report.figures.style import Block, Figure, Style, Tables, TextTable
from dist_imsr.report.figures.summary import summary as draw_summary
from dist_imsr.report.figures.training import training as draw_training
from dist_imsr.report.sources import Missing, Sources
from dist_imsr.report.tables.comparison import ablation, comparison, sensitivity
from dist_imsr.report.tables.groups import groups
from dist_imsr.report.tables.interests import interests
from dist_imsr.report.tables.one_user import one_user
from dist_imsr.report.tables.over_spans import over_spans
from dist_imsr.report.tables.summary import summary
from dist_imsr.report.tables.training import training


@dataclass(frozen=True)
class Section:
    """A section.

    Args:
        name: in links.
        title: its heading.
        how: how to read it, in a sentence.
        compute: makes its tables; raises `Missing` where the sources lack what it needs.
        draw: makes its figures and tables of texts from these alone.
    """

    name: str
    title: str
    how: str
    compute: Callable[[Sources], dict[str, pa.Table]]
    draw: Callable[[Tables, Style], list[Block]]


SECTIONS = [
    Section(
        "summary",
        "Summary",
        "A row is better than another where their intervals are apart or the paired test says so; below are the data "
        "and the settings that it was measured with.",
        summary,
        draw_summary,
    ),
    Section(
        "spans",
        "Over spans",
        "Each model is tested on the span after the one that it was trained on; a strategy that forgets falls behind "
        "in later spans, and bands are a standard deviation over seeds (Fig. 4 of the paper).",
        over_spans,
        draw_over_spans,
    ),
    Section(
        "interests",
        "Interests",
        "Interests should grow where users are puzzled (fit below c1), new ones should be long enough to be kept (norm "
        "above c2) and unlike existing ones (correlation around 0 or below), and existing ones should stay where they "
        "were (cosine near 1; Fig. 3).",
        interests,
        draw_interests,
    ),
    Section(
        "user",
        "One user",
        "On the map, an interest that is kept stays close to where it was, and new ones appear elsewhere; in the "
        "heatmaps a red cell is an item that the interest scores high (Fig. 2, 7b and 7c).",
        one_user,
        draw_one_user,
    ),
    Section(
        "groups",
        "Groups",
        "The same tests by kinds of targets and users: who gains from a strategy, and who pays for it (Fig. 7a).",
        groups,
        draw_groups,
    ),
    Section(
        "ablation",
        "Ablation",
        "What the result loses with each part of IMSR switched off; bars are a standard deviation over seeds, and the "
        "axis does not begin at 0 (Fig. 5).",
        ablation,
        draw_ablation,
    ),
    Section(
        "sensitivity",
        "Sensitivity",
        "How the result changes with one setting, relative to the default; a flat line is a setting that one need not "
        "tune (Fig. 6).",
        sensitivity,
        draw_sensitivity,
    ),
    Section(
        "training",
        "Training",
        "Whether training had converged when it stopped, and where its time and memory went.",
        training,
        draw_training,
    ),
    Section(
        "comparison",
        "Comparison",
        "Tables III to V of the paper, and which strategies are worth their cost: none beats those on the dotted line "
        "in both quality and seconds.",
        comparison,
        draw_comparison,
    ),
]


@dataclass
class RenderedSection:
    """A section as it is on the page.

    Args:
        section: which.
        tables: those that it was drawn from.
        blocks: figures and tables of texts.
        missing: why it is left out; empty if it is not.
        notes: what it lacks, and why.
    """

    section: Section
    tables: dict[str, pa.Table] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    missing: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def figures(self) -> list[Figure]:
        """Its figures."""
        return [block for block in self.blocks if isinstance(block, Figure)]

    @property
    def text_tables(self) -> list[TextTable]:
        """Its tables of texts."""
        return [block for block in self.blocks if isinstance(block, TextTable)]


def render_sections(sources: Sources, style: Style) -> list[RenderedSection]:
    """Computes and draws all sections.

    Args:
        sources: runs and comparison.
        style: of labels.
    """
    rendered = []
    for section in SECTIONS:
        sources.notes = []
        try:
            tables = section.compute(sources)
            rendered.append(RenderedSection(section, tables, section.draw(tables, style), notes=sources.notes))
        except Missing as reason:
            rendered.append(RenderedSection(section, missing=str(reason)))
    return rendered
