"""Rows that do not count, against slow counting in plain Python."""

import contextlib
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from dist_imsr.data.prepare import PrepareConfig, prepare
from dist_imsr.data.sources import ColumnsConfig
from tests.data.slow_preparation import names_of, read
from tests.data.test_prepare import record_of, write_csv

T0 = 1_600_000_000
Row = tuple[str, str, float]

logs = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.sampled_from([0, 0.25, 0.5, 1, 7, 9, 12])),
    min_size=2,
    max_size=40,
)


def prepared(rows: list[Row], **options: Any) -> tuple[list[Row], dict[str, int]] | None:
    """The rows that were kept, in order of user and time, and those left out; None if nothing can be prepared."""
    with tempfile.TemporaryDirectory() as folder:
        log = write_csv(Path(folder, "log.csv"), [("user", "item", "time"), *((u, i, T0 + t) for u, i, t in rows)])
        config = PrepareConfig(
            source="csv", input=log, output=Path(folder, "out"), spans=1, buckets=1, threads=1, **options
        )
        with contextlib.suppress(ValueError):  # nobody is left, or only one time
            manifest = prepare(config, Console(quiet=True))
        if not (Path(folder) / "out").exists():
            return None
        found = read(Path(folder, "out"))
        names = [names_of(found, table) for table in ("users", "items")]
        kept = [
            (names[0][user], names[1][item], when - T0)
            for _, sequences in sorted(found["sequences"].items())
            for user, sequence in sequences.items()
            for item, when, _ in sequence
        ]
        return sorted(kept, key=lambda row: row[0]), record_of(manifest)["left_out"]


@settings(max_examples=15, deadline=None)
@given(rows=logs, which=st.sampled_from(["none", "same_time", "all"]))
def test_repeats(rows: list[Row], which: str) -> None:
    result = prepared(rows, min_interactions=1, drop_repeats=which)
    seen, kept = set(), []
    for user, item, when in sorted(rows, key=lambda row: row[2]):  # stable: ties stay
        key = {"none": len(seen), "same_time": (user, item, when), "all": (user, item)}[which]
        if key not in seen:
            kept.append((user, item, int(when)))
        seen.add(key)
    if result is not None:
        assert result[0] == sorted(kept, key=lambda row: row[0])
        assert result[1].get("repeats", 0) == len(rows) - len(kept)


@settings(max_examples=15, deadline=None)
@given(rows=logs, users=st.integers(2, 3), interactions=st.integers(1, 4))
def test_rare_items_and_users(rows: list[Row], users: int, interactions: int) -> None:
    result = prepared(rows, min_interactions=interactions, min_users_per_item=users)
    kept, before = sorted(rows, key=lambda row: row[2]), -1
    while len(kept) != before:
        before = len(kept)
        met = {(user, item) for user, item, _ in kept}
        kept = [row for row in kept if sum((user, row[1]) in met for user in "abcd") >= users]
        counts = Counter(user for user, _, _ in kept)
        kept = [row for row in kept if counts[row[0]] >= interactions]
    if result is not None:
        assert result[0] == sorted(((u, i, int(t)) for u, i, t in kept), key=lambda row: row[0])


def test_period(tmp_path: Path) -> None:
    rows = [("a", "x", when) for when in (0, 5, 9.5, 10, 11)]
    result = prepared(rows, min_interactions=1, from_=str(T0 + 5), until="2020-09-13T12:26:51Z")
    assert result is not None
    assert [when for _, _, when in result[0]] == [5, 9, 10]
    assert result[1] == {"before from": 1, "until and later": 1}


@pytest.mark.parametrize(
    ("key", "value"), [("from_", "soon"), ("until", "2020-13-01"), ("time_unit", "minutes"), ("min_users_per_item", 0)]
)
def test_impossible_values(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{key.rstrip('_')}: .* is impossible here"):
        PrepareConfig(source="csv", output=Path("out"), **{key: value})
    with pytest.raises(ValueError, match=r"^until: "):
        PrepareConfig(source="csv", output=Path("out"), from_="2020-01-02", until="2020-01-01")


def test_ratings_and_behaviours(tmp_path: Path) -> None:
    lines = ["user,item,time,stars,what", *(f"a,x{n},{T0 + n},{n % 6},{'buy' if n % 2 else 'view'}" for n in range(12))]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    config = PrepareConfig(
        source="csv",
        input=tmp_path / "log.csv",
        output=tmp_path / "out",
        columns=ColumnsConfig(rating="stars", behaviour="what"),
        behaviours=["buy"],
        min_rating=3,
        min_interactions=1,
        spans=1,
    )
    manifest = prepare(config, Console(quiet=True))
    assert [*names_of(read(tmp_path / "out"), "items").values()] == ["x3", "x5", "x9", "x11"]
    assert record_of(manifest)["left_out"] == {"other behaviours": 6, "ratings below min_rating": 2}
    assert record_of(manifest)["rejected"] == {}
    options = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert (options["behaviours"], options["min_rating"]) == (["buy"], 3)
    for source, key in (
        ("taobao", {"min_rating": 3.0}),
        ("csv", {"min_rating": 3.0}),
        ("csv", {"behaviours": ["buy"]}),
    ):
        with pytest.raises(ValueError, match=rf"^{next(iter(key))}: "):
            PrepareConfig(source=source, output=Path("out"), **key)
