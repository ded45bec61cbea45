"""The HTML of a report: sections, tables and figures as strings, one self-contained page around them."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from avspk.report.style import PALETTE

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"

CSS = """
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 var(--font); }
main, header { max-width: 1160px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 48px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .4rem; letter-spacing: -.015em; }
h2 { font-size: 1.3rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { margin: .3rem 0 .8rem; max-width: 90ch; }
.muted, figcaption, nav { color: var(--muted); }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 1.2rem 0 0; font-size: .92rem; }
nav a { color: inherit; text-decoration: none; border-bottom: 1px solid var(--grid); }
nav a:hover { color: var(--ink); }
section { background: var(--surface); border: 1px solid var(--grid); border-radius: 10px; padding: 24px 28px;
  margin: 22px 0; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; margin: 22px 0; }
.card { flex: 1 1 170px; background: var(--surface); border: 1px solid var(--grid); border-radius: 10px;
  padding: 14px 18px; }
.card b { display: block; font-size: 1.55rem; line-height: 1.25; letter-spacing: -.02em; }
.card span { display: block; color: var(--muted); font-size: .88rem; line-height: 1.4; }
.scroll { overflow-x: auto; }
figure { margin: 1.2rem 0 0; }
figure + figure { margin-top: 2rem; }
.scroll + .scroll { margin-top: 1rem; }
figure svg { display: block; height: auto; max-width: 100%; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: .92rem; margin: 0 0 .5rem; max-width: 96ch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; margin: .8rem 0; }
th, td { padding: .38rem .9rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; font-size: .88rem; }
th.group { color: var(--ink); text-align: center; border-bottom: 0; padding-bottom: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
.left2 :is(th, td):nth-child(2), .left3 :is(th, td):nth-child(-n+3) { text-align: left; }
td small { color: var(--muted); font-size: .86em; }
tr.last td { font-weight: 600; }
tr.last td small { font-weight: 400; }
.track { display: block; width: 240px; height: .6em; border-radius: 2px; background: var(--grid); }
.track i { display: block; height: 100%; border-radius: 2px; background: var(--blue); }
details { margin: .6rem 0; }
summary { cursor: pointer; }
pre { font: 13px/1.5 ui-monospace, 'SF Mono', Menlo, 'DejaVu Sans Mono', monospace; overflow-x: auto; margin: .6rem 0;
  padding: 14px 16px; background: var(--page); border-radius: 8px; }
footer { color: var(--muted); font-size: .88rem; padding: 6px 0 48px; }
@media (max-width: 640px) {
  main, header { padding: 0 12px; } header { padding-top: 28px; } section { padding: 18px 14px; }
}
@media print { section { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Section:
    """One titled part of the page; `body` is HTML, `lead` plain text."""

    anchor: str
    title: str
    body: str
    lead: str = ""


def render_page(title: str, subtitle: str, sections: Sequence[Section], top: str = "", footer: str = "") -> str:
    """A whole HTML document without external resources. `title`, `subtitle`, `footer` are text, `top` is HTML."""
    links = "".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in sections)
    body = "\n".join(_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{_theme()}{CSS}</style>\n</head>\n"
        f"<body>\n<header><h1>{escape(title)}</h1><p class=muted>{escape(subtitle)}</p><nav>{links}</nav></header>\n"
        f"<main>\n{top}\n{body}\n<footer>{escape(footer)}</footer>\n</main>\n</body>\n</html>\n"
    )


def figure_block(title: str, caption: str, *svgs: str) -> str:
    """A figure of one or more drawings under its title and a caption that explains what to look for."""
    label = f'<svg role="img" aria-label="{escape(title)}" '
    drawings = "".join(f"<div class=scroll>{svg.replace('<svg ', label, 1)}</div>" for svg in svgs)
    return f"<figure><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>{drawings}</figure>"


def table_block(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    groups: Sequence[tuple[str, int]] = (),
    last_counts: bool = False,
    left: int = 1,
) -> str:
    """A table of HTML cells, the first `left` (1 to 3) columns left-aligned.

    header: may be empty. groups: (title, number of columns) above the header. last_counts: the last row in bold.
    """
    above = "".join(f"<th class=group colspan={width}>{title}</th>" for title, width in groups)
    below = "".join(f"<th>{cell}</th>" for cell in header)
    head = "".join(f"<tr>{cells}</tr>" for cells in (above, below) if cells)
    marks = [""] * (len(rows) - 1) + [" class=last" if last_counts else ""]
    body = "".join(
        f"<tr{mark}>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for mark, row in zip(marks, rows, strict=False)
    )
    return f"<div class=scroll><table class=left{left}><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def bar_cell(share: float) -> str:
    """A table cell's share of a whole, 0 to 1, as a bar."""
    return f'<span class=track><i style="width: {100 * share:.1f}%"></i></span>'


def cards_block(cards: Sequence[tuple[str, str, str]]) -> str:
    """A row of (label, number, remark) in large type."""
    inner = "".join(
        f"<div class=card><span>{escape(label)}</span><b>{escape(number)}</b><span>{escape(remark)}</span></div>"
        for label, number, remark in cards
    )
    return f"<div class=cards>{inner}</div>"


def text_block(text: str) -> str:
    """A paragraph."""
    return f"<p>{escape(text)}</p>"


def absent(text: str) -> str:
    """The sentence that replaces a missing piece of the run."""
    return f"<p class=muted>{escape(text)}</p>"


def folded(summary: str, text: str) -> str:
    """Preformatted text that is collapsed until clicked."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def duration(seconds: float) -> str:
    """A readable duration: '42 s', '3 min 05 s', '2 h 10 min', '1 d 4 h'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _section(section: Section) -> str:
    lead = f"<p class=muted>{escape(section.lead)}</p>" if section.lead else ""
    return f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{lead}{section.body}</section>'


def _theme() -> str:
    light = "".join(f"--{name}: {colours[0]};" for name, colours in PALETTE.items())
    dark = "".join(f"--{name}: {colours[1]};" for name, colours in PALETTE.items())
    return (
        f":root {{ color-scheme: light dark; --font: {FONT}; --page: #f6f5f2; {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ --page: #161513; {dark} }} }}"
    )
