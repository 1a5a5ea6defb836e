"""The code blocks of the pages: what language, under which mark, and how a test runs them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.run.config import build_config, deep_merge
from run_tools import SENTENCES, make_model

ROOT = Path(__file__).parents[1]
METHOD_CARD = ROOT / 'composer_cmi' / 'algorithms' / 'README.md'
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md')), METHOD_CARD]
BLOCK = re.compile(
    r'^(?:<!-- (?P<mark>[^\n]*?) -->\n)?```(?P<language>[\w-]*)\n(?P<text>.*?)^```$', re.DOTALL | re.MULTILINE
)
SHOWN = ('', 'text', 'csv')  # outputs and data: nothing to run
MODEL = 'embedded:minilm'  # a tiny model takes its place


class Block(NamedTuple):
    """A code block: its page, the line it starts on, the mark above it, its language and its text."""

    page: Path
    line: int
    mark: str
    language: str
    text: str

    @property
    def where(self) -> str:
        return f'{self.page.relative_to(ROOT)}, line {self.line}'


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding='utf-8')
    return [
        Block(page, text[: found.start()].count('\n') + 1, found['mark'] or '', found['language'], found['text'])
        for found in BLOCK.finditer(text)
    ]


def make_reviews(folder: Path) -> None:
    """The reader's files, in the words of the tiny model, whose folder is `tiny`."""
    make_model(folder / 'tiny', positions=128)
    pairs = [(text, good) for good, texts in zip(('good', 'bad'), SENTENCES.values(), strict=True) for text in texts]
    rows = [f'{text} {extra}'.strip() + f',{label}' for extra in ('', 'today', 'again') for text, label in pairs]
    (folder / 'reviews.csv').write_text('\n'.join(['text,label', *rows]) + '\n')
    (folder / 'more.txt').write_text('\n'.join(f'{text} now' for text, _ in pairs) + '\n')


class Reader:
    """Follows one page after the other in one folder (the current one), as a reader would."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.printed = ''

    def follow(self, page: Path) -> None:
        self.names = {'__name__': page.stem}
        for block in blocks(page):
            if not block.mark.startswith(('not run: ', 'example: ')):
                getattr(self, f'_{block.language or "text"}')(block)

    def _text(self, block: Block) -> None:
        pass

    _csv = _text

    def _python(self, block: Block) -> None:
        exec(compile('\n' * block.line + block.text, str(block.page), 'exec'), self.names)

    def _yaml(self, block: Block) -> None:
        if file := re.match(r'# (\S+\.yaml)\n', block.text):
            Path(file[1]).write_text(block.text.replace(MODEL, 'tiny'))
        else:  # a part of a run's file
            base = {'task': 'custom', 'run_name': 'x', 'model': {'name_or_path': 'tiny'}}
            build_config(deep_merge(base, yaml.safe_load(block.text)), block.where)

    def _bash(self, block: Block) -> None:
        for line in block.text.splitlines():
            command, _, _ = line.partition('  #')
            for part in command.split(' && '):
                if part.strip():
                    self._command(part.strip(), block)

    def _command(self, command: str, block: Block) -> None:
        command, _, target = command.partition(' > ')
        program, *arguments = shlex.split(command)
        assert program == 'composer-cmi', f'{block.where}: {command!r} is run by no test: mark it `not run: reason`'
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, f'{block.where}: {command}\n{done.output}\n{done.exception!r}'
        self.printed += done.output
        if target:
            Path(target.strip()).write_text(done.stdout)
        for written in Path().glob('*.yaml'):  # what `init` wrote names a model of 90 MB
            written.write_text(written.read_text().replace(MODEL, 'tiny'))
