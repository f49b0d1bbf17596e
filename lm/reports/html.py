"""HTML of a report: elements, and one self-contained page from the template report.html.

    table = html.html_table([{"run": "100K", "loss": 2.1}, {"run": "300K", "loss": 1.9}])
    sections = {"Runs": html.join_html([html.paragraph("Two runs are done."), table])}
    html.write_page("a.html", "toy", ("open", "No result yet."), [], sections, "footer", {})

The page loads nothing from a network. All functions escape text arguments, typeset exponents
(10^15 as a superscript) and return HTML as Markup, except write_page. No other module writes HTML.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lm.reports.plots import style
from lm.reports.plots.geometry import inline_svg
from lm.runs import filesystem

MAX_WIDTH = 8  # inches; a wider figure gets the full width of the page
MAX_NARROW_PANELS = 2  # a figure with more panels gets the full width of the page

Format = Callable[[Any], str]

# 8.279e+12, but not a part of a name, path or flag such as runs/lr-1e-05 or optim.lr=3e-04.
SCIENTIFIC = re.compile(r"(?<![\w./=-])-?\d+(?:\.\d+)?e[+-]\d\d(?![\w/-])")
MAX_PLAIN_COLUMNS = 3  # a table with more columns becomes a list of cards on a phone
MAX_CELL = 80  # characters of a cell, from which on three columns are too narrow for a phone
MAX_WARNINGS = 3  # warnings that are visible without a click
MAX_COLUMNS = 12  # a table with more columns is a list of cards on every screen


def superscripts(text) -> Markup:
    """Return a text with superscripts for exponents: 2 N^-0.25. Markup is not escaped again."""
    html = style.EXPONENT.sub(r"<sup>\1</sup>", str(escape(text)))
    return Markup(html.replace("<sup>-", "<sup>−"))


def _typeset(text) -> Markup:
    """Return a sentence with superscripts, in which 8.28e+12 is a power of ten."""
    if not isinstance(text, Markup):
        text = SCIENTIFIC.sub(lambda match: style.power_of_ten(float(match[0])), str(text))
    return superscripts(text)


def _break_names(text: str) -> Markup:
    """Return a text whose long names may be broken after a punctuation mark."""
    return Markup(re.sub(r"(?<=[+:/_.,])(?=\w)", "<wbr>", str(escape(text))))


def _anchor(heading: str) -> str:
    """Return the id of a section: Time and cost -> time-and-cost."""
    return re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-")


_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)
_ENVIRONMENT.filters |= {"sup": superscripts, "anchor": _anchor, "breaks": _break_names}
_TABLE = _ENVIRONMENT.from_string(
    """<div class="scroll"><table class="{{ css }}"><thead><tr>
{%- for column in columns -%}
<th scope="col"{{ column.css }}>
{%- if is_sortable %}<button>{{ column.name | breaks }}</button>
{%- else %}{{ column.name | breaks }}{% endif -%}
</th>
{%- endfor -%}
</tr></thead><tbody>
{% for cells in lines -%}
<tr>
{%- for text, key, css in cells -%}
<td{{ css }} data-v="{{ key }}" data-name="{{ columns[loop.index0].name }}">
{#- -#}
<span>{{ text | sup or "–" }}</span></td>
{%- endfor -%}
</tr>
{% endfor -%}
</tbody></table></div>"""
)
_FIGURE = _ENVIRONMENT.from_string(
    """<figure{% if css %} class="{{ css }}"{% endif %}>
{%- if heading %}<h4>{{ heading }}</h4><div class="drawing panels" style="--width: {{ width }}px">
{%- else %}<div class="drawing">{% endif %}{{ svg }}</div>
<figcaption>
{%- if text %}<p>{{ text | sup }}</p>{% endif %}<small>{{ caption | sup }} <span>
{%- for suffix in suffixes -%}
{{ " " if not loop.first }}<a href="{{ files }}.{{ suffix }}">{{ suffix | upper }}</a>
{%- endfor -%}
</span></small></figcaption></figure>"""
)


def write_page(path, title, headline, tiles, sections, footer, dark_colors, refresh=0.0) -> Path:
    """Render the page and write it. Return its path.

    headline: (state, text, *lines) with the state held, missed or open, and short lines below the
    text. tiles: [(name, value)]. sections:
    {heading: HTML}. dark_colors: {color of the light theme: color of the dark theme}, see
    style.dark_theme_map. refresh: interval in seconds at which an open page reloads, 0 for never.
    """
    state, text, *lines = headline
    dark = " ".join(f"--c{light[1:]}: {color};" for light, color in dark_colors.items())
    html = _ENVIRONMENT.get_template("report.html").render(
        title=title,
        light=_css_variables(style.LIGHT),
        dark=_css_variables(style.DARK) + dark,
        state=state,
        headline=text,
        headline_lines=lines,
        tiles=tiles,
        sections=sections.items(),
        footer=footer,
        refresh=f"{refresh:g}",
    )
    path = filesystem.open_path(path)
    filesystem.write_file(path, html)
    return path


def tag_fingerprint(text: str, fingerprint: str) -> Markup:
    """Return a text that carries an invisible fingerprint of the sources of a page."""
    return Markup('<span data-fingerprint="{}">{}</span>').format(fingerprint, text)


def has_fingerprint(page: Path, fingerprint: str) -> bool:
    """Return True if a page contains the result of `tag_fingerprint`; False without a page."""
    try:
        text = page.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    return f'<span data-fingerprint="{fingerprint}">' in text


def paragraph(text, css="") -> Markup:
    """Return a paragraph of text. css: class of the paragraph."""
    return Markup('<p class="{}">{}</p>').format(css, _typeset(text))


def link(path: str, text) -> Markup:
    """Return a link to a file beside the page."""
    return Markup('<a href="{}">{}</a>').format(path, text)


def warning_list(warnings: Sequence[str]) -> Markup:
    """Return warnings as highlighted sentences, collapsed after the first MAX_WARNINGS."""
    notes = [paragraph(f"{warning.removesuffix('.')}.", "note") for warning in warnings]
    shown, more = notes[:MAX_WARNINGS], notes[MAX_WARNINGS:]
    if len(more) > 1:
        return join_html([*shown, collapsed_section(f"{len(more)} more warnings", join_html(more))])
    return join_html(notes)


def code_block(text) -> Markup:
    """Return a text or object as a preformatted block of HTML. Special characters are escaped."""
    return Markup("<pre>{}</pre>").format(str(text))


def formula_block(text) -> Markup:
    """Return a text or object as a preformatted block with typeset exponents."""
    return Markup("<pre>{}</pre>").format(_typeset(str(text)))


def collapsed_section(summary, body: Markup) -> Markup:
    """Return a summary that shows its body after a click."""
    return Markup("<details><summary>{}</summary>{}</details>").format(summary, body)


def join_html(parts) -> Markup:
    """Concatenate pieces of HTML. Plain text is escaped."""
    return Markup("").join(parts)


def html_table(
    rows: Sequence[Mapping[str, Any]],
    formats: Mapping[str, Format] | None = None,
    sort_keys: Mapping[str, Sequence[Any]] | None = None,
    is_sortable: bool = False,
) -> Markup:
    """Return a table whose columns are the keys of the first row.

    formats: {column: function from a value to text}; other columns use str. None is an empty cell.
    Columns of text are left-aligned, other columns right-aligned. If is_sortable, a click on a
    heading sorts the rows by value (a tuple by its first item), or by sort_keys: {column: key per
    row}.
    """
    if not rows:
        return paragraph("None.", "muted")
    formats, sort_keys = formats or {}, sort_keys or {}
    css = {name: _alignment([row[name] for row in rows]) for name in rows[0]}
    lines = []
    for i, row in enumerate(rows):
        cells = []
        for name, value in row.items():
            text = "" if value is None else formats.get(name, str)(value)
            key = sort_keys[name][i] if name in sort_keys else _sort_key(value)
            cells.append((text, key, css[name]))
        lines.append(cells)
    columns = [{"name": name, "css": css[name]} for name in rows[0]]
    table_css = "sortable" if is_sortable else ""
    is_long = len(columns) > 2 and any(
        len(text) > MAX_CELL for line in lines for text, _, _ in line
    )
    table_css += " cards" if len(columns) > MAX_PLAIN_COLUMNS or is_long else ""
    table_css += " stacked" if len(columns) > MAX_COLUMNS else ""
    return Markup(
        _TABLE.render(columns=columns, lines=lines, css=table_css.strip(), is_sortable=is_sortable)
    )


def _alignment(values) -> Markup:
    """Return the class attribute of a column: left-aligned if all values are text or None."""
    is_text = all(value is None or isinstance(value, str) for value in values)
    return Markup(' class="text"') if is_text else Markup("")


def _sort_key(value) -> float | str:
    """Return the number or text that a column is sorted by, "" for None and NaN."""
    if isinstance(value, tuple):
        value = value[0] if value else None
    return "" if value is None or value != value else value


def html_figure(
    figure: Figure,
    files: str = "",
    text: str = "",
    is_large: bool = False,
    omitted: str = "",
    svg: str = "",
) -> Markup:
    """Return a figure as inline SVG. The caption of the figure becomes HTML text.

    files: path without suffix of the PNG and SVG to link to, "" for no links. text: sentences about
    the result, above the caption. is_large: show the figure alone in its line. omitted: sentence of
    the caption that the page has elsewhere. svg: see `inline_svg.to_inline_svgs`.
    """
    svgs, caption = inline_svg.to_inline_svgs(figure, svg)
    heading = figure.get_suptitle()
    titles = [_panel_title(panel[0], heading) for panel in inline_svg.panel_axes(figure)]
    if not heading:
        titles = titles[:1]
    panels = [
        svg.replace("<svg", f'<svg tabindex="0" aria-label="{escape(title)}"', 1)
        for svg, title in zip(svgs, titles, strict=True)
    ]
    is_broad = len(svgs) > MAX_NARROW_PANELS or figure.get_figwidth() > MAX_WIDTH
    return Markup(
        _FIGURE.render(
            svg=Markup("".join(panels)),
            heading=heading,
            width=round(72 * figure.get_figwidth() / _columns(figure)),
            caption=caption.replace(omitted, "").strip() if omitted else caption,
            files=files,
            suffixes=("png", "svg") if files else (),
            text=text,
            css="large" if is_large else "broad" if is_broad else "",
        )
    )


def _panel_title(axes: Axes, heading: str) -> str:
    """Return the title of a panel for screen readers: without a title, the heading and y label."""
    title = axes.get_title(loc="left") or axes.get_title()
    return title or ": ".join(filter(None, (heading, axes.get_ylabel()))) or "Figure"


def _columns(figure: Figure) -> int:
    """Return the number of columns of panels of a figure."""
    return len({round(axes.get_position().x0, 2) for axes in figure.axes})


def html_figures(figures: Sequence[Markup]) -> Markup:
    """Return figures in a grid, empty without figures. A wide page shows several per row."""
    if not figures:
        return Markup("")
    return Markup('<div class="figures">{}</div>').format(join_html(figures))


def subheading(text) -> Markup:
    """Return a heading inside a section."""
    return Markup("<h3>{}</h3>").format(text)


def glossary(page: str) -> Markup:
    """Return the terms of a report with their definitions, from the template glossary.html.

    page: the text of the report. Some terms are left out if the report does not use them.
    """
    return Markup(_ENVIRONMENT.get_template("glossary.html").render(page=page.lower()))


def text_list(lines: Sequence[str]) -> Markup:
    """Return lines of text as a list."""
    return Markup("<ul>{}</ul>").format(
        join_html([Markup("<li>{}</li>").format(_typeset(line)) for line in lines])
    )


def _css_variables(theme) -> str:
    """Return the colors of a theme as CSS variables: --ink: #1d2733;."""
    return " ".join(f"--{name}: {color};" for name, color in theme.items() if name != "sizes")
