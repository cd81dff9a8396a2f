import json
import shlex
from pathlib import Path

import pytest

from dist_imsr.config import resolve
from dist_imsr.data.drift import DriftConfig
from dist_imsr.data.manifest import read_manifest
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.sources import ColumnsConfig


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_no_manifest(tmp_path, text):
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(ValueError, match=r"dataset\.json is no manifest"):
        read_manifest(tmp_path)


def test_newer_format(tmp_path):
    (tmp_path / "dataset.json").write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ValueError, match=r"format 99.*upgrade"):
        read_manifest(tmp_path)


V1 = {
    "csv": {
        "source": {"name": "csv", "input": ["my logs/a,b.csv", "it's.csv"], "read_as": {}},
        "options": {
            "min_interactions": 5,
            "alpha": 0.3,
            "spans": 2,
            "buckets": 8,
            "delimiter": "\t",
            "quote": '"',
            "header": True,
            "from_": "2017-11-25 08:00",
            "until": "1512316799",
            "null_values": ["NA", "--", "a b", "c,d"],
            "time_unit": "%Y-%m-%d",
            "columns": {"user": "who", "item": "what else", "time": "time", "rating": None, "behaviour": None},
        },
    },
    "taobao": {
        "source": {"name": "taobao", "input": "UserBehavior.csv", "read_as": {}},
        "options": {"min_interactions": 30, "alpha": 0.5, "spans": 6, "buckets": 64, "behaviours": ["pv", "buy"]},
    },
    "drift": {
        "source": {"name": "drift", "input": None, "read_as": {}},
        "options": {
            "min_interactions": 1,
            "alpha": 0.5,
            "spans": 6,
            "buckets": 64,
            "drift": {"users": 100, "interactions": [800, 300], "growth": 0.1},
        },
    },
}


@pytest.mark.parametrize("source", V1)
def test_an_older_format_is_refused_with_the_command_that_prepares_again(tmp_path, source):
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps({"format_version": 1} | V1[source]))
    with pytest.raises(ValueError, match=r"dataset\.json has format 1, .* reads 2: prepare the log again: ") as refusal:
        read_manifest(folder)
    text = str(refusal.value)
    assert "\n" not in text
    python, script, *words = shlex.split(text[text.index("python launch") :])
    assert (python, script) == ("python", "launch/prepare.py")
    options = dict(V1[source]["options"])
    if "columns" in options:
        options["columns"] = ColumnsConfig(**options["columns"])
    if "drift" in options:
        options["drift"] = DriftConfig(**options["drift"])
    inputs = V1[source]["source"]["input"]
    files = [Path(name) for name in inputs] if isinstance(inputs, list) else inputs and Path(inputs)
    expected = PrepareConfig(source=source, input=files, output=folder, overwrite=True, **options)
    assert resolve(PrepareConfig, words) == expected
