from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from dist_imsr.benchmarks.options import MAY_BE_ZERO, WorldOptions
from launch.bench import main


@dataclass(frozen=True, kw_only=True)
class Example(WorldOptions):
    path: Path = Path("where")
    seed: int = field(default=0, metadata=MAY_BE_ZERO)


@pytest.mark.parametrize(
    ("found", "given", "expected"),
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
def test_defaults_depend_on_the_machine(monkeypatch, found, given, expected):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: found)
    options = Example(**given)
    assert (options.device, options.ranks) == expected
    assert replace(options, json=Path("other")) != options
    assert replace(options) == options


@pytest.mark.parametrize(
    ("found", "given", "key"),
    [
        (0, {"device": "cuda"}, "device"),
        (2, {"ranks": 3}, "ranks"),
        (2, {"ranks": -1}, "ranks"),
        (0, {"seed": -1}, "seed"),
        (0, {"threads": 0}, "threads"),
    ],
)
def test_impossible_values_are_refused(monkeypatch, found, given, key):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: found)
    with pytest.raises(ValueError, match=f"^{key}: "):
        Example(**given)


def test_settings_without_output_files():
    assert Example(device="cpu").settings == {"device": "cpu", "ranks": 2, "threads": 1, "path": "where", "seed": 0}
    shipped = Example(device="cpu", path=Path(__file__).resolve().parents[2] / "configs" / "demo.yaml")
    assert shipped.settings["path"] == "configs/demo.yaml"


@pytest.mark.parametrize("name", ["ceilings", "train", "rank", "strategies", "checkpoint", "store"])
def test_every_benchmark_on_ranks_refuses_a_missing_device(name, monkeypatch, capsys):
    monkeypatch.setattr("dist_imsr.devices.device_count", lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        main([name, "--device", "cuda"])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert "device" in errors
