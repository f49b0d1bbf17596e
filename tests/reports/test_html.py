"""HTML elements and the page: escaping, tables, template."""

from html.parser import HTMLParser

from lm.reports import html
from lm.reports.plots import style

HOSTILE = "</td><script>alert(1)</script>\"'&{{ title }}{% x %}"


class PageParser(HTMLParser):
    """Parser that collects the tags with their attributes, and the text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(str(text))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def test_elements_escape_their_arguments():
    for piece in (
        html.paragraph(HOSTILE),
        html.code_block(HOSTILE),
        html.collapsed_section(HOSTILE, ""),
        html.html_table([{HOSTILE: HOSTILE}]),
        html.html_table([{HOSTILE: 1.0}], {HOSTILE: lambda value: HOSTILE}, is_sortable=True),
        html.html_table([{"a": 1.0}], sort_keys={"a": [HOSTILE]}) + html.paragraph(HOSTILE),
    ):
        parsed = PageParser(piece)
        assert HOSTILE in parsed.text
        assert not [tag for tag, _ in parsed.tags if tag == "script"]


def test_cells_contain_their_sort_keys():
    rows = [{"loss": (2.1, 0.1)}, {"loss": None}]
    formats = {"loss": "{0[0]} ± {0[1]}".format}
    parsed = PageParser(html.html_table(rows, formats, is_sortable=True))
    sort_keys = [attrs["data-v"] for tag, attrs in parsed.tags if tag == "td"]
    assert sort_keys == ["2.1", ""] and "–" in parsed.text
    assert [tag for tag, _ in parsed.tags].count("button") == 1


def test_empty_table_is_a_sentence():
    assert "None." in html.html_table([])


def test_page_escapes_its_arguments_and_loads_nothing(tmp_path):
    path = html.write_page(
        tmp_path / "page.html",
        title=HOSTILE,
        headline=("held", HOSTILE),
        tiles=[(HOSTILE, HOSTILE)],
        sections={HOSTILE: html.paragraph(HOSTILE)},
        footer=HOSTILE,
        dark_colors=style.dark_theme_map([]),
    )
    parsed = PageParser(path.read_text(encoding="utf-8"))
    # Title, heading, headline, tile twice, section twice, footer.
    assert parsed.text.count(HOSTILE) == 8
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not [tag for tag, _ in parsed.tags if tag in ("link", "img", "iframe")]
    assert not [attrs for _, attrs in parsed.tags if "src" in attrs]
