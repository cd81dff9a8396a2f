"""The baseline of `bench.py prepare`: launch/prepare.py's steps in straightforward Polars, with tables in memory.

It is a program, so that its memory can be measured.
"""

import hashlib
import json
import os
from pathlib import Path

from dist_imsr.config import parse
from dist_imsr.data.cutting import share_edges
from dist_imsr.data.prepare import PrepareConfig
from dist_imsr.data.raw_formats import TAOBAO_WINDOW
from dist_imsr.files import digest_of


def prepare(config: PrepareConfig) -> None:
    """Writes the files of design.md section 6.

    Args:
        config: of a log in UserBehavior's format; its limit of memory is ignored.
    """
    if config.threads is not None:
        os.environ["POLARS_MAX_THREADS"] = str(config.threads)  # Polars reads it when it is imported
    import polars as pl

    assert isinstance(config.input, Path)
    assert config.behaviours is not None
    assert isinstance(config.output, Path)
    types = dict.fromkeys(("user", "item", "category", "behaviour", "time"), pl.Int64) | {"behaviour": pl.String}
    rows = pl.read_csv(config.input, has_header=False, schema=types, row_index_name="row")
    rows = rows.filter(pl.col("behaviour").is_in(config.behaviours) & pl.col("time").is_between(*TAOBAO_WINDOW))
    rows = rows.select("user", "item", "time", moment=pl.col("time") * 2**32 + pl.col("row"))  # the input's order
    account = pl.len().alias("interactions"), pl.col("moment").min().alias("first")

    users = rows.group_by("user").agg(*account).filter(pl.col("interactions") >= config.min_interactions)
    digests = (hashlib.md5(str(user).encode()).hexdigest() for user in users["user"])
    buckets = pl.Series("bucket", [int(digest[:16], 16) % config.buckets for digest in digests])
    users = users.with_columns(buckets).sort("first")
    local = pl.int_range(pl.len()).over("bucket")
    users = users.with_columns(user_id=local * config.buckets + pl.col("bucket")).sort("user_id")
    waiting = rows.join(users, on="user", how="anti").sort("moment").select("user", "item", "time")
    rows = rows.join(users.select("user", "user_id", "bucket"), on="user")
    items = rows.group_by("item").agg(*account).sort("first").with_row_index("item_id")
    rows = rows.join(items.select("item", "item_id"), on="item").sort("user_id", "moment")

    first, last = rows.select(pl.col("time").min().alias("first"), pl.col("time").max().alias("last")).row(0)
    edges = share_edges(first, last, config.alpha, config.spans)
    rows, users, items = (
        table.with_columns(span=pl.Series(edges[1:-1]).search_sorted(times, side="right"))
        for table, times in ((rows, rows["time"]), (users, users["first"] // 2**32), (items, items["first"] // 2**32))
    )
    rows = rows.with_columns(met_before=pl.col("span") > pl.col("span").min().over("user_id", "item_id"))

    for folder in ("", "users", "items", "waiting", *(f"span={span}" for span in range(config.spans + 1))):
        (config.output / folder).mkdir()
    for span in range(config.spans + 1):
        for name, table in (("user", users), ("item", items)):
            new = table.filter(pl.col("span") == span).select(pl.col(f"{name}_id").alias(name), raw=pl.col(name))
            new.write_parquet(config.output / f"{name}s" / f"span={span}.parquet")
    waiting.write_parquet(config.output / "waiting" / f"span={config.spans}.parquet")
    counts = rows.group_by("span", item="item_id").agg(interactions=pl.len()).sort("item")
    for (span,), part in counts.partition_by("span", as_dict=True, include_key=False).items():
        part.write_ipc(config.output / f"span={span}" / "item_counts.arrow")
    lists = pl.col("item_id").alias("items"), pl.col("time").alias("times"), pl.col("met_before")
    for (span, bucket), part in rows.partition_by("span", "bucket", as_dict=True).items():
        path = config.output / f"span={span}" / f"bucket={bucket:03d}.arrow"
        part.group_by(pl.col("user_id").alias("user"), maintain_order=True).agg(*lists).write_ipc(path)
    files = {
        str(path.relative_to(config.output)): digest_of(path) for path in config.output.rglob("*.*") if path.is_file()
    }
    (config.output / "dataset.json").write_text(json.dumps(files))


if __name__ == "__main__":
    prepare(parse(PrepareConfig))
