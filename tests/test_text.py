"""What a user names is text at every exit: pictures, the terminal, Markdown, HTML, the model card, files."""

from __future__ import annotations

import html
import io
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from rich.console import Console

from composer_cmi.pages import Bold, Code, Details, Heading, Lines, Paragraph, Picture, Rows, to_html, to_markdown
from composer_cmi.run.arms import results_table
from composer_cmi.run.command import run_file
from composer_cmi.run.evaluate import Evaluation, information
from composer_cmi.run.outputs.model_card import model_card
from composer_cmi.run.outputs.plots import plot_run
from composer_cmi.text import (
    for_csv,
    for_filename,
    for_markdown,
    for_markdown_code,
    for_matplotlib,
    for_rich,
    visible,
)
from run_tools import make_all
from test_outputs import results

NASTY = [
    '$x^', '$\\frac{', 'US$ and C$', '\\$', '_private', '_a_', 'snake_case', '[bold]red[/]', '[/]', '[red]', ':smile:',
    '{run_name}', 'out{1}', '<b>x</b>', '<script>alert(1)</script>', '<!--', '&amp;', '&#36;', 'a|b', '`code`', '``', '*x*',
    '**', '~~x~~', '# title', 'C #', '- item', '1. x', '2) y', '> quote', '---', '===', '[x](http://a)', '![x](y)', '[a]: b',
    '[ ] todo', 'http://a.b', 'www.a.b', 'me@a.b', 'line\nbreak', 'tab\there', 'nul\0', '\x1b[31m', '\u202egnp.exe',
    '\ud800', '../../etc', '/etc/passwd', '.hidden', 'CON', 'a' * 300, '=1+1', '+1', '@SUM', '"quoted"', "it's", '日本', '\\', '',
]  # fmt: skip
MARKDOWN = MarkdownIt('commonmark').enable(['table', 'strikethrough'])
ANY_TEXT = st.text(st.characters(codec='utf-8') | st.sampled_from('\\`*_{}[]<>()#+-.!|~&$:@\n\t 1'), max_size=20)


def words(text: str) -> str:
    """What is seen: on one line, with one space between words."""
    return ' '.join(visible(text).split())


def rendered(markdown: str) -> tuple[str, set[str]]:
    """The text of a Markdown document, and the tags that it became."""
    page = MARKDOWN.render(markdown)
    return ' '.join(html.unescape(re.sub(r'<[^>]*>', '', page)).split()), set(re.findall(r'<(\w+)', page))


def all_markdown(text: str) -> None:
    plain = words(text)
    blocks = {
        'h1': Heading(f'Study {text}', 1), 'p': Paragraph(text), 'ul': Lines([text, text]), 'table': Rows([text], [[text]]),
    }  # fmt: skip
    allowed = {'h1', 'p', 'ul', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td'}
    expected = {'h1': f'Study {plain}', 'p': plain, 'ul': f'{plain} {plain}', 'table': f'{plain} {plain}'}
    for kind, block in blocks.items():
        seen, tags = rendered(to_markdown([block]))
        assert seen == ' '.join(expected[kind].split()), kind
        assert tags <= allowed, kind
    assert rendered(for_markdown(text, start=False) and f'x {for_markdown(text, start=False)}')[0] in (
        f'x {plain}'.strip(),
        '',
    )
    seen, tags = rendered(f'x {for_markdown_code(text)}')
    assert seen == f'x {plain}'.strip() and tags <= {'p', 'code'}


@pytest.mark.parametrize('text', NASTY)
def test_promise_18_markdown_reads_back_as_the_same_text(text):
    all_markdown(text)


@settings(max_examples=150, deadline=None)
@given(ANY_TEXT)
def test_promise_18_any_text_reads_back_from_markdown(text):
    all_markdown(text)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.add(tag)


def test_promise_18_html_has_no_tag_of_a_name():
    for text in NASTY:
        blocks = [Heading(text), Paragraph(text), Lines([text, Bold(text)]), Rows([text], [[text]]), Code(text)]
        page = to_html([*blocks, Picture('a.png', text, b'png'), Details(text, [Paragraph(text)])], text)
        parser = Tags()
        parser.feed(page)
        allowed = 'html head meta title style body h2 p ul li strong div table thead tbody tr th td pre code em img'
        assert parser.tags <= {*allowed.split(), 'details', 'summary'}
        seen = ' '.join(html.unescape(re.sub(r'<style>.*?</style>|<[^>]*>', ' ', page, flags=re.DOTALL)).split())
        assert seen.count(words(text)) >= 10 if words(text) else True


def test_promise_18_the_picture_is_drawn_with_any_names(tmp_path):
    names = [name for name in NASTY if name]
    rows = torch.arange(2 * len(names))
    after = Evaluation(rows, rows % len(names), torch.randn(len(rows), len(names)), torch.randn(len(rows), 8))
    plot_run(
        tmp_path / 'cmi.png',
        title=' '.join(names[:4]),
        history=[{'step': 0, 'x': 0.1}],
        after=after,
        label_names=names,
        score_key='x',
        score_name='$f',
        information={'after': information(after, len(names))},
    )
    assert plt.imread(tmp_path / 'cmi.png').size


def test_promise_18_no_name_is_mathematics_or_missing_in_a_legend():
    for name in NASTY:
        figure = Figure()
        axes = figure.subplots()
        axes.plot([0, 1], label=for_matplotlib(name))
        axes.set_title(for_matplotlib(name))
        texts = [*axes.legend().get_texts(), axes.title] if name else [axes.title]
        figure.canvas.draw()
        for text in texts:
            drawn, mathematics = text._preprocess_math(text.get_text())
            assert not mathematics
            assert len(name) > 60 or drawn.lstrip() == visible(name)


def test_promise_18_the_table_of_arms_shows_names_as_they_are():
    stream = io.StringIO()
    names = [name for name in NASTY if name.strip() and len(name) < 100]
    table = results_table({name: results() for name in names}, title='[red]$x :smile:[/]')
    Console(file=stream, width=3000).print(table)
    shown = stream.getvalue()
    assert all(visible(name) in shown for name in names)
    assert '[red]$x :smile:[/]' in shown
    assert for_rich('[red]:smile:[/]').plain == '[red]:smile:[/]'


def test_promise_18_the_model_card_reads_back():
    names = [name for name in NASTY if name]
    run = results().model_copy(update={'run_name': '<b>$x|</b>', 'task': 'a`b: [c]\n---', 'notes': NASTY})
    card = model_card(run, names)
    seen, tags = rendered(card.split('---\n', 2)[2])
    assert all(words(name) in seen for name in names)
    assert '<b>$x|</b>' in seen
    assert tags <= {'h1', 'h2', 'p', 'ul', 'li', 'table', 'thead', 'tbody', 'tr', 'th', 'td', 'code', 'pre'}
    assert yaml.safe_load(card.split('---\n')[1])['tags'][2] == run.task


def test_promise_18_file_names_stay_in_their_folder_and_apart(tmp_path):
    made = {for_filename(text) for text in [*NASTY, 'A', 'a b', 'a_b']}
    assert len(made) == len(NASTY) + 3
    for name in made:
        (tmp_path / f'x{name}').touch()
        assert re.fullmatch(r'([A-Za-z0-9_+-][A-Za-z0-9._+-]*)?', name) and len(name) < 120
    assert len(list(tmp_path.iterdir())) == len(made)
    assert for_filename('trec_1,000') != for_filename('trec_1_000') and for_filename('rte') == 'rte'


def test_promise_18_a_cell_is_no_formula():
    assert [for_csv(cell) for cell in ('=1+1', '@x', '-cmd', 'rte')] == ["'=1+1", "'@x", "'-cmd", 'rte']


def test_promise_18_a_run_of_such_names_ends_with_its_results(tmp_path, capsys):
    path = make_all(
        tmp_path, run_name='US$ [red] x_y|`z`', algorithms={}, train={'max_duration': '1ba', 'batch_size': 8}
    )
    for file in (tmp_path / 'data').glob('*.tsv'):
        file.write_text(file.read_text().replace('\tfood', '\t<b>$^').replace('\tweather', '\t_{x}[/]'))
    assert run_file(str(path), ['train.progress_bar=false', 'train.device=cpu']) == 0
    shown = ' '.join(capsys.readouterr().out.split())
    folder = tmp_path / 'runs' / 'US$ [red] x_y|`z`'
    assert 'US$ [red] x_y|`z`: custom; held-out' in shown
    assert (folder / 'results.json').is_file() and (folder / 'cmi.png').is_file()
    seen, tags = rendered((folder / 'model' / 'README.md').read_text().split('---\n', 2)[2])
    assert '<b>$^' in seen and '_{x}[/]' in seen and 'US$ [red] x_y|`z`' in seen and 'b' not in tags
