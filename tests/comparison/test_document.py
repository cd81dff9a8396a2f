import pytest

from dist_imsr.comparison.document import replace_part


@pytest.mark.parametrize(
    "text", ["", "<!-- a -->\n", "<!-- end of a -->\n<!-- a -->\n", "<!-- a -->\n<!-- a -->\n<!-- end of a -->\n"]
)
def test_documents_without_marks_are_refused(tmp_path, text):
    path = tmp_path / "results.md"
    with pytest.raises(ValueError, match="a Markdown file"):
        replace_part(path, "a", "new")
    path.write_text(text)
    with pytest.raises(ValueError, match="a file with the lines <!-- a --> and <!-- end of a -->"):
        replace_part(path, "a", "new")
    assert path.read_text() == text
