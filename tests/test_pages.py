"""A page is one file: it folds, it fetches nothing, and what it does not know is text."""

from __future__ import annotations

from html.parser import HTMLParser

from composer_cmi.pages import (
    Bold,
    Code,
    Details,
    Heading,
    Lines,
    Paragraph,
    Picture,
    Rows,
    markdown_page,
    to_html,
    to_markdown,
)

PNG = b'\x89PNG\r\n'


class Page(HTMLParser):
    """The tags with their attributes, and how deep in what every text stands."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.opened: list[tuple[str, dict]] = []
        self.around: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(page)

    def handle_starttag(self, tag, attrs) -> None:
        self.opened.append((tag, dict(attrs)))
        if tag not in ('meta', 'img'):
            self.around.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.around.pop() == tag

    def handle_data(self, data) -> None:
        if data.strip():
            self.texts[data.strip()] = list(self.around)


def test_every_kind_of_block_is_in_the_page():
    table = Rows(['arm', 'gain'], [['ce', '-'], ['mincmi', Bold('+1.00')]])
    folded = Details('All <seeds>', [Paragraph('inside'), Details('deeper', [table, Code('a: `b`\n```\n', 'yaml')])])
    page = Page(to_html([Heading('T', 1), Lines(['one']), Picture('p/a.png', 'A [picture]', PNG), folded], 'Title'))
    assert page.texts['T'][-1] == 'h1' and page.texts['one'][-1] == 'li' and page.texts['Title'][-1] == 'title'
    assert page.texts['All <seeds>'][-1] == 'summary'
    assert page.texts['inside'] == ['html', 'body', 'details', 'p']
    assert page.texts['+1.00'][2:] == ['details', 'details', 'div', 'table', 'tbody', 'tr', 'td', 'strong']
    assert page.texts['a: `b`\n```'][-2:] == ['pre', 'code']
    (picture,) = [attributes for tag, attributes in page.opened if tag == 'img']
    assert picture == {'alt': 'A [picture]', 'src': 'data:image/png;base64,iVBORw0K'}
    assert [each.get('style') for tag, each in page.opened if tag == 'td'] == [None, 'text-align:right'] * 2
    assert not page.around


def test_pictures_behind_a_fold_are_inside_too():
    page = to_html([Details('more', [Picture('pictures/a.png', 'caption', PNG)])], 't')
    assert page.count('data:image/png;base64,iVBORw0K') == 1 and 'pictures/a.png' not in page


def test_strange_markdown_fetches_nothing_and_runs_nothing():
    markdown = """# x

<script>alert(1)</script>

![far](https://example.org/a.png) and <img src=x onerror=alert(1)> and [x](javascript:alert(1))

<details onclick="x">
<summary>no</summary>

<details>
<summary><b>no</b></summary>
"""
    page = Page(markdown_page(markdown, '</title><script>'))
    assert {tag for tag, _ in page.opened} <= {'html', 'head', 'meta', 'title', 'style', 'body', 'h1', 'p'}
    assert "default-src 'none'" in next(each['content'] for _, each in page.opened if each.get('http-equiv'))


def test_the_markdown_folds_as_github_does():
    assert to_markdown([Details('a & b', [Paragraph('inside')])]) == (
        '<details>\n<summary>a &amp; b</summary>\n\ninside\n\n</details>\n'
    )
