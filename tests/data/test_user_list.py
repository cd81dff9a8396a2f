import uuid
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dist_imsr.data.user_list import ids_of, read_user_list


class _Data:
    """Prepared data with some users."""

    def __init__(self, *users, kind=None):
        self.users = pa.array(users, kind)

    def raw_id_type(self, table):
        assert table == "users"
        return self.users.type

    def user_ids(self, raw):
        known = self.users.to_pylist()
        return pa.array([known.index(one) if one in known else -1 for one in raw.to_pylist()]).to_numpy()


_TEXT, _NUMBERS = _Data("007", "7", " b ", "Ä"), _Data(7, 8, 10**18)


def _read(path, content, data):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_user_list(path, data)


def test_text_ids_are_read_as_they_stand(tmp_path):
    lines = " b \r\n\r\n007\n7\n\tÄ\n\n a\u2028b\x0bc \nz\r\r\n7\nlast"
    users = _read(tmp_path / "users.txt", lines, _TEXT)
    assert users.ids.to_pylist() == [" b ", "007", "7", "\tÄ", " a\u2028b\x0bc ", "z\r", "last"]
    assert users.names.equals(users.ids)


def test_a_byte_order_mark_is_no_part_of_an_id(tmp_path):
    for name in ("users.txt", "users.csv"):
        assert _read(tmp_path / name, b"\xef\xbb\xbf" + "Ä\n".encode(), _TEXT).ids.to_pylist() == ["Ä"]


def test_text_ids_of_numbers_are_parsed_strictly(tmp_path):
    lines = (
        "7\n007\n1.5\n+8\n 8\n8 \n8\n-0\n0\n-3\n1e1\n١\n99999999999999999999\n" + "9" * 50 + "\n1000000000000000000\n"
    )
    users = _read(tmp_path / "users.txt", lines, _NUMBERS)
    assert users.ids.type == pa.int64()
    found = {
        name: one for name, one in zip(users.names.to_pylist(), users.ids.to_pylist(), strict=True) if one is not None
    }
    assert found == {"7": 7, "8": 8, "0": 0, "-3": -3, "1000000000000000000": 10**18}


def test_the_first_column_of_a_csv_counts_without_a_header(tmp_path):
    users = _read(tmp_path / "users.csv", '007,x\r\n" b ",user2\n\n"a,b",\n"line\nbreak",1\n', _TEXT)
    assert users.ids.to_pylist() == ["007", " b ", "a,b", "line\nbreak"]


def test_the_column_user_of_a_csv_counts(tmp_path):
    assert _read(tmp_path / "users.CSV", "segment,user\na,7\nb,8\n", _NUMBERS).ids.to_pylist() == [7, 8]
    assert _read(tmp_path / "users.csv", "user\n7\n", _TEXT).ids.to_pylist() == ["7"]


@pytest.mark.parametrize("header", ["id", "User", " user"])
def test_no_other_first_row_is_a_header(tmp_path, header):
    assert _read(tmp_path / "users.csv", f"{header}\n7\n", _TEXT).ids.to_pylist() == [header, "7"]


def test_a_user_called_user_is_not_lost(tmp_path):
    assert _read(tmp_path / "users.csv", "user\n7\n", _Data("user", "7")).ids.to_pylist() == ["user", "7"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([8, 7], pa.int16()),
        pa.array([8, 7], pa.uint64()),
        pa.array([Decimal("8.00"), Decimal("7.00")], pa.decimal128(10, 2)),
        pa.array(["8", "7"]),
        pa.array(["8", "7"], pa.large_string()),
        pa.array([b"8", b"7"]),
        pa.array(["8", "7"]).dictionary_encode(),
        pa.array([8.0, 7.0]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("kind", [pa.int64(), pa.int32(), pa.decimal128(10, 0), pa.decimal128(38, 0)], ids=str)
def test_parquet_columns_that_compare_with_numbers(tmp_path, column, kind):
    pq.write_table(pa.table({"age": [1, 2], "user": column}), tmp_path / "users.parquet")
    users = read_user_list(tmp_path / "users.parquet", _Data(7, 8, kind=kind))
    assert users.ids.type == kind
    assert [int(one) for one in users.ids.to_pylist()] == [8, 7]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["007", " b "]),
        pa.array(["007", " b "], pa.large_string()),
        pa.array(["007", " b "], pa.string_view()),
        pa.array([b"007", b" b "], pa.large_binary()),
        pa.array(["007", " b "]).dictionary_encode(),
    ],
    ids=lambda column: str(column.type),
)
def test_parquet_columns_that_compare_with_text(tmp_path, column):
    pq.write_table(pa.table({"id": column}), tmp_path / "users.parquet")
    assert read_user_list(tmp_path / "users.parquet", _TEXT).ids.to_pylist() == ["007", " b "]


def test_whole_numbers_and_uuids_as_text(tmp_path):
    one = uuid.UUID(int=0xABCDEF)
    for column, text in ((pa.array([7]), "7"), (pa.array([one.bytes], pa.uuid()), str(one))):
        pq.write_table(pa.table({"id": column}), tmp_path / "users.parquet")
        assert read_user_list(tmp_path / "users.parquet", _TEXT).ids.to_pylist() == [text]


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([1.5]), pa.int64()),
        (pa.array([2.0**53]), pa.int64()),
        (pa.array([float("nan")]), pa.int64()),
        (pa.array([7.0]), pa.string()),
        (pa.array([True]), pa.int64()),
        (pa.array([Decimal("1.50")]), pa.int64()),
        (pa.array([Decimal("1.50")]), pa.string()),
        (pa.array([2**40]), pa.int32()),
        (pa.array([0], pa.date32()), pa.string()),
        (pa.array([[1]]), pa.int64()),
    ],
    ids=str,
)
def test_a_cast_that_would_change_an_id_is_refused(tmp_path, column, kind):
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user": column}), path)
    with pytest.raises(ValueError, match=r"users\.parquet has ids of the type .*, which cannot be compared"):
        read_user_list(path, _Data(kind=kind))


def test_conversion_of_nothing():
    assert len(ids_of(pa.array([], pa.string()), pa.int64())) == 0


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("users.txt", b"a\n\xff\n", "not UTF-8 text"),
        ("users.csv", b"\xff", "not UTF-8 text"),
        ("users.csv", b'a\n"b\n', "unexpected end of data"),
        ("users.csv", b"1,user\n2\n", "holds empty user ids"),
        ("users.csv", b",1\n", "holds empty user ids"),
        ("users.txt", b"\n\r\n", "holds no user ids"),
        ("users.csv", b"user\n", "holds no user ids"),
        ("users.parquet", b"PAR1 damaged PAR1", "holds no list of user ids"),
        ("users.parquet", b"", "holds no list of user ids"),
    ],
)
def test_bad_files_are_named_in_one_line(tmp_path, name, content, reason):
    with pytest.raises(ValueError, match=reason) as refused:
        _read(tmp_path / name, content, _TEXT)
    assert str(tmp_path / name) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_damaged_pages_of_parquet_are_named_in_one_line(tmp_path):
    path = tmp_path / "users.parquet"
    pq.write_table(pa.table({"user": [f"user {number}" for number in range(10_000)]}), path)
    content = bytearray(path.read_bytes())
    content[4:2000] = bytes(1996)
    with pytest.raises(ValueError, match=r"users\.parquet holds no list of user ids"):
        _read(path, bytes(content), _TEXT)
