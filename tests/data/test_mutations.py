"""Mutated logs: each is refused in one line, or read as an independent reading does.

`python -m tests.data.mutations --count 10000 --seed 1` tries more of them.
"""

from pathlib import Path

import pytest

from tests.data.mutations import GOOD, NAMES, READ, check, make_case

COUNT, CHUNK, SEED = 400, 50, 0  # chunks, so that several workers share them


@pytest.mark.parametrize("number", range(3 * len(NAMES)))
def test_a_log_without_damage_is_read(number: int, tmp_path: Path) -> None:
    case = make_case(SEED, number, mutated=False)
    outcome = check(case, tmp_path)
    assert outcome.kind == READ, f"{case.names}: {outcome.details}"


@pytest.mark.parametrize("start", range(0, COUNT, CHUNK))
def test_no_mutation_is_read_wrongly(start: int, tmp_path: Path) -> None:
    failures = []
    for number in range(start, start + CHUNK):
        case = make_case(SEED, number)
        folder = tmp_path / str(number)
        folder.mkdir()
        outcome = check(case, folder)
        if outcome.kind not in GOOD:
            command = f"python -m tests.data.mutations --seed {SEED} --only {number}"
            failures.append(f"{command}: {outcome.kind} ({', '.join(case.names)}): {outcome.details[:300]}")
    assert not failures, "\n".join(failures)


def test_a_number_is_always_the_same_input() -> None:
    for number in range(60):
        assert make_case(SEED, number).log.data == make_case(SEED, number).log.data
    assert len({make_case(SEED, number).log.data for number in range(300)}) == 300
