"""What cannot be learnt, or looks like a mistake, gets a warning with numbers and a remedy."""

from pathlib import Path

import pytest
from rich.console import Console

from dist_imsr.data.prepare import PrepareConfig, prepare
from tests.data.test_prepare import write_csv

T0 = 1_600_000_000


def warnings_of(
    folder: Path, rows: list[tuple[str, str, int]], capsys: pytest.CaptureFixture[str], spans: int = 2
) -> str:
    log = write_csv(folder / "log.csv", [("user", "item", "time"), *rows])
    output = folder / "out"
    config = PrepareConfig(source="csv", input=log, output=output, overwrite=True, min_interactions=1, spans=spans)
    prepare(config, Console(stderr=True, width=1000))
    return "\n".join(line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: "))


def healthy() -> list[tuple[str, str, int]]:
    return [(f"u{row % 10}", f"i{row % 7}", T0 + 60 * row) for row in range(400)]


def test_nothing_is_said_of_a_healthy_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert warnings_of(tmp_path, healthy(), capsys) == ""


@pytest.mark.parametrize(
    ("outlier", "remedy"), [(0, "--from 2020-09-13T12:26:40Z"), (T0 + 10**9, "--until 2020-09-13T")]
)
def test_an_outlier(tmp_path: Path, capsys: pytest.CaptureFixture[str], outlier: int, remedy: str) -> None:
    found = warnings_of(tmp_path, [*healthy(), ("u0", "i0", outlier)], capsys, spans=6)
    assert "spans hold no interactions" in found
    assert remedy in found


def test_gaps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(user, item, when + (10**6 if when > T0 + 12_000 else 0)) for user, item, when in healthy()]
    assert "5 of 7 spans hold no interactions: use fewer --spans" in warnings_of(tmp_path, rows, capsys, spans=6)


def test_a_user_with_a_large_share(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [*healthy(), *(("NA", "i0", T0 + 50 * row) for row in range(400))]
    assert "more than a fifth of all 800 rows: 'NA' 50%. " in warnings_of(tmp_path, rows, capsys)


def test_nobody_to_train_on_or_to_test(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(f"u{row}", f"i{row % 7}", T0 + 60 * row) for row in range(100)]
    found = warnings_of(tmp_path, rows, capsys)
    assert "spans without a user to train on: 0, 1, 2" in found
    assert "no user can be tested" in found


def test_times_in_an_unlikely_year(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(user, item, when - T0) for user, item, when in healthy()]
    assert "half of the times are before 1970-01-01T" in warnings_of(tmp_path, rows, capsys)
