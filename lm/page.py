"""One page that opens from disk: the template report.html, filled with pieces that are escaped.

It asks nothing of a network. `words`, `code`, `table` and `figure` escape all they are given and
return HTML: no other file writes any.
"""

import html
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from lm import storage, style

BROAD = 8  # inches: a wider figure takes the whole width of the page


def write(path, title, headline, tiles, sections, footer, twins, refresh=0.0) -> Path:
    """Fills the template and writes it; returns the path.

    headline: (state, words), state one of held, missed, open; tiles: [(name, value)];
    sections: {heading: HTML}; twins: {colour on white: colour on dark}, see style.twins; refresh:
    seconds after which the open page loads itself anew, 0 for never.
    """
    state, words_ = headline
    dark = " ".join(f"--c{light[1:]}: {colour};" for light, colour in twins.items())
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    text = string.Template(template).substitute(
        title=escape(title),
        light=_variables(style.LIGHT),
        dark=_variables(style.DARK) + dark,
        state=escape(state),
        headline=escape(words_),
        tiles="".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles
        ),
        sections="".join(
            f"<section><h2>{escape(head)}</h2>{body}</section>" for head, body in sections.items()
        ),
        footer=escape(footer),
        refresh=f"{refresh:g}",
    )
    path = storage.at(path)
    storage.write(path, text)
    return path


def escape(text) -> str:
    """Plain text for the inside of a page, quotes included."""
    return html.escape(str(text))


def words(text, css="") -> str:
    """A paragraph."""
    return f'<p class="{css}">{escape(text)}</p>'


def code(text) -> str:
    """Lines as they are."""
    return f"<pre>{escape(text)}</pre>"


def details(summary, body: str) -> str:
    """HTML that shows once its summary is pressed."""
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def table(lines: Sequence[Mapping[str, tuple[str, float | str]]], css="") -> str:
    """Lines of cells (text, what it sorts by); numbers stand on the right, words on the left.

    css "sortable" makes the heads buttons.
    """
    if not lines:
        return words("None.", "muted")
    left = {head for head in lines[0] if all(isinstance(line[head][1], str) for line in lines)}
    side = {head: ' class="words"' if head in left else "" for head in lines[0]}
    label = "<button>{}</button>" if css else "{}"
    heads = "".join(
        f'<th scope="col"{side[head]}>{label.format(escape(head))}</th>' for head in side
    )
    body = ""
    for line in lines:
        cells = (
            f'<td{side[head]} data-v="{escape(by)}">{escape(text) or "–"}</td>'
            for head, (text, by) in line.items()
        )
        body += f"<tr>{''.join(cells)}</tr>\n"
    inside = f"<thead><tr>{heads}</tr></thead><tbody>\n{body}</tbody>"
    return f'<div class="scroll"><table class="{css}">{inside}</table></div>'


def figure(drawn: Figure, files: str = "") -> str:
    """A figure inside the page, which takes its caption; links to files.png and .svg, if named."""
    svg, caption = style.inline(drawn)
    title = escape(drawn.axes[0].get_title(loc="left") or drawn.get_suptitle())
    links = " ".join(
        f'<a href="{escape(files)}.{kind}">{kind.upper()}</a>'
        for kind in (("png", "svg") if files else ())
    )
    svg = svg.replace("<svg", f'<svg tabindex="0" aria-label="{title}"', 1)
    side = ' class="broad"' if drawn.get_figwidth() > BROAD else ""
    text = f"<figcaption>{escape(caption)} <span>{links}</span></figcaption>"
    return f"<figure{side}>{svg}{text}</figure>"


def figures(drawn: list[str]) -> str:
    """Figures side by side where there is room."""
    if not drawn:
        return words("No run has anything to draw yet.", "muted")
    how = "Press a figure to widen it; there the wheel or + zooms, a drag moves, 0 goes back."
    return words(how, "hint") + f'<div class="figures">{"".join(drawn)}</div>'


def _variables(theme) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in theme.items() if name != "sizes")
