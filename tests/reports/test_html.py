"""HTML elements and the page: escaping, tables, template."""

import pathlib
import re
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
    # Title, heading, headline, tile twice, link, section twice, footer.
    assert parsed.text.count(HOSTILE) == 9
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert not [tag for tag, _ in parsed.tags if tag in ("link", "img", "iframe")]
    assert not [attrs for _, attrs in parsed.tags if "src" in attrs]


def test_glossary_of_the_page_is_that_of_the_readme():
    readme = (pathlib.Path(__file__).parents[2] / "experiments/README.md").read_text("utf-8")
    section = readme.partition("## Glossary")[2]
    terms = re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", str(html.glossary(section)))
    assert "MFU" not in html.glossary("") and "IsoFLOP" not in html.glossary("a trunk run")
    assert len(terms) > 20 and re.findall(r"^\| (.*?) \| (.*?) \|$", section, re.M)[2:] == terms


def test_exponents_are_superscripts_and_text_is_escaped():
    text = html.superscripts("L = 2 N^-0.25 <b>, 2.5×10^15, p^k, ^3")
    assert text == "L = 2 N<sup>−0.25</sup> &lt;b&gt;, 2.5×10<sup>15</sup>, p^k, ^3"
    assert "10<sup>15</sup>" in html.html_table([{"FLOPs": "10^15"}])


def test_numbers_in_names_paths_and_commands_are_unchanged():
    text = str(html.paragraph("p = 3e-05, E in [-1.5e-05, 2e+12]"))
    assert text.count("<sup>") == 3 and "e-05" not in text and "e+12" not in text
    for name in ("report --verify=runs/lr-1e-05", "60K-3e-04", "optim.lr=3e-04", "1e-05/metrics"):
        assert f">{name}<" in str(html.text_list([name])), name


def test_wide_tables_are_lists_of_cards():
    for n_columns, expected in ((3, ""), (4, "cards"), (13, "cards stacked")):
        table = html.html_table([{f"c{i}": i for i in range(n_columns)}])
        assert f'<table class="{expected}">' in table and 'data-name="c1"' in table


def test_only_the_first_warnings_are_visible():
    texts = [f"warning {i}" for i in range(6)]
    assert "<details>" not in html.warning_list(texts[:4])
    text = str(html.warning_list(texts))
    visible, _, collapsed = text.partition("<summary>3 more warnings</summary>")
    assert visible.count("warning ") == 3 and collapsed.count("warning ") == 3


def test_tables_of_long_texts_and_names_fit_a_phone():
    assert "cards" in html.html_table([{"": "models", "a": "long text " * 9, "b": "short"}])
    assert "cards" not in html.html_table([{"": "models", "a": "short", "b": "short"}])
    heading = html.html_table([{"loss on tasks:copy+upper": 1}])
    assert "tasks:<wbr>copy+<wbr>upper</th>" in heading


def test_every_panel_has_a_label_for_screen_readers():
    figure, (left, right) = style.new_panels("Losses", 2)
    style.panel_title(left, "docs", style.LIGHT)
    right.set_ylabel("nats")
    labels = re.findall('aria-label="([^"]*)"', html.html_figure(figure))
    assert labels == ["docs", "Losses: nats"]
    figure, _ = style.new_figure("", "", "")
    assert 'aria-label="Figure"' in html.html_figure(figure)
