from pathlib import Path

from dist_imsr.addresses import Address
from dist_imsr.data.spark_tables import uri_of


def test_how_spark_names_folders(tmp_path: Path) -> None:
    assert uri_of(tmp_path) == f"file://{tmp_path}"
    assert uri_of(Address("s3://bucket/a?region=x") / "b") == "s3a://bucket/a/b"
    assert uri_of(Address("hdfs://host:8020/tmp")) == "hdfs://host:8020/tmp"
