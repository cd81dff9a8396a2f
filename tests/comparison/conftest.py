from pathlib import Path
from typing import NamedTuple

import pytest

from dist_imsr.comparison.config import CompareConfig, Source
from tests.prepared import drawn_history, write_dataset

SETTINGS = """
model: {dim: 8, interests: 3}
batch: {size: 16, max_targets: 3, negatives: 20, eval_size: 64}
training: {epochs: 3, incremental_epochs: 2}
catalogue: {headroom: 0}
eval: {top: [5]}
"""


class RankInfo(NamedTuple):
    """The folder of small data, their settings and results."""

    data: Path
    settings: Path
    output: Path

    def compare(self, **keys):
        source = Source(self.settings, self.data)
        return CompareConfig(**({"output": self.output, "data": {"drawn": source}, "top": 5, "cores": 2} | keys))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    (folder / "train.yaml").write_text(SETTINGS)
    return write_dataset(folder / "data", drawn_history(users=60, items=80, spans=4)), folder / "train.yaml"


@pytest.fixture
def place(drawn, tmp_path):
    return RankInfo(*drawn, tmp_path / "out")
