"""Text goes between the markers of a page, and nowhere else."""

import pytest

from truesparse.common.markdown import replaced_between_markers, table_head, table_row, write_between_markers


def test_what_is_between_the_markers_is_replaced():
    text = "# a\n<!-- bench -->\nold\n<!-- /bench -->\n<!-- other --><!-- /other -->\nend\n"
    once = replaced_between_markers(text, "bench", "new\n| table |\n")
    assert once == "# a\n<!-- bench -->\nnew\n| table |\n<!-- /bench -->\n<!-- other --><!-- /other -->\nend\n"
    assert replaced_between_markers(once, "bench", "new\n| table |") == once


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- bench -->",
        "<!-- /bench --> <!-- bench -->",
        "<!-- bench --> <!-- bench --> <!-- /bench -->",
        "<!-- bench --> <!-- /bench --> <!-- /bench -->",
        "<!-- other --> <!-- /other -->",
    ],
)
def test_markers_that_are_not_there_once_are_an_error(tmp_path, text):
    with pytest.raises(ValueError, match="expected <!-- bench --> and, after it, <!-- /bench -->, each once"):
        replaced_between_markers(text, "bench", "new")
    path = tmp_path / "page.md"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"page\.md: expected <!-- bench -->"):
        write_between_markers(path, "bench", "new")
    assert path.read_text() == text


def test_tables():
    assert table_head("a", "b") == ["| a | b |", "|---|---|"]
    assert table_row(1, "x") == "| 1 | x |"
