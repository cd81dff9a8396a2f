"""Addresses are kept as they stand, and are refused where they cannot be read."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from dist_imsr.addresses import Address, Location, location
from dist_imsr.config import parse, to_yaml
from dist_imsr.data.dataset import DataConfig
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.refresh.config import RefreshConfig
from dist_imsr.training.config import TrainConfig

OPTIONS = "?endpoint_override=http://127.0.0.1:9000&region=eu-west-1"


@dataclass
class Keys:
    """Keys.

    Args:
        place: of one kind or the other.
        local: local.
        several: of both kinds.
    """

    place: Location
    local: Path | None = None
    several: list[Location] | Location | None = None


def test_names_are_added_before_the_options():
    folder = Address(f"s3://bucket/a/b/{OPTIONS}")
    assert folder / "span=1/x.arrow" == f"s3://bucket/a/b/span=1/x.arrow{OPTIONS}"
    assert (folder.name, folder.parts) == ("b", ("a", "b"))
    assert Address("gs://bucket").name == "bucket"
    assert Address("hdfs://namenode:8020/user/me/data").parts == ("user", "me", "data")


@pytest.mark.parametrize("text", ["s3://b/c", "gs://b", "hdfs:///c", "abfs://container@account.dfs.core.windows.net/c"])
def test_schemes(text):
    assert isinstance(location(text), Address)
    assert location(text[1:]) == Path(text[1:])


def test_keys_keep_addresses_and_paths():
    several = ["--several", f"s3://bucket/x{OPTIONS}", "here/y.csv"]
    keys = parse(Keys, ["--place", f"s3://bucket/x{OPTIONS}", "--local=z", *several])
    assert keys == Keys(Address(f"s3://bucket/x{OPTIONS}"), Path("z"), [keys.place, Path("here/y.csv")])
    assert [type(one) for one in keys.several] == [Address, type(Path())]
    assert parse(Keys, ["--place=x", "--several", "s3://b/1"]).several == Address("s3://b/1")
    assert parse(Keys, ["--place=x", "--several=s3://b/1", "--several=2"]).several == [Address("s3://b/1"), Path("2")]


def test_a_run_records_the_address(tmp_path):
    config = parse(TrainConfig, [f"--data.path=s3://bucket/x{OPTIONS}", f"--run_dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert parse(TrainConfig, [f"--config={tmp_path / 'config.yaml'}"]).data == config.data
    assert config.data.path == f"s3://bucket/x{OPTIONS}"


@pytest.mark.parametrize(
    ("tree", "arguments", "message"),
    [
        (
            TrainConfig,
            ["--data.path=d", "--run_dir=s3://b/run"],
            "run_dir: s3://b/run is remote: this key takes a local",
        ),
        (
            PrepareConfig,
            ["--source=csv", "--input=x", "--output=s3://b/c", "--temp_dir=gs://b/t"],
            "temp_dir: 'gs://b/t' is impossible here; expected a local folder",
        ),
        (RefreshConfig, ["--data=s3://b/data", "--run_dir=run"], "data: s3://b/data is remote"),
        (Keys, ["--place=x", "--local=hdfs://b/x"], "local: hdfs://b/x is remote"),
        (Keys, ["--place=s3://me:secret@b/x"], "place: s3://b/x came with a secret"),
        (Keys, ["--place=abfs://c@a.dfs.core.windows.net/x?client_secret=secret"], "came with a secret"),
        (Keys, ["--place=x", "--several", "a", "s3://me:secret@b/x"], "several: s3://b/x came with a secret"),
        (DataConfig, ["--path=x", "--cache_limit=much"], "cache_limit: 'much' is impossible"),
    ],
)
def test_refusals(tree, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(tree, arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert ":secret" not in error
    assert "=secret" not in error
