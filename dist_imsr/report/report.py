"""Makes a report: reads, computes, draws, and writes the page or one figure."""

import json
import shlex
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
from dist_imsr.report.sections import RenderedSection, render_sections
from dist_imsr.report.sources import Sources
from dist_imsr.report.tables.interests import USERS
from dist_imsr.report.tables.one_user import ITEMS
from dist_imsr.report.tables.statistics import BINS, POINTS

GENERATOR = "dist_imsr report"
_MARK = {b"generator": GENERATOR.encode()}
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
    _write_once(config, console)
    try:
        while config.watch:
            time.sleep(config.watch)
            try:
                _write_once(config, console)
            except (ValueError, OSError) as error:  # files of a run may be replaced right now
                console.print(
                    f"{config.output} stays as it was: {error}", highlight=False, soft_wrap=True, markup=False
                )
    finally:
        if config.watch:  # what is left must not load itself again for ever
            write_whole(config.output, config.output.read_text().replace(_refresh(config), ""))


def _write_once(config: ReportConfig, console: Console) -> None:
    sections, sources = _render(config)
    if config.format == "html":
        _write_tables(sections, config.output)
        write_whole(config.output, page(sections, sources))
        left_out = [one.section.title for one in sections if one.missing]
        more = f"; left out: {', '.join(left_out)} (the page says why)" if left_out else ""
        line = f"{config.output}: {sum(len(one.figures) for one in sections)} figures{more}"
    else:
        _write_image(config, sections)
        line = f"{config.output} is written"
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def _refresh(config: ReportConfig) -> str:
    """The element that makes a browser load the page again."""
    return f'<meta http-equiv="refresh" content="{config.watch}">' if config.watch else ""


def check_output(config: ReportConfig) -> None:
    """Refuses an output that is not a report's own.

    Raises:
        ValueError: naming it.
    """
    output = config.output
    own = config.format == "html" and output.exists() and GENERATOR in output.read_text(errors="replace")[:1000]
    if output.exists() and not own and not config.overwrite:
        raise ValueError(
            f"output: {output} exists and is no report's page; name another file, or pass --overwrite true"
        )


def tables_folder(output: Path) -> Path:
    """The folder of a page's tables."""
    return output.with_name(f"{output.stem}_data")


def page(sections: Sequence[RenderedSection], sources: Sources) -> str:
    """The page as HTML, with all that it needs inside.

    Args:
        sections: in order.
        sources: what they were made from.
    """
    config, style = sources.config, _style(sources)
    figures = [figure for one in sections for figure in one.figures]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_PAGE), autoescape=True, trim_blocks=True)
    named = [str(path) for path in [*config.runs, *([config.compare] if config.compare else [])]]
    now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
    return environment.get_template("page.html").render(
        generator=GENERATOR,
        title=f"Report of {', '.join(named[:4])}{' and more' * (len(named) > 4)}",
        made=f"{now.removesuffix('+00:00')} UTC: {shlex.join(sys.argv)}",
        refresh=_refresh(config),
        labels=style.labels,
        colours={label: style.colour(label) for label in style.labels},
        sections=[_for_page(one) for one in sections],
        json={figure.name: _json(figure) for figure in figures},
        tables=tables_folder(config.output).name,
        thinning=_THINNING,
        css=(_PAGE / "page.css").read_text(),
        js=(_PAGE / "page.js").read_text(),
        plotly=get_plotlyjs(),
    )


def _for_page(rendered: RenderedSection) -> dict[str, object]:
    section = rendered.section
    texts = {"name": section.name, "title": section.title, "how": section.how, "missing": rendered.missing}
    return texts | {"notes": rendered.notes, "figures": rendered.figures, "text_tables": rendered.text_tables}


def _json(figure: Figure) -> str:
    """A figure for a script element, which a closing tag in a title must not end."""
    values = json.loads(figure.plot.to_json(), parse_float=lambda text: float(f"{float(text):.{_DIGITS}g}"))
    return json.dumps(values, separators=(",", ":")).replace("<", "\\u003c")


def _render(config: ReportConfig) -> tuple[list[RenderedSection], Sources]:
    sources = Sources(config)
    style = _style(sources)
    sections = render_sections(sources, style)
    figures = [figure for one in sections for figure in one.figures]
    for figure in figures:
        style.shorten_ticks(figure.plot)
    names = [figure.name for figure in figures]
    assert len(set(names)) == len(names), "two figures have one name"
    return sections, sources


def _style(sources: Sources) -> Style:
    labels = dict.fromkeys(run.label for run in sources.runs) | dict.fromkeys(one["label"] for one in sources.records)
    return Style(list(labels))


def _write_tables(sections: Sequence[RenderedSection], output: Path) -> None:
    """Writes the tables, each whole, and removes those of an earlier report; other files stay."""
    folder = tables_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: table for one in sections for name, table in one.tables.items()}
    for name, table in tables.items():
        partial = folder / f".{name}.partial"
        pq.write_table(table.replace_schema_metadata(_MARK), partial)
        partial.replace(folder / f"{name}.parquet")
    for path in folder.glob("*.parquet"):
        if path.stem not in tables and (pq.read_schema(path).metadata or {}).items() >= _MARK.items():
            path.unlink()


def _write_image(config: ReportConfig, sections: Sequence[RenderedSection]) -> None:
    figures = {figure.name: figure for one in sections for figure in one.figures}
    if config.figure not in figures:
        raise ValueError(f"figure: {config.figure} is none of {', '.join(figures)}")
    plot = figures[config.figure].plot
    labelled = any(trace.legendgroup is not None for trace in plot.data)  # the page has a legend of its own
    plot.update_layout(showlegend=bool(labelled or plot.layout.showlegend), paper_bgcolor="white", width=560)
    try:
        image = plot.to_image(format=config.format, scale=3)
    except Exception as error:  # of the browser: there is no common class
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"format: {config.format} needs Chrome or Chromium, which failed: {reason}") from error
    config.output.parent.mkdir(parents=True, exist_ok=True)
    partial = config.output.with_name(f".{config.output.name}.partial")
    partial.write_bytes(image)
    partial.replace(config.output)
