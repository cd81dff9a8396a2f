"""Every command's configuration: what is refused names its key in one line; what is printed reads back the same."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import yaml

from dist_imsr.checks import require
from dist_imsr.config import parse, resolve, to_yaml
from dist_imsr.training.config import TrainConfig


@dataclass
class Model:
    """The model.

    Args:
        dim: width of an embedding.
        base: the extractor.
    """

    dim: int = 64
    base: Literal["mind", "comirec_dr"] = "comirec_dr"

    def __post_init__(self) -> None:
        require(self.dim >= 1, "model.dim", self.dim, "at least 1")


@dataclass
class Command:
    """Trains a toy.

    This paragraph is for readers of the code.

    Args:
        run_dir: where the run is written.
        rates: learning rates.
        overwrite: whether an older run gives way.
        seed: of every generator.
        model: the model's section.
    """

    run_dir: Path
    rates: list[float] = field(default_factory=lambda: [2e-3, 1e-3])
    overwrite: bool = False
    seed: int | None = None
    model: Model = field(default_factory=Model)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["--run_dir", "r", "--model.dmi", "3"], "model.dmi"),
        (["--run_dir", "r", "--model.di", "3"], "model.di"),  # no key is guessed from its beginning
        (["--run_dir", "r", "--epochs", "3"], "epochs"),
        (["--run_dir", "r", "--epochs=3"], "epochs"),
        (["--run_dir", "r", "--model.dim", "wide"], "model.dim"),
        (["--run_dir", "r", "--model.dim", "1.5"], "model.dim"),
        (["--run_dir", "r", "--model.base", "bert"], "model.base"),
        (["--run_dir", "r", "--overwrite", "perhaps"], "overwrite"),
        (["--run_dir", "r", "--rates", "[0.1, fast]"], "rates"),
        (["--run_dir", "r", "--model.dim", "0"], "model.dim"),
        ([], "run_dir"),
        (["--run_dir", "r", "--config", "/nowhere/at/all.yaml"], "config"),
    ],
)
def test_a_refusal_names_the_key_in_one_line(argv, key, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Command, argv)
    output, errors = capsys.readouterr()
    assert stopped.value.code == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert key in errors


def test_one_rank_speaks_for_all_that_meet_the_same_refusal(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stopped:
        parse(Command, ["--epochs", "3"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("run_dir: r\nmodel:\n  dmi: 3\n", "'model' does not accept option 'dmi'"),
        ("run_dir: r\nepochs: 3\n", "epochs"),
        ("run_dir: r\nmodel:\n  dim: wide\n", "model.dim"),
        ("run_dir: r\nmodel:\n  dim: -1\n", "model.dim"),
        ("run_dir: r\nmodel: [1, 2]\n", "model"),
        ("run_dir: r\nmodel: 3\n", "model"),
        ("run_dir: r\nseed: [1]\n", "seed"),
        ("run_dir: [unclosed\n", "config"),
    ],
)
def test_a_refusal_of_a_file_names_the_key_in_one_line(text, key, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Command, ["--config", write(tmp_path / "c.yaml", text)])
    errors = capsys.readouterr().err
    assert stopped.value.code == 2
    assert errors.count("\n") == 1
    assert key in errors


def test_require_says_the_key_the_value_and_what_is_expected():
    require(True, "a.b", 1, "anything")
    with pytest.raises(ValueError, match=r"a\.b: -1 is impossible here; expected at least 0"):
        require(False, "a.b", -1, "at least 0")


def test_defaults_and_sections_are_instances():
    command = parse(Command, ["--run_dir", "r"])
    assert command == Command(run_dir=Path("r"))
    assert isinstance(command.model, Model)
    assert isinstance(command.run_dir, Path)


def test_the_process_arguments_are_the_default(monkeypatch):
    monkeypatch.setattr("sys.argv", ["train.py", "--run_dir", "r", "--seed", "7"])
    assert parse(Command).seed == 7


def test_later_arguments_override_earlier_ones_and_all_files(tmp_path):
    first = write(tmp_path / "first.yaml", "run_dir: r\nseed: 1\nmodel: {dim: 8, base: mind}\n")
    second = write(tmp_path / "second.yaml", "model: {dim: 16}\n")
    command = parse(Command, ["--config", first, "--config", second, "--seed", "2", "--seed", "3"])
    assert command == Command(run_dir=Path("r"), seed=3, model=Model(dim=16, base="mind"))
    assert parse(Command, ["--config", second, f"--config={first}"]).model.dim == 8  # the later file wins


def test_the_command_line_wins_over_files_wherever_it_is(tmp_path):
    first = write(tmp_path / "first.yaml", "run_dir: r\nseed: 1\noverwrite: false\nmodel: {dim: 8, base: mind}\n")
    second = write(tmp_path / "second.yaml", "run_dir: s\nmodel: {dim: 16}\n")
    expected = Command(run_dir=Path("mine"), overwrite=True, seed=1, model=Model(dim=32, base="mind"))
    overrides = ["--run_dir", "mine", "--model.dim=32", "--overwrite"]
    for place in (0, 2, 3, 4):
        argv = [*overrides[:place], "--config", first, f"--config={second}", *overrides[place:]]
        assert parse(Command, argv) == expected
    argv = ["--config", first, "--run_dir", "mine", "--config", second, "--overwrite", "--model.dim=32"]
    assert parse(Command, argv) == expected


@pytest.mark.parametrize("argv", [["--run_dir", "r", "--config"], ["--config", "--run_dir", "r"]])
def test_a_file_that_is_not_named_is_refused(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        parse(Command, argv)
    assert "config: expected the path of a YAML file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *((text, " holds no keys") for text in ("", "# dim: 8\n", "- 1\n", "8\n")),
        ("run_dir: r\nmodel: {dim: 8}\nseed: 1\nmodel:\n  base: mind\n", ": model is there twice, in lines 2 and 4"),
        ("run_dir: r\nmodel:\n  dim: 8\n  base: mind\n  dim: 9\n", ": model.dim is there twice, in lines 3 and 5"),
    ],
)
def test_a_file_without_keys_or_with_one_twice_is_refused_by_name(text, message, tmp_path, capsys):
    file = write(tmp_path / "c.yaml", text)
    with pytest.raises(SystemExit, match="2"):
        parse(Command, ["--config", file, "--run_dir", "r", "--model.dim", "8"])
    errors = capsys.readouterr().err
    assert f"config: {file}{message}" in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("place", [0, 2, 4])
def test_the_rank_that_deepspeeds_launcher_adds_is_ignored(place):
    argv = ["--run_dir", "r", "--seed", "5"]
    argv.insert(place, "--local_rank=1")
    assert parse(Command, argv) == Command(run_dir=Path("r"), seed=5)


def test_print_config_round_trips(tmp_path, capsys):
    argv = ["--run_dir", "r", "--seed", "5", "--model.base", "mind", "--rates", "[0.5]"]
    with pytest.raises(SystemExit) as stopped:
        parse(Command, [*argv, "--print_config"])
    assert stopped.value.code == 0
    printed = write(tmp_path / "c.yaml", capsys.readouterr().out)
    assert parse(Command, ["--config", printed]) == parse(Command, argv)


def test_to_yaml_round_trips(tmp_path):
    command = Command(run_dir=Path("runs/a b"), rates=[], overwrite=True, model=Model(dim=3))
    text = to_yaml(command)
    assert list(yaml.safe_load(text)) == ["run_dir", "rates", "overwrite", "seed", "model"]
    assert parse(Command, ["--config", write(tmp_path / "c.yaml", text)]) == command


def test_help_comes_from_the_docstrings(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse(Command, ["--help"])
    output = capsys.readouterr().out
    assert stopped.value.code == 0
    for expected in (
        "Trains a toy.",
        "--model.dim",
        "width of an embedding",
        "default: 64",
        "where the run is written",
    ):
        assert expected in output
    assert "readers of the code" not in output


def test_a_switch_needs_no_value():
    arguments = ["--data.path", "d", "--run_dir", "r", "--overwrite", "--data.verify", "--seed", "3"]
    config = parse(TrainConfig, arguments)
    assert config.overwrite
    assert config.data.verify
    assert config.seed == 3
    assert not parse(TrainConfig, [*arguments, "--overwrite", "false"]).overwrite


@pytest.mark.parametrize(
    ("arguments", "modules"),
    [
        ([], ["json"]),
        (["--import", "csv"], ["json", "csv"]),
        (["--imports+=csv"], ["json", "csv"]),
        (["--imports=[csv]"], ["csv"]),
        (["--imports=[csv]", "--import", "wave"], ["csv", "wave"]),
        (["--imports=[]"], []),
    ],
)
def test_imports_replace_or_add_to_those_of_files(tmp_path, arguments, modules):
    file = tmp_path / "run.yaml"
    file.write_text("imports: [json]\n")
    own = ["--data.path", "data", "--run_dir", "run", "--config", str(file)]
    assert resolve(TrainConfig, [*own, *arguments]).imports == modules


@dataclass(kw_only=True)
class Period:
    """When.

    Args:
        from_: the first day.
        names: what to call it.
    """

    own_heading: ClassVar[bool] = True

    from_: str | None = None
    names: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Reader(Period):
    """Reads.

    Args:
        input: files.
        model: the model's section.
    """

    input: list[Path] | Path | None = None
    model: Model = field(default_factory=Model)


def test_several_words_are_a_list_and_texts_stay_texts() -> None:
    assert parse(Reader, ["--input", "a.csv"]).input == Path("a.csv")
    assert parse(Reader, ["--input", "a.csv", "b.csv", "--names", "x"]).input == [Path("a.csv"), Path("b.csv")]
    assert parse(Reader, ["--input=[a.csv, 007]"]).input == [Path("a.csv"), Path("007")]
    for words in (["--names", "NA", "NULL", "null", "007"], ["--names", "[NA, NULL, null, 007]"]):
        assert parse(Reader, words).names == ["NA", "NULL", "null", "007"]
    assert parse(Command, ["--run_dir", "r", "--rates", "1", "2"]).rates == [1.0, 2.0]


def test_a_key_that_python_keeps_for_itself(tmp_path: Path) -> None:
    assert parse(Reader, ["--from", "2020"]).from_ == "2020"
    assert parse(Reader, ["--config", write(tmp_path / "a.yaml", "from_: '2021'")]).from_ == "2021"


def test_inherited_keys_have_their_own_heading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(Reader, ["--help"])
    text = capsys.readouterr().out
    places = [text.index(part) for part in ("--input", "When:", "--from FROM", "--names", "--model.dim")]
    assert places == sorted(places)
