"""Components that users' own modules register: toys, from their registration to their sections' keys."""

import importlib
import pickle
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from dist_imsr.checks import require
from dist_imsr.config import extended, import_modules, parse, resolve, section_of, to_yaml
from dist_imsr.keys import default_of, keys_of, later_spans, never, rules_of
from dist_imsr.registry import Registry

TOYS: Registry[type] = Registry("toy.name")


@dataclass
class SpinConfig:
    """How a top spins.

    Args:
        speed: turns a second.
    """

    speed: int = 1

    def __post_init__(self) -> None:
        require(self.speed >= 1, "toy.spin.speed", self.speed, "at least 1")


@TOYS.register("spin", SpinConfig)
class Spin:
    pass


@TOYS.register("rest")
class Rest:
    pass


@dataclass
class ToyConfig:
    """The toy.

    Args:
        name: which one.
        spin: of spin.
    """

    registry: ClassVar[Registry[type]] = TOYS
    name: str = field(default="spin", metadata=never(compare="grid"))
    spin: SpinConfig = field(default_factory=lambda: SpinConfig(2))

    def __post_init__(self) -> None:
        self.registry[self.name]


@dataclass
class Command:
    """Plays.

    Args:
        run_dir: where.
        toy: the toy.
        imports: modules of toys.
    """

    run_dir: Path
    toy: ToyConfig = field(default_factory=ToyConfig, metadata=later_spans())
    imports: list[str] = field(default_factory=list)


MODULE = """
from dataclasses import dataclass
from tests.test_registry import TOYS

@dataclass
class {name}Config:
    \"\"\"A toy of one's own.

    Args:
        key: of a door.
    \"\"\"

    key: int = 1

    def __post_init__(self):
        if self.key < 0:
            raise ValueError(f"toy.{lower}.key: {{self.key}} is impossible here")

@TOYS.register("{lower}", {name}Config)
class {name}:
    pass
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in the current directory, importable from nowhere else."""
    folder = tmp_path / "our_toys"
    folder.mkdir()
    for name in ("Mine", "Other"):
        (folder / f"{name.lower()}.py").write_text(MODULE.format(name=name, lower=name.lower()))
    (folder / "broken.py").write_text("raise RuntimeError('two\\nlines')")
    (folder / "leaving.py").write_text("raise SystemExit(0)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    entries = dict(TOYS._entries)
    yield tmp_path
    TOYS._entries = entries
    for name in [name for name in sys.modules if name.startswith("our_toys")]:
        del sys.modules[name]
    importlib.invalidate_caches()


def test_a_tree_without_registered_sections_stays_as_it_is():
    assert extended(Command) is Command
    assert type(parse(Command, ["--run_dir", "r"])) is Command


def test_an_imported_module_brings_a_section(package):
    argv = ["--run_dir", "r", "--toy.name", "mine", "--import", "our_toys.mine", "--toy.mine.key", "3"]
    command = parse(Command, argv)
    assert isinstance(command, Command)
    assert isinstance(command.toy, ToyConfig)
    assert (command.toy.name, command.toy.mine.key, command.toy.spin) == ("mine", 3, SpinConfig(2))
    assert command.imports == ["our_toys.mine"]
    assert TOYS["mine"].config is type(command.toy.mine)
    assert replace(command, run_dir=Path("s")).toy == command.toy
    assert resolve(Command, argv) == command


def test_a_written_configuration_imports_its_modules_again(package):
    argv = [
        "--run_dir=r",
        "--toy.name=mine",
        "--toy.mine.key=3",
        "--import=our_toys.mine",
        "--import",
        "our_toys.other",
    ]
    command = parse(Command, argv)
    assert yaml.safe_load(to_yaml(command))["toy"]["mine"] == {"key": 3}
    file = package / "config.yaml"
    file.write_text(to_yaml(command))
    read = f"from tests.test_registry import *; print(to_yaml(parse(Command, ['--config={file}'])), end='')"
    root = Path(__file__).parents[1]
    code = f"import sys; sys.path.append({str(root)!r}); {read}"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=package)
    assert found.stdout == to_yaml(command)
    assert parse(Command, [f"--config={file}", "--toy.mine.key=4"]).toy.mine.key == 4


@pytest.mark.parametrize(
    "argv",
    [
        ["--import", "our_toys.mine", "our_toys.other"],
        ["--import", "our_toys.mine", "--import", "our_toys.other", "--import=our_toys.mine"],
        ["--imports", "[our_toys.mine, our_toys.other]"],
    ],
)
def test_several_modules_are_imported_once_each(package, argv):
    command = parse(Command, ["--run_dir", "r", *argv, "--toy.mine.key", "3", "--toy.other.key", "4"])
    assert command.imports == ["our_toys.mine", "our_toys.other"]
    assert (command.toy.mine.key, command.toy.other.key) == (3, 4)


def test_modules_of_files_come_before_those_of_the_command_line(package):
    for name in ("mine", "other"):
        (package / f"{name}.yaml").write_text(f"imports: [our_toys.{name}]\ntoy: {{{name}: {{key: 5}}}}\n")
    command = parse(Command, ["--import", "our_toys.other", "--run_dir=r", "--config=mine.yaml", "--config=other.yaml"])
    assert command.imports == ["our_toys.mine", "our_toys.other"]
    assert (command.toy.mine.key, command.toy.other.key) == (5, 5)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--import", "our_toys.absent"], "import: our_toys.absent: ModuleNotFoundError: No module named"),
        (["--import", "our_toys.broken"], "import: our_toys.broken: RuntimeError: two lines"),
        (["--import", "our_toys.leaving"], "import: our_toys.leaving: SystemExit: 0"),
        (["--import", ".mine"], "import: .mine: TypeError"),
        (["--import"], "import: '' is impossible here; expected the name of a module"),
        (["--import", "[open"], "import: '[open' is impossible here"),
        (["--import", "3"], "import: '3' is impossible here"),
        (["--config=wrong.yaml"], "imports"),
        (["--toy.name", "mine"], "toy.name: 'mine' is impossible here; expected one of spin, rest"),
        (["--toy.mine.key", "3"], "toy.mine.key"),
        (["--import=our_toys.mine", "--toy.mine.kye=3"], "toy.mine.kye"),
        (["--import=our_toys.mine", "--toy.mine.key=wide"], "toy.mine.key"),
        (["--import=our_toys.mine", "--toy.mine.key=-1"], "toy.mine.key: -1 is impossible"),
        (
            ["--import=our_toys.mine", "--toy.name=my"],
            "toy.name: 'my' is impossible here; expected one of spin, rest, m",
        ),
        (["--import=our_toys.mine", "--toy.spin.speed=0"], "toy.spin.speed: 0"),
    ],
)
def test_what_cannot_be_imported_or_is_unknown_is_refused_in_one_line(package, argv, message, capsys):
    (package / "wrong.yaml").write_text("imports: [[1]]\n")
    with pytest.raises(SystemExit, match="2"):
        parse(Command, ["--run_dir", "r", *argv])
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


def test_help_shows_registered_names_and_sections(package, capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(Command, ["--import", "our_toys.mine", "--help"])
    output = capsys.readouterr().out
    for expected in ("{spin,rest,mine}", "--toy.mine.key", "of a door", "(type: int, default: 1)"):
        assert expected in output


def test_a_command_without_the_key_imports_as_well(package):
    @dataclass
    class Plan:
        """Plans."""

        toy: ToyConfig = field(default_factory=ToyConfig)

    assert parse(Plan, ["--import=our_toys.mine", "--toy.mine.key=3"]).toy.mine.key == 3


def test_a_section_is_read_from_plain_values(package):
    import_modules(["our_toys.mine"])
    toy = section_of(ToyConfig, {"name": "mine", "mine": {"key": 4}})
    assert isinstance(toy, ToyConfig)
    assert (toy.mine.key, toy.spin.speed) == (4, 2)
    for values, message in (
        ({"nmae": "mine"}, "nmae"),
        ({"mine": {"key": "wide"}}, "key"),
        ({"name": "x"}, "toy.name"),
    ):
        with pytest.raises(ValueError, match=message):
            section_of(ToyConfig, values)


def test_an_extended_configuration_travels_to_other_processes(package):
    command = parse(Command, ["--run_dir=r", "--import=our_toys.mine", "--toy.mine.key=3"])
    assert pickle.loads(pickle.dumps(command)) == command
    (package / "pickled").write_bytes(pickle.dumps(command))
    root = Path(__file__).parents[1]
    read = "config = pickle.load(open('pickled', 'rb')); print(config.toy.mine.key)"
    code = f"import pickle, sys; sys.path[:0] = [{str(root)!r}]; {read}"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=package)
    assert found.stdout == "3\n"


def test_keys_of_registered_sections_have_rules_and_defaults(package):
    assert rules_of(Command, "toy.mine.key").resume == "free"  # nobody imported what reads it
    assert rules_of(Command, "toy.mine").resume == "later_spans"
    import_modules(["our_toys.mine"])
    tree = extended(Command)
    assert list(keys_of(tree)) == ["run_dir", "toy.name", "toy.spin.speed", "toy.mine.key", "imports"]
    assert rules_of(tree, "toy.mine.key").resume == "later_spans"
    assert (rules_of(tree, "toy.name").resume, rules_of(tree, "toy.name").compare) == ("never", "grid")
    assert [default_of(tree, key) for key in ("toy.mine.key", "toy.spin.speed", "run_dir", "no.such")] == [
        1,
        2,
        None,
        None,
    ]


def test_a_registry_refuses_names_that_two_components_have():
    registry: Registry[type] = Registry("toy.name")
    registry.register("spin")(Spin)
    registry.register("spin")(Spin)  # a module that is imported again
    assert (list(registry), "spin" in registry, "rest" in registry) == (["spin"], True, False)
    with pytest.raises(ValueError, match=r"toy\.name: 'spin' is registered twice, by .*Spin and .*Rest"):
        registry.register("spin")(Rest)
    with pytest.raises(ValueError, match="cannot be the name of a section"):
        registry.register("my-toy")
    with pytest.raises(ValueError, match=r"toy\.name: 'rest' is impossible here; expected one of spin"):
        registry["rest"]
