"""HTML elements of a page: every text is escaped here, and the page loads nothing from elsewhere."""

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root { color-scheme: light }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #111; background: #fff;
  max-width: 74rem; margin: 0 auto; padding: 1.2rem }
h1 { font-size: 1.6rem; margin: .2rem 0 }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; border-bottom: 1px solid #999 }
h3 { font-size: 1rem; margin: 1.4rem 0 .2rem }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; margin: .6rem 0 }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ccc; text-align: right; vertical-align: top }
th { border-bottom: 2px solid #333; text-align: right } th:first-child, td:first-child, .words td { text-align: left }
.words th { text-align: left } tbody tr.chance { font-style: italic }
td .interval { display: block; font-size: .76rem; color: #444; white-space: nowrap }
td { white-space: nowrap } .words td:not(:first-child) { white-space: normal }
.results { font-size: .78rem } .results th, .results td { padding: .25rem .3rem }
.results th:nth-child(2), .results td:nth-child(2) { text-align: left; white-space: normal; min-width: 6rem }
.results th:nth-last-child(-n+2) { min-width: 4.6rem }
.scorers th:nth-child(2), .scorers td:nth-child(2) { text-align: left }
figure { margin: .6rem 0 1.2rem } figure img { max-width: 100%; height: auto; display: block }
figcaption, .note { color: #333; font-size: .88rem; max-width: 52rem }
.alarm { border-left: 4px solid #111; padding-left: .6rem; font-weight: 600 }
details { border: 1px solid #bbb; padding: .3rem .8rem; margin: .6rem 0 } summary { cursor: pointer; font-weight: 600 }
@media print { details { border: 0 } figure, tr { break-inside: avoid } }
"""


POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page that forbids its browser to load anything."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{CSS}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def heading(text: str, level: int = 2) -> str:
    """A heading."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, kind: str = "note") -> str:
    """A paragraph of a class of the style sheet."""
    return f'<p class="{kind}">{escape(text)}</p>'


def bullets(texts: Sequence[str]) -> str:
    """A list."""
    return '<ul class="note">' + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table. An interval in brackets at the end of a cell goes to a line of its own, and so does a p."""
    top = "".join(f'<th scope="col">{escape(text)}</th>' for text in header)
    body = "".join(_line(row) for row in rows)
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def picture(uri: str, caption: str) -> str:
    """A figure with its caption, which is its alternative text too."""
    return (
        f'<figure><img src="{escape(uri)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
    )


def folded(summary: str, parts: Iterable[str]) -> str:
    """Parts in a collapsed section."""
    return f"<details><summary>{escape(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def _line(row: Sequence[str]) -> str:
    kind = ' class="chance"' if row and row[0] == "chance" else ""
    return f"<tr{kind}>" + "".join(f"<td>{_cell(text)}</td>" for text in row) + "</tr>"


def _cell(text: str) -> str:
    value, bracket, interval = text.partition(" [")
    if bracket and interval.endswith("]"):
        return escape(value) + _small(bracket.strip() + interval)
    value, mark, rest = text.partition(", p ")
    if not mark:
        return escape(text)
    p, _, warning = rest.partition(", ")
    return escape(value) + _small(f"p {p}") + (f"<strong>{_small(warning)}</strong>" if warning else "")


def _small(text: str) -> str:
    return f'<span class="interval">{escape(text)}</span>'
