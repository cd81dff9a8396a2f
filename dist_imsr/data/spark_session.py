"""The options of Spark, and a session of it."""

import atexit
import contextlib
import functools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dist_imsr.checks import require

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_PACKAGE = Path(__file__).parents[1]
_ERROR = re.compile(r"[\w.]+(Error|Exception|Unreachable)\b")
_SETTINGS = {"spark.ui.showConsoleProgress": "false", "spark.sql.session.timeZone": "UTC"}


@dataclass(kw_only=True)
class SparkConfig:
    """Spark, with --engine spark.

    Args:
        master: of the cluster: local[4], spark://HOST:7077, yarn or k8s://..; by default that of spark-submit, else all
            cores of this machine.
        conf: settings of Spark, KEY=VALUE each, such as spark.executor.memory=8g.
    """

    own_heading: ClassVar[bool] = True

    master: str | None = None
    conf: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for setting in self.conf:
            key, equals, _ = setting.partition("=")
            require(bool(equals) and key.startswith("spark."), "spark.conf", setting, "spark.KEY=VALUE")


def missing_for_spark() -> str:
    """What this machine lacks to drive Spark, and what to do; empty for nothing."""
    if shutil.which("java", path=_java_path()) is None:
        return "no Java runtime: install one (Debian: openjdk-17-jre-headless) or set JAVA_HOME"
    try:
        import pyspark  # noqa: F401
    except ImportError:
        return "no pyspark: pip install 'dist-imsr[spark]'"
    return ""


def _java_path() -> str:
    home = os.environ.get("JAVA_HOME")
    return os.path.join(home, "bin") if home else os.environ.get("PATH", os.defpath)


@contextlib.contextmanager
def spark_session(config: SparkConfig) -> Iterator["SparkSession"]:
    """A session whose executors can import this package; one that is running already is used, and goes on.

    Args:
        config: the options.

    Raises:
        ValueError: in one line, if Spark cannot start, or if a step fails for good.
    """
    missing = missing_for_spark()
    if missing:
        raise ValueError(f"engine: spark needs more than there is: {missing}")
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import SparkSession

    running = SparkSession.getActiveSession()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("dist_imsr prepare")
    if config.master is not None:
        builder = builder.master(config.master)
    for key, value in (_SETTINGS | dict(setting.split("=", 1) for setting in config.conf)).items():
        builder = builder.config(key, value)
    session = None
    try:
        session = builder.getOrCreate()
        session.sparkContext.setLogLevel("OFF")  # what fails for good is raised, and what is tried again is no news
        _send_package(session)
        yield session
    except (PySparkException, Py4JError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        ours = [line.removeprefix("ValueError: ") for line in lines if line.startswith("ValueError: ")]
        others = [f"spark: {line}" for line in lines if _ERROR.match(line)]
        raise ValueError([*ours[:1], *others, f"spark: {lines[0]}"][0]) from error
    finally:
        if session is not None and running is None:
            session.stop()


def _send_package(session: "SparkSession") -> None:
    """Sends this package to the executors of a cluster, once for each application."""
    context = session.sparkContext
    if not context.master.startswith("local") and not any(
        one.endswith(f"/{_PACKAGE.name}.zip") for one in context.listFiles
    ):
        context.addPyFile(_archive())


@functools.cache
def _archive() -> str:
    """This package as a file, which serves executors as long as the process runs."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return shutil.make_archive(str(Path(folder.name) / _PACKAGE.name), "zip", _PACKAGE.parent, _PACKAGE.name)
