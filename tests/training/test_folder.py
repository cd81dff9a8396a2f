import os

import pytest

from dist_imsr.data.dataset import DataConfig
from dist_imsr.training.config import TrainConfig
from dist_imsr.training.folder import check_folder, claim_folder, refuse_locked
from dist_imsr.training.run import check
from tests.prepared import drawn_history, write_dataset


@pytest.fixture
def config(tmp_path):
    return TrainConfig(data=DataConfig(tmp_path), run_dir=tmp_path / "run")


def _killed_early(config):
    """Writes the files of a process that was killed before its first checkpoint."""
    os.close(claim_folder(config, []))
    for name in ("events", "checkpoints"):
        (config.run_dir / name).mkdir()
    (config.run_dir / "events" / "events.out.tfevents.1").write_text("x")
    (config.run_dir / "checkpoints" / ".partial-span=00").mkdir()
    (config.run_dir / "metrics.jsonl").touch()
    (config.run_dir / "phases.jsonl").write_text("{}\n")
    (config.run_dir / "profile").mkdir()
    (config.run_dir / "profile" / "span=00-rank=0000.json.gz").touch()
    (config.run_dir / "logs").mkdir()
    (config.run_dir / "logs" / "rank=0000.log").write_text("out of memory\n")


def test_a_run_without_results_is_replaced(config):
    _killed_early(config)
    check_folder(config, False)
    _ = claim_folder(config, [])
    assert sorted(path.name for path in config.run_dir.iterdir()) == [".lock", "config.yaml", "logs"]
    assert (config.run_dir / "logs" / "rank=0000.log").read_text() == "out of memory\n"  # why it was killed


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(("metrics.jsonl", "{}\n"), ("events/mine", "x"), ("spans/span=1/x", "x")),
        *(("checkpoints/damaged-span=00", "x"), ("config.yaml", "# my own\nseed: 1\n")),
    ],
)
def test_results_are_refused_and_kept(config, name, content):
    _killed_early(config)
    path = config.run_dir / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"holds an earlier run \({name.split('/')[0]}\)"):
        check_folder(config, False)
    assert path.read_text() == content
    check_folder(config, True)  # with a checkpoint to resume from


def test_overwriting_empties_linked_folders(config, tmp_path):
    _killed_early(config)
    scratch = tmp_path / "scratch"
    (config.run_dir / "checkpoints").rename(scratch)
    (config.run_dir / "checkpoints").symlink_to(scratch)
    (scratch / "damaged-span=00").mkdir()
    (config.run_dir / "notes.txt").write_text("mine")
    config.overwrite = True
    check_folder(config, False)
    _ = claim_folder(config, [])
    assert list(scratch.iterdir()) == []
    assert not (config.run_dir / "logs").exists()
    assert sorted(path.name for path in config.run_dir.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "notes.txt",
    ]


def test_work_in_progress_of_another_process_is_no_earlier_run(tmp_path):
    data = write_dataset(tmp_path / "data", drawn_history())
    config = TrainConfig(data=DataConfig(data), run_dir=tmp_path / "run")
    refuse_locked(config.run_dir)  # which is missing
    lock = claim_folder(config, [])
    for content in ("", "{}\n"):  # without results so far, and with some
        (config.run_dir / "metrics.jsonl").write_text(content)
        with pytest.raises(ValueError, match="another process is writing to"):
            refuse_locked(config.run_dir)
    with pytest.raises(ValueError, match="another process is writing to"):
        check(config)
    os.close(lock)
    refuse_locked(config.run_dir)
    with pytest.raises(ValueError, match="holds an earlier run"):
        check(config)


def test_files_in_the_place_of_folders_are_refused(config):
    config.run_dir.mkdir()
    (config.run_dir / "checkpoints").write_text("x")
    with pytest.raises(ValueError, match=r"run_dir: .*checkpoints is a file"):
        check_folder(config, True)


def test_a_folder_that_changed_meanwhile_is_refused(config, tmp_path):
    (config.run_dir / "checkpoints" / "span=00-epoch=001-step=000000").mkdir(parents=True)
    with pytest.raises(ValueError, match="start it again"):
        claim_folder(config, [config.run_dir / "checkpoints" / "span=00-epoch=000-step=000002"])


def test_a_checkpoint_that_appeared_meanwhile_is_not_removed(config):
    (config.run_dir / "checkpoints" / "span=00-epoch=001-step=000000").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds an earlier run"):
        claim_folder(config, [])
    assert (config.run_dir / "checkpoints" / "span=00-epoch=001-step=000000").exists()


def test_partial_checkpoints_of_a_killed_process_are_removed(config):
    checkpoints = config.run_dir / "checkpoints"
    for name in (".discarded-a", ".partial-b", "span=00-epoch=001-step=000000"):
        (checkpoints / name / "files").mkdir(parents=True)
    _ = claim_folder(config, [checkpoints / "span=00-epoch=001-step=000000"])
    assert [path.name for path in checkpoints.iterdir()] == ["span=00-epoch=001-step=000000"]
