import pytest

from dist_imsr.config import parse
from dist_imsr.data.dataset import DataConfig, Dataset
from dist_imsr.planning.hardware import HardwareConfig
from dist_imsr.planning.memory import total
from dist_imsr.planning.plan import plan_of
from dist_imsr.training.config import TrainConfig
from tests.prepared import drawn_history, write_dataset


@pytest.fixture(scope="module")
def history():
    return drawn_history(users=60, items=80, spans=4, longest=12)


@pytest.fixture(scope="module")
def planned(history, tmp_path_factory):
    folder = write_dataset(tmp_path_factory.mktemp("data"), history)
    dataset = Dataset(DataConfig(folder))

    def plan(*arguments, ranks=2, **others):
        config = parse(TrainConfig, [f"--data.path={folder}", "--run_dir=run", "--model.dim=8", *arguments])
        return dataset, plan_of(dataset, config, ranks, "cpu", **others)

    return plan


def test_spans_are_those_of_the_data(history, planned):
    dataset, plan = planned()
    assert [span.items for span in plan.memory.spans] == dataset.items_by_span
    for span in plan.memory.spans:
        lengths = [len(user[span.number]) for user in history.values() if user[span.number]]
        assert span.users == len(lengths)
        assert span.interactions == pytest.approx(sum(lengths) / len(lengths))
        assert span.capacity >= span.items
    assert plan.config.users == dataset.users == sum(any(spans) for spans in history.values())
    assert plan.config.ranks == 2


def test_sections_of_the_run_decide(planned):
    dataset, imsr = planned("--strategy.name=imsr")
    _, tuned = planned("--strategy.name=fine_tuning")
    assert imsr.memory.spans[-1].interests > tuned.memory.spans[-1].interests == dataset.users * 4
    assert {phase.name for phase in imsr.memory.phases()} - {phase.name for phase in tuned.memory.phases()} == {
        "trimming"
    }
    _, wide = planned("--model.dim=16")
    width, wider = (plan.memory.table_bytes(plan.memory.spans[0])[0] for plan in (tuned, wide))
    assert wider / width == (16 + 4) / (8 + 4)  # with the columns of the bias


def test_measured_figures_replace_assumed_ones(planned):
    (_, light), (_, heavy) = (planned(process=process) for process in (10**6, 10**9))
    lighter, heavier = (plan.memory.phases()[0].host for plan in (light, heavy))
    assert total(heavier) - total(lighter) == 10**9 - 10**6
    slow, fast = (planned(hardware=HardwareConfig(fp32=rate, overhead=0.0))[1] for rate in (1e6, 1e9))
    seconds = [plan.span_seconds(plan.memory.spans[1], None)["training"] for plan in (slow, fast)]
    assert seconds[0] > 10 * seconds[1] > 0
