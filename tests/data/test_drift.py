"""Generated interactions agree with their truth, and both are functions of the options alone."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from dist_imsr.data.drift import DriftConfig, PlantedDrift
from dist_imsr.data.prepare import PrepareConfig, prepare
from tests.data.slow_preparation import names_of, read

SPANS = 3
SMALL = DriftConfig(users=1500, items=3000, clusters=30, interactions=[45_000, 15_000], noise=0.0, seed=4)


def _events(drift, chunk):
    """The interactions of each span: users, items, times."""
    return list(drift.events(chunk))


@pytest.mark.parametrize("config", [SMALL, replace(SMALL, item_zipf=1.0, seed=5)])
def test_interactions_follow_the_truth(config):
    drift = PlantedDrift(config, 0.5, SPANS)
    assert drift.chunks == 2
    for chunk in range(drift.chunks):
        truth = drift.interests(chunk)
        for row in range(len(truth.clusters)):
            had = truth.birth_span[row] <= SPANS
            assert len(set(truth.clusters[row, had])) == had.sum()  # no interest twice
        for span, (users, items, times) in enumerate(_events(drift, chunk)):
            rows = users - chunk * 1024
            has = (truth.clusters[rows] == drift.clusters[items][:, None]) & (truth.birth_span[rows] <= span)
            assert has.any(1).all()
            assert (drift.item_birth_span[items] <= span).all()
            assert (drift.edges[span] <= times).all()
            assert (times < drift.edges[span + 1]).all()
    assert (truth.birth_span[:, : config.interests] == 0).all()


def test_rates_are_as_configured():
    drift = PlantedDrift(SMALL, 0.5, SPANS)
    truth = drift.interests(0)
    users = len(truth.clusters)
    grown = (truth.birth_span[:, SMALL.interests :] <= SPANS).mean()
    assert grown == pytest.approx(SMALL.growth, abs=4 * 0.5 / np.sqrt(users * SPANS))
    moved = (np.diff(truth.styles, axis=0) != 0).mean()
    assert moved == pytest.approx(SMALL.drift, abs=0.02)
    assert (drift.item_birth_span > 0).mean() == pytest.approx(1 - (1 - SMALL.fresh) ** 2, abs=0.1)
    counts = [sum(len(spans[t][0]) for spans in (_events(drift, 0), _events(drift, 1))) for t in range(SPANS + 1)]
    assert counts == pytest.approx([45_000, 15_000, 15_000, 15_000], rel=0.05)


def test_new_interests_are_more_frequent_in_their_first_span():
    drift = PlantedDrift(replace(SMALL, debut=3.0), 0.5, SPANS)
    truth, (users, items, _) = drift.interests(0), _events(drift, 0)[1]
    born_now = np.where(truth.birth_span == 1, truth.clusters, -1)
    fresh = (born_now[users] == drift.clusters[items][:, None]).any(1)
    grown = (born_now >= 0).any(1)
    weights = np.where(truth.birth_span == 1, 3 * truth.weights, truth.weights * (truth.birth_span == 0))[grown]
    wanted = (weights * (truth.birth_span[grown] == 1)).sum(1) / weights.sum(1)
    assert fresh[grown[users]].mean() == pytest.approx(wanted.mean(), abs=0.02)


def test_popularity_is_a_power_law():
    config = replace(SMALL, clusters=5, interests=1, growth=0.0, fresh=0.0, focus=0.0, item_zipf=1.0, users=1024)
    drift = PlantedDrift(config, 0.5, SPANS)
    items = np.concatenate([items for _, items, _ in _events(drift, 0)])
    place = np.arange(config.items) - np.searchsorted(drift.clusters, drift.clusters)
    size = config.items // config.clusters
    shares = np.bincount(place[items], minlength=size) / len(items)
    wanted = np.log((np.arange(size) + 2) / (np.arange(size) + 1)) / np.log(size + 1)
    np.testing.assert_allclose(shares, wanted, atol=0.01)


def test_a_chunk_depends_on_no_other():
    """More users, or another order of reading, do not change the first users; so data of any size can be streamed."""
    drift, more = (PlantedDrift(config, 0.5, SPANS) for config in (SMALL, replace(SMALL, users=4000)))
    more.interests(2)
    scaled = replace(SMALL, users=4000, interactions=[120_000, 40_000])  # the same number for each user
    for one, other in zip(_events(drift, 0), _events(PlantedDrift(scaled, 0.5, SPANS), 0), strict=True):
        for mine, theirs in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    other_seed = _events(PlantedDrift(replace(SMALL, seed=5), 0.5, SPANS), 0)
    assert not np.array_equal(other_seed[0][1], _events(drift, 0)[0][1])


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift") / "data"
    config = PrepareConfig(source="drift", output=folder, drift=SMALL, spans=SPANS, min_interactions=20, buckets=4)
    return folder, prepare(config, Console(quiet=True))


def test_prepared_truth_has_the_ids_of_the_data(prepared):
    folder, manifest = prepared
    drift = PlantedDrift(SMALL, 0.5, SPANS)
    assert [entry["first_second"] for entry in manifest["spans"]] == drift.edges[:-1].tolist()
    assert manifest["spans"][-1]["end_second"] == drift.edges[-1] + 1
    assert manifest["options"]["drift"]["users"] == 1500
    prepared = read(folder)
    users, items = (names_of(prepared, table) for table in ("users", "items"))
    truth = pq.read_table(folder / "truth_users.parquet").to_pydict()
    cluster = pq.read_table(folder / "truth_items.parquet")["cluster"].to_numpy()
    np.testing.assert_array_equal(cluster, drift.clusters[[*items.values()]])
    planted = [drift.interests(chunk) for chunk in range(drift.chunks)]
    assert len(users) < SMALL.users  # min_interactions removed some, and their truth
    expected = []
    for user, raw in users.items():
        one = planted[raw // 1024]
        at = raw % 1024
        expected += [
            (user, int(c), int(b)) for c, b in zip(one.clusters[at], one.birth_span[at], strict=True) if b <= SPANS
        ]
    assert list(zip(truth["user"], truth["cluster"], truth["span"], strict=True)) == sorted(expected)
    birth_span = {(user, c): span for user, c, span in expected}
    for (span, _), sequences in prepared["sequences"].items():
        for user, sequence in sequences.items():
            assert all(birth_span[user, cluster[item]] <= span for item, _, _ in sequence)


def test_the_same_options_give_the_same_bytes(prepared, tmp_path):
    _, manifest = prepared
    config = PrepareConfig(
        source="drift", output=tmp_path / "data", drift=SMALL, spans=SPANS, min_interactions=20, buckets=4, threads=1
    )
    again = prepare(config, Console(quiet=True))
    assert [again[key] for key in ("spans", "files")] == [manifest[key] for key in ("spans", "files")]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"clusters": 5, "growth": 0.1}, r"drift\.clusters"),
        ({"growth": 1.5}, r"drift\.growth"),
        ({"items": 10}, r"drift\.items"),
        ({"interactions": []}, r"drift\.interactions"),
        ({"users": 0}, r"drift\.users"),
        ({"activity": -1.0}, r"drift\.activity"),
    ],
)
def test_errors_name_impossible_options(options, key, tmp_path):
    with pytest.raises(ValueError, match=key):
        prepare(
            PrepareConfig(source="drift", output=tmp_path / "data", drift=replace(SMALL, **options)),
            Console(quiet=True),
        )
    assert not (tmp_path / "data").exists()


def test_other_sources_refuse_options_of_drift(tmp_path):
    with pytest.raises(ValueError, match=r"drift: .*--source drift"):
        PrepareConfig(source="csv", input=tmp_path, output=tmp_path / "data", drift=SMALL)
    with pytest.raises(ValueError, match=r"input: .*--source drift"):
        PrepareConfig(source="drift", input=tmp_path, output=tmp_path / "data")
