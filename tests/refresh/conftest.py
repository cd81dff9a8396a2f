"""A week's log in days, and the first of them prepared."""

import pytest

from tests.refresh.daily import prepare_days, write_days


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    return write_days(tmp_path_factory.mktemp("log"))


@pytest.fixture(scope="module")
def three_days(days, tmp_path_factory):
    """Prepared data of the first three days."""
    return prepare_days(days[:3], tmp_path_factory.mktemp("prepared") / "data")
