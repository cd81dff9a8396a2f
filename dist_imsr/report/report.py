"""Makes a report: reads, computes, draws, and writes the page or one figure."""

import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import jinja2
import pyarrow.parquet as pq
from plotly.offline import get_plotlyjs
from rich.console import Console

from dist_imsr.files import write_whole
from dist_imsr.report.config import ReportConfig
from dist_imsr.report.figures.style import EACH, Figure, Style
from dist_imsr.report.sections import Part, make_parts
from dist_imsr.report.sources import Sources
from dist_imsr.report.tables.interests import USERS
from dist_imsr.report.tables.one_user import ITEMS
from dist_imsr.report.tables.statistics import BINS, POINTS

GENERATOR = "dist_imsr report"
_DIGITS = 6  # of a number on the page, which keeps it small; the tables have all
_PAGE = Path(__file__).parent / "page"
_THINNING = (
    f"Curves have at most {POINTS} points, the means of equal stretches; histograms have {BINS} bins; correlations are "
    f"of {USERS} users of each span, evenly spaced in the order of ids; heatmaps have the latest {ITEMS} items. Of "
    "several seeds, distributions, curves and groups show the smallest. Where a data set has more than "
    f"{EACH} rows, their seconds, memory and new interests are totals in one figure, and distributions are of the "
    f"first {EACH} with exported spans."
)


def write_report(config: ReportConfig, console: Console) -> None:
    """Writes the page and its tables, or one figure; with ``watch`` again and again.

    Args:
        config: the report's keys.
        console: for a line about what was written.

    Raises:
        ValueError: naming the key, the folder or the file at fault.
        OSError: if the output cannot be written.
    """
    check_output(config)
    while True:
        parts, sources = _parts(config)
        if config.format == "html":
            _write_tables(parts, config.output)
            write_whole(config.output, page(parts, sources))
            left_out = [part.section.title for part in parts if part.missing]
            more = f"; left out: {', '.join(left_out)} (the page says why)" if left_out else ""
            console.print(
                f"{config.output}: {sum(len(part.figures) for part in parts)} figures{more}",
                highlight=False,
                soft_wrap=True,
            )
        else:
            _write_image(config, parts, sources)
            console.print(f"{config.output} is written", highlight=False, soft_wrap=True)
        if not config.watch:
            return
        time.sleep(config.watch)


def check_output(config: ReportConfig) -> None:
    """Refuses an output that is not a report's own.

    Raises:
        ValueError: naming it.
    """
    output, tables = config.output, tables_folder(config.output)
    if config.overwrite or not output.exists():
        foreign = not config.overwrite and config.format == "html" and tables.exists() and any(tables.iterdir())
        if foreign and any(path.suffix != ".parquet" for path in tables.iterdir()):
            raise ValueError(f"output: {tables} holds other files; name another output")
        return
    if config.format != "html" or GENERATOR not in output.read_text(errors="replace")[:1000]:
        raise ValueError(
            f"output: {output} exists and is no report's page; name another file, or pass --overwrite true"
        )


def tables_folder(output: Path) -> Path:
    """The folder of a page's tables."""
    return output.with_name(f"{output.stem}_data")


def page(parts: Sequence[Part], sources: Sources) -> str:
    """The page as HTML, with all that it needs inside.

    Args:
        parts: its sections.
        sources: what they were made from.
    """
    config, style = sources.config, _style(sources)
    figures = [figure for part in parts for figure in part.figures]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
    named = [str(path) for path in [*config.runs, *([config.compare] if config.compare else [])]]
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        title=f"Report of {', '.join(named[:4])}{' and more' * (len(named) > 4)}",
        made=f"{now.removesuffix('+00:00')} UTC: {shlex.join(sys.argv)}",
        watch=config.watch,
        labels=style.labels,
        colours={label: style.colour(label) for label in style.labels},
        sections=[_for_page(part) for part in parts],
        json={figure.name: _json(figure) for figure in figures},
        tables=tables_folder(config.output).name,
        thinning=_THINNING,
        css=(_PAGE / "page.css").read_text(),
        js=(_PAGE / "page.js").read_text(),
        plotly=get_plotlyjs(),
    )


def _for_page(part: Part) -> dict[str, object]:
    section = part.section
    texts = {"name": section.name, "title": section.title, "how": section.how, "missing": part.missing}
    return texts | {"figures": part.figures, "grids": part.grids}


def _json(figure: Figure) -> str:
    """A figure for a script element, which a closing tag in a title must not end."""
    values = json.loads(figure.plot.to_json(), parse_float=lambda text: float(f"{float(text):.{_DIGITS}g}"))
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _parts(config: ReportConfig) -> tuple[list[Part], Sources]:
    sources = Sources(config)
    parts = make_parts(sources, _style(sources))
    names = [figure.name for part in parts for figure in part.figures]
    assert len(set(names)) == len(names), "two figures have one name"
    return parts, sources


def _style(sources: Sources) -> Style:
    labels = dict.fromkeys(run.label for run in sources.runs) | dict.fromkeys(one["label"] for one in sources.records)
    return Style(list(labels))


def _write_tables(parts: Sequence[Part], output: Path) -> None:
    folder = tables_folder(output)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part in parts:
        for name, table in part.tables.items():
            pq.write_table(table, partial / f"{name}.parquet")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write_image(config: ReportConfig, parts: Sequence[Part], sources: Sources) -> None:
    figures = {figure.name: figure for part in parts for figure in part.figures}
    if config.figure not in figures:
        raise ValueError(f"figure: {config.figure} is none of {', '.join(figures)}")
    plot = figures[config.figure].plot
    labelled = any(trace.meta in sources_labels(sources) and trace.name == trace.meta for trace in plot.data)
    plot.update_layout(showlegend=bool(labelled or plot.layout.showlegend), paper_bgcolor="white", width=560)
    try:
        image = plot.to_image(format=config.format, scale=3)
    except Exception as error:  # of the browser: there is no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"format: {config.format} needs Chrome or Chromium, which failed: {reason}") from error
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_bytes(image)


def sources_labels(sources: Sources) -> list[str]:
    """All labels of runs and baselines."""
    return _style(sources).labels
