"""Markdown as one HTML file that needs nothing beside it: pictures inside, no script, nothing fetched."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markdown_it import MarkdownIt

from composer_cmi.pages.blocks import Block, Details, Picture, to_markdown
from composer_cmi.text import for_html

__all__ = ['markdown_page', 'to_html']

# The pictures are drawn on white, and keep it where the page is dark.
_STYLE = """
:root { color-scheme: light dark; --text: #1c1e21; --page: #fff; --soft: #5b6169; --line: #d9dce0; --band: #f4f5f7;
  --accent: #0b57a4; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e6e9; --page: #17191c; --soft: #a2a9b1; --line: #3a3f45;
  --band: #212429; --accent: #7db8f5; } }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, 'Segoe UI', sans-serif; max-width: 76rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; color: var(--text); background: var(--page); overflow-wrap: break-word; }
h1, h2, h3 { line-height: 1.25; margin: 2.2rem 0 .8rem; } h1 { margin-top: .5rem; }
p, li { max-width: 60rem; } li { margin: .35rem 0; } ul { padding-left: 1.3rem; }
.table { overflow-x: auto; margin: 1rem 0; } table { border-collapse: collapse; font-size: .875rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; font-variant-numeric: tabular-nums; }
th { border-bottom: 2px solid var(--soft); vertical-align: bottom; white-space: normal; min-width: 4rem; }
tbody tr:hover { background: var(--band); }
.table td:first-child, .table th:first-child { white-space: normal; min-width: 7rem; max-width: 22rem; position: sticky;
  left: 0; background: var(--page); }
td strong { color: var(--accent); }
img { display: block; max-width: 100%; background: #fff; border-radius: 4px; } p > em:only-child { color: var(--soft); }
pre { background: var(--band); padding: .8rem 1rem; overflow-x: auto; border-radius: 4px; } code { font-size: .875rem; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .7rem 0; padding: .1rem 1rem; }
summary { cursor: pointer; font-weight: 600; padding: .5rem 0; }
@media print { .table, pre { overflow: visible; } th, td { white-space: normal; } }
"""
# No browser fetches anything for the page, whatever a name in it looks like.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_FOLD = re.compile(r'<details>\n<summary>[^<>]*</summary>\n*|</details>\n*')


def to_html(blocks: Sequence[Block], title: str) -> str:
    """The blocks as one HTML file with the pictures inside."""
    return markdown_page(to_markdown(blocks), title, {each.path: each.png for each in _pictures(blocks)})


def _pictures(blocks: Sequence[Block]) -> list[Picture]:
    inner = [_pictures(block.blocks) if isinstance(block, Details) else [block] for block in blocks]
    return [block for found in inner for block in found if isinstance(block, Picture)]


def markdown_page(markdown: str, title: str, pictures: Mapping[str, bytes] | None = None) -> str:
    """Markdown (CommonMark and tables) as one HTML file.

    Of HTML in it only `<details>` with its `<summary>` on the next line is kept, all other is shown as text; a picture
    that is not among `pictures` is its caption.

    Args:
        markdown: the text.
        title: of the browser's window.
        pictures: PNG files by the paths under which the Markdown has them.
    """
    parser = MarkdownIt('commonmark', {'html': True}).enable(['table', 'strikethrough'])
    parser.add_render_rule('table_open', lambda *_: '<div class="table"><table>\n')
    parser.add_render_rule('table_close', lambda *_: '</table></div>\n')
    parser.add_render_rule('html_inline', _as_text)
    parser.add_render_rule('html_block', _fold)
    parser.add_render_rule('image', _image)
    body = parser.render(markdown, {'pictures': pictures or {}})
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<title>{for_html(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}</body></html>\n'


def _as_text(renderer: Any, tokens: Sequence[Any], index: int, *_: Any) -> str:
    return for_html(tokens[index].content)


def _fold(renderer: Any, tokens: Sequence[Any], index: int, *_: Any) -> str:
    content = tokens[index].content
    return content if _FOLD.fullmatch(content) else f'<p>{for_html(content)}</p>\n'


def _image(renderer: Any, tokens: Sequence[Any], index: int, options: Any, env: Mapping[str, Any]) -> str:
    token = tokens[index]
    caption = for_html(renderer.renderInlineAsText(token.children or [], options, env))
    png = env['pictures'].get(token.attrs['src'])
    if png is None:
        return caption
    return f'<img alt="{caption}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
