"""Each number in a figure, against the files of the runs by plain loops."""

import json
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_imsr.report.config import ReportConfig
from dist_imsr.report.sources import Sources
from dist_imsr.report.tables import interests as interests_module
from dist_imsr.report.tables.groups import groups
from dist_imsr.report.tables.interests import interests
from dist_imsr.report.tables.one_user import one_user
from dist_imsr.report.tables.over_spans import over_spans
from dist_imsr.report.tables.statistics import BINS, POINTS, histogram, thin
from dist_imsr.report.tables.summary import summary
from dist_imsr.report.tables.training import training


def lines(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def users_of(run, span):
    return pq.read_table(run / "users" / f"span={span}.parquet").to_pylist()


def exported(run, span, name):
    path = run / "spans" / f"span={span}" / f"{name}-000.arrow"
    return pa.ipc.open_file(str(path)).get_batch(0).to_pylist()


def interests_of(run, span):
    """The interests of each user, as (birth span, vector)."""
    found = defaultdict(list)
    for row in exported(run, span, "interests"):
        found[row["user"]].append((row["born"], np.array(row["vector"], np.float64)))
    return found


def items_of(run, span):
    return {row["item"]: np.array(row["vector"][:8], np.float64) for row in exported(run, span, "items")}


def rows(table, **wanted):
    found = table.to_pylist()
    return [row for row in found if all(row[key] == value for key, value in wanted.items())]


def test_metrics_over_spans(sources, runs):
    table = over_spans(sources)["over_spans"]
    for metric in ("hr@5", "ndcg@5_unseen", "hr@5_new", "ndcg@5_existing"):
        for place, span in enumerate((2, 3)):
            values = [lines(run)[place][metric] for run in runs[:2]]
            found = rows(table, label="imsr", metric=metric, test_span=span)
            if None in values:  # no such target in this span
                assert not found
                continue
            [row] = found
            assert row["mean"] == pytest.approx(np.mean(values))
            assert row["deviation"] == pytest.approx(np.std(values, ddof=1))
            [row] = rows(table, label="fine_tuning", metric=metric, test_span=span)
            assert row["mean"] == lines(runs[2])[place][metric]
            assert row["deviation"] is None
    assert {row["label"] for row in rows(table, base="-")} == {"popular", "own_history"}


def test_means_intervals_and_paired_tests(sources, runs):
    table = summary(sources)["summary"]
    of_user = defaultdict(lambda: defaultdict(list))
    for label, run in (("imsr", runs[0]), ("imsr", runs[1]), ("ft", runs[2])):
        for span in (2, 3):
            for row in users_of(run, span):
                of_user[label][row["user"]].append(row["hr@5"])
    means = {label: {user: np.mean(values) for user, values in found.items()} for label, found in of_user.items()}
    [row] = rows(table, label="imsr", metric="hr@5")
    assert row["mean"] == pytest.approx(np.mean([line["hr@5"] for run in runs[:2] for line in lines(run)]))
    low, high = stats.t.interval(
        0.95, len(means["imsr"]) - 1, loc=row["mean"], scale=stats.sem(list(means["imsr"].values()))
    )
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    users = sorted(means["ft"])
    assert sorted(means["imsr"]) == users
    test = stats.ttest_rel([means["imsr"][user] for user in users], [means["ft"][user] for user in users])
    assert row["p"] == pytest.approx(test.pvalue)
    assert row["difference"] == pytest.approx(row["mean"] - np.mean([line["hr@5"] for line in lines(runs[2])]))
    [row] = rows(table, label="popular", metric="hr@5")
    assert row["low"] is None
    assert row["p"] is None


def test_the_data(sources, history):
    found = summary(sources)["data_spans"].to_pylist()
    met = {user: set() for user in history}
    known = set()
    for span, row in enumerate(found):
        interactions = [(user, item) for user, spans in history.items() for item in spans[span]]
        active = {user for user, _ in interactions}
        assert row["interactions"] == len(interactions)
        assert row["users"] == len(active)
        assert row["new_users"] == pytest.approx(len(active - known) / len(active))
        assert row["repeats"] == pytest.approx(
            sum(item in met[user] for user, item in interactions) / len(interactions)
        )
        known |= active
        for user, item in interactions:
            met[user].add(item)


def test_settings_versions_and_commands(sources):
    tables = summary(sources)
    settings = {row["key"]: (row["value"], row["default"], row["of"]) for row in tables["settings"].to_pylist()}
    assert settings["model.dim"] == ("8", "64", "all")
    assert settings["strategy.name"] == ("fine_tuning", "imsr", "fine_tuning")
    assert settings["strategy.imsr.detector.c1"] == ("0.98", "0.9", "imsr")
    assert not {"training.patience", "data.verify"} & set(settings)
    environments = tables["environments"].to_pylist()
    assert [row["label"] for row in environments] == ["imsr", "fine_tuning"]
    assert "torch 2." in environments[0]["versions"]


def test_numbers_of_interests(sources, runs):
    tables = interests(sources)
    for span in range(3):
        wanted = Counter(len(own) for own in interests_of(runs[0], span).values())
        found = {row["interests"]: row["users"] for row in rows(tables["interests_users"], label="imsr", span=span)}
        assert found == wanted
    [row] = rows(tables["interests_mean"], label="imsr", span=2)
    assert row["mean"] == pytest.approx(np.mean([lines(run)[1]["interests_mean"] for run in runs[:2]]))
    assert row["cosine"] == pytest.approx(np.mean([lines(run)[1]["existing_cosine"] for run in runs[:2]]))
    for line in lines(runs[0]):
        for event in ("puzzled_users", "interests_created", "interests_trimmed", "interests_refused"):
            [row] = rows(tables["interests_events"], label="imsr", span=line["span"], event=event)
            assert row["count"] == line[event]
    assert sum(line["interests_created"] for line in lines(runs[0])) > 5  # or the figures below would be empty


def test_fit_and_norms(sources, runs):
    tables = interests(sources)
    for span in (1, 2):
        fits = [row["fit"] for row in exported(runs[0], span, "detections") if np.isfinite(row["fit"])]
        bins = rows(tables["interests_fit"], label="imsr", span=span)
        assert sum(row["count"] for row in bins) == len(fits)
        assert {row["c1"] for row in bins} == {0.98}
        middle = bins[BINS // 2]
        inside = [fit for fit in fits if middle["low"] <= fit < middle["high"]]
        assert middle["count"] == len(inside)
        before, after = interests_of(runs[0], span - 1), interests_of(runs[0], span)
        norms = [
            np.linalg.norm(vector)
            for user, own in after.items()
            for born, vector in own
            if born == span and user in before
        ]
        bins = rows(tables["interests_norms"], label="imsr", span=span)
        assert sum(row["count"] for row in bins) == len(norms)
        assert len(norms) == lines(runs[0])[span - 1]["interests_kept"]
        low, high = bins[3]["low"], bins[-4]["high"]
        assert sum(row["count"] for row in bins[3:-3]) == sum(low <= norm < high for norm in norms)


def test_correlations(sources, runs, history, monkeypatch):
    monkeypatch.setattr(interests_module, "USERS", 1000)
    found = sorted(interests_module.correlations(sources.runs[0], 2))
    wanted, items = [], items_of(runs[0], 2)
    for user, own in interests_of(runs[0], 2).items():
        seen = history[user][2]
        if len(set(seen)) < 3:
            continue
        profiles = [[vector @ items[item] for item in seen] for _, vector in own]
        new = [place for place, (born, _) in enumerate(own) if born == 2]
        old = [place for place, (born, _) in enumerate(own) if born < 2]
        wanted += [np.corrcoef(profiles[one], profiles[two])[0, 1] for one in new for two in old]
    assert len(found) == len(wanted) > 3
    np.testing.assert_allclose(found, sorted(wanted), atol=1e-5)


def test_one_user(sources, runs, history):
    tables = one_user(sources)
    last = interests_of(runs[0], 2)
    most = max(len(own) for own in last.values())
    richest = [user for user, own in last.items() if len(own) == most]
    user = max(richest, key=lambda one: (len(history[one][2]), -one))
    assert {row["user"] for table in tables.values() for row in table.to_pylist()} == {str(user)}
    places = [(row["span"], row["slot"], row["born"]) for row in tables["one_user_map"].to_pylist()]
    assert places == [
        (span, slot, born)
        for span in range(3)
        for slot, (born, _) in enumerate(interests_of(runs[0], span).get(user, []))
    ]
    items, span = items_of(runs[0], 2), tables["one_user_targets"]["span"][0].as_py()
    known = [item for item in history[user][span] if item in items]
    assert {int(row["item"]) for row in tables["one_user_targets"].to_pylist()} == set(known)
    for row in tables["one_user_targets"].to_pylist():
        born, vector = last[user][row["slot"]]
        assert row["born"] == born
        assert row["product"] == pytest.approx(float(vector @ items[int(row["item"])]), abs=1e-6)
    for row in rows(tables["one_user_items"], when="before"):
        before = row["span"] - 1
        _, vector = interests_of(runs[0], before)[user][row["slot"]]
        assert row["product"] == pytest.approx(float(vector @ items_of(runs[0], before)[int(row["item"])]), abs=1e-6)
    again = one_user(sources)["one_user_map"]
    assert again.equals(tables["one_user_map"])  # t-SNE has a seed


def test_a_user_is_named_by_raw_id(sources, runs):
    config = sources.config
    user = min(interests_of(runs[0], 2))
    try:
        config.user = str(user)
        assert set(one_user(sources)["one_user_map"]["user"].to_pylist()) == {str(user)}
        for unknown in ("100000", "nobody"):
            config.user = unknown
            with pytest.raises(ValueError, match=f"user: {unknown} has no interests after span 2"):
                one_user(sources)
    finally:
        config.user = None


def test_groups(sources, runs, history):
    table = groups(sources)["groups"]
    for group, key in (("all", "hr@5"), ("existing", "hr@5_existing"), ("new", "hr@5_new")):
        [row] = rows(table, label="imsr", by="items", group=group)
        values = [line[key] for line in lines(runs[0]) if line[key] is not None]
        assert row["hr"] == pytest.approx(np.mean(values))
    puzzled, not_puzzled, by_interests, activity = [], [], defaultdict(list), []
    for span in (1, 2):
        found = {row["user"] for row in exported(runs[0], span, "detections") if row["puzzled"]}
        after = interests_of(runs[0], span)
        for row in users_of(runs[0], span + 1):
            (puzzled if row["user"] in found else not_puzzled).append(row["hr@5"])
            by_interests[len(after.get(row["user"], []))].append(row["hr@5"])
            activity.append((sum(len(items) for items in history[row["user"]][: span + 1]), row["hr@5"]))
    for group, values in (("puzzled", puzzled), ("not puzzled", not_puzzled)):
        [row] = rows(table, label="imsr", by="detection", group=group)
        assert (row["tests"], row["hr"]) == (len(values), pytest.approx(np.mean(values)))
    for row in rows(table, label="imsr", by="interests"):
        if row["group"] != "others":
            values = by_interests[int(row["group"].split()[0])]
            assert (row["tests"], row["hr"]) == (len(values), pytest.approx(np.mean(values)))
    quarters = rows(table, label="imsr", by="activity")
    assert sum(row["tests"] for row in quarters) == len(activity)
    for row in quarters:
        low, high = map(int, row["group"].split()[0].split("-"))
        values = [hit for count, hit in activity if low <= count <= high]
        assert (row["tests"], row["hr"]) == (len(values), pytest.approx(np.mean(values)))


def test_training(sources, runs):
    tables = training(sources)
    phases = [json.loads(line) for line in (runs[0] / "phases.jsonl").read_text().splitlines()]
    for line in phases:
        own = {
            row["phase"]: row["seconds"] for row in rows(tables["training_seconds"], label="imsr", span=line["span"])
        }
        assert own == {name: one["mean"] for name, one in line["seconds"].items() if "/" not in name}
    peaks = [line["memory"]["training"]["peak"][0] for line in phases if "training" in line["memory"]]
    [row] = rows(tables["training_memory"], label="imsr", phase="training")
    assert row["peak"] == max(peaks)
    events = EventAccumulator(str(runs[0] / "events"), size_guidance={"scalars": 0}).Reload()
    own = rows(tables["training_curves"], label="imsr", tag="validation/ndcg")
    assert [(row["step"], row["value"]) for row in own] == [
        (one.step, one.value) for one in events.Scalars("validation/ndcg")
    ]
    for line in lines(runs[0]):
        [row] = rows(tables["training_speed"], label="imsr", span=line["span"])
        assert row["seconds"] == line["train_seconds"]
        assert row["per_second"] == pytest.approx(row["interactions"] / line["train_seconds"])


def test_thin_keeps_means_of_stretches():
    x, y = np.arange(1000.0), np.arange(1000.0) ** 2
    thinned, means = thin(x, y)
    assert len(thinned) == POINTS
    assert thinned[0] == x[:5].mean()
    assert means[-1] == y[-5:].mean()
    assert thin(x[:10], y[:10])[0] is not None
    assert len(thin(x[:10], y[:10])[0]) == 10


def test_histograms_count_everything():
    values = np.array([-1.0, 0.0, 0.5, 1.0, 7.0, np.inf, np.nan])
    found = histogram(values, 0.0, 1.0, {"span": 1})
    assert sum(row["count"] for row in found) == 5
    assert found[0]["count"] == 2
    assert found[-1]["count"] == 2
    assert {row["span"] for row in found} == {1}
    assert sum(row["count"] for row in histogram(np.array([2.0, 2.0]), 2.0, 2.0, {})) == 2


def test_runs_are_compared_over_the_spans_that_all_have(runs, tmp_path):
    begun = shutil.copytree(runs[0], tmp_path / "begun")
    first, *_ = (begun / "metrics.jsonl").read_text().splitlines()
    (begun / "metrics.jsonl").write_text(first + "\n")
    found = Sources(ReportConfig(output=Path("a.html"), runs=[begun, runs[2]]))
    [row] = rows(summary(found)["summary"], label="imsr", metric="hr@5")
    assert row["spans"] == 1
    assert row["difference"] == pytest.approx(lines(begun)[0]["hr@5"] - lines(runs[2])[0]["hr@5"])
    mine, its = ({one["user"]: one["hr@5"] for one in users_of(run, 2)} for run in (begun, runs[2]))
    test = stats.ttest_rel([mine[user] for user in sorted(mine)], [its[user] for user in sorted(mine)])
    assert row["p"] == pytest.approx(test.pvalue)
    assert found.notes == ["rows of drawn, comirec_dr are compared over the spans that all were tested on: 2"]


def test_runs_with_other_tests_are_not_compared(runs, tmp_path):
    other = shutil.copytree(runs[0], tmp_path / "other")
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("exclude_seen: false", "exclude_seen: true"))
    found = Sources(ReportConfig(output=Path("a.html"), runs=[other, runs[2]]))
    assert {row["p"] for row in rows(summary(found)["summary"], label="imsr")} == {None}
    assert found.notes == ["imsr and fine_tuning were tested in different ways on drawn, comirec_dr: not compared"]


def test_forgotten_users_are_nobody(sources, runs, monkeypatch):
    dataset = sources.runs[0].dataset
    shown = int(one_user(sources)["one_user_map"]["user"][0].as_py())
    before = [row["tests"] for row in rows(groups(sources)["groups"], label="imsr", by="activity")]
    monkeypatch.setattr(dataset, "forgotten", np.array([shown]))
    ids = dataset.user_ids
    monkeypatch.setattr(dataset, "user_ids", lambda raw: np.where(ids(raw) == shown, -1, ids(raw)))
    assert one_user(sources)["one_user_map"]["user"][0].as_py() != str(shown)
    after = [row["tests"] for row in rows(groups(sources)["groups"], label="imsr", by="activity")]
    assert sum(after) < sum(before)
