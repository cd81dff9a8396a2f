from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dist_imsr.benchmarks.world import Device, settings_of, settle
from launch.bench import main


@dataclass(frozen=True)
class Options:
    device: Device = "auto"
    ranks: int = 0
    path: Path = Path("where")
    json: Path | None = None

    def __post_init__(self):
        settle(self)


@pytest.mark.parametrize(
    ("found", "asked", "settled"),
    [
        (0, {}, ("cpu", 2)),
        (0, {"ranks": 3}, ("cpu", 3)),
        (4, {}, ("cuda", 4)),
        (4, {"ranks": 3}, ("cuda", 3)),
        (4, {"device": "cpu"}, ("cpu", 2)),
        (1, {"device": "cpu", "ranks": 8}, ("cpu", 8)),
        (1, {"device": "cuda"}, ("cuda", 1)),
    ],
)
def test_what_is_left_open_is_what_the_machine_has(monkeypatch, found, asked, settled):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: found)
    options = Options(**asked)
    assert (options.device, options.ranks) == settled
    assert replace(options, json=Path("other")) != options
    assert replace(options) == options


@pytest.mark.parametrize(
    ("found", "asked", "key"),
    [(0, {"device": "cuda"}, "device"), (2, {"ranks": 3}, "ranks"), (2, {"ranks": -1}, "ranks")],
)
def test_devices_that_there_are_not_are_refused(monkeypatch, found, asked, key):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: found)
    with pytest.raises(ValueError, match=f"^{key}: "):
        Options(**asked)


def test_settings_tell_nothing_of_files():
    assert settings_of(Options(device="cpu")) == {"device": "cpu", "ranks": 2, "path": "where"}
    shipped = Options(device="cpu", path=Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")
    assert settings_of(shipped)["path"] == "configs/demo.yaml"


@pytest.mark.parametrize("name", ["ceilings", "train", "rank", "strategies", "checkpoint", "store"])
def test_every_benchmark_on_ranks_refuses_a_device_that_there_is_not(name, monkeypatch, capsys):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--device", "cuda"])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert "device" in errors
