"""What the site is made of beside its pages: files from elsewhere in the repository, tables of the schema, formulas.

Called by mkdocs (`hooks:` in mkdocs.yml).
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import latex2mathml.converter
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
CARD = 'composer_cmi/algorithms/README.md'
# Where a file of the repository stands on the site.
ELSEWHERE = {CARD: 'method-card.md', 'README.md': 'index.md'}
_SECTIONS = {'ModelConfig': 'model', 'DataConfig': 'data', 'TrainConfig': 'train', 'OptimizerConfig': 'optimizer'}
_SECTIONS |= {'SchedulerConfig': 'scheduler', 'CheckpointConfig': 'checkpoint'}
_SECTIONS |= {'Setting': 'settings.NAME', 'Arm': 'arms.NAME', 'Tuning': 'tuning'}


def on_files(files: Files, config: Any) -> Files:
    """Add the method card and the studies' reports, which live beside what they describe."""
    added = {CARD: ELSEWHERE[CARD]}
    for path in sorted((ROOT / 'studies' / 'results').glob('*/**/*')):
        if path.suffix in ('.md', '.png'):
            added[str(path.relative_to(ROOT))] = str(path.relative_to(ROOT))
    for source, target in added.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links into the repository into links into the site, and fill in the tables of the schema."""
    here = posixpath.dirname(page.file.src_uri)
    at = posixpath.dirname(CARD) if page.file.src_uri == ELSEWHERE[CARD] else posixpath.join('docs', here)
    if here.startswith('studies'):
        at = here

    def moved(link: re.Match[str]) -> str:
        path, hash_, anchor = link[1].partition('#')
        target = posixpath.normpath(posixpath.join(at, path))
        target = ELSEWHERE.get(target, target.removeprefix('docs/'))
        if '://' in link[1] or not path or not files.get_file_from_path(target):
            return link[0]
        return f']({posixpath.relpath(target, here or ".")}{hash_}{anchor})'

    markdown = re.sub(r'\]\(([^)\s]+)\)', moved, markdown)
    return re.sub(r'<!-- schema: (\w+) -->', lambda found: schema_tables(found[1]), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Formulas as MathML, which browsers read without a script."""

    def formula(found: re.Match[str]) -> str:
        display = 'block' if found[1] == 'div' else 'inline'
        return latex2mathml.converter.convert(html.unescape(found[2]).strip(), display=display)

    return re.sub(r'<(div|span) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', formula, content, flags=re.DOTALL)


def schema_tables(kind: str) -> str:
    """The keys of a run's or a study's file, one table a section."""
    sys.path.insert(0, str(ROOT))
    from composer_cmi.run.config.json_schema import run_json_schema
    from composer_cmi.study.json_schema import study_json_schema

    schema = run_json_schema() if kind == 'run' else study_json_schema()
    definitions = schema['$defs']
    parts = [_table(schema, definitions)]
    for name in _SECTIONS:
        if name in definitions:
            section = definitions[name]
            parts.append(f'### `{_SECTIONS[name]}:`\n\n{section["description"]}\n\n{_table(section)}')
    for name, entry in schema['properties'].get('algorithms', {}).get('properties', {}).items():
        parts.append(f'### `algorithms.{name}:`\n\n{entry["description"]}\n\n{_table(entry["anyOf"][0])}')
    return '\n\n'.join(parts)


def _table(section: dict[str, Any], definitions: dict[str, Any] | None = None) -> str:
    lines = ['| key | type | default | what it is |', '|---|---|---|---|']
    for name, key in section['properties'].items():
        default, text = f'`{json.dumps(key.get("default"))}`', key.get('description', '')
        if '$ref' in key:
            default, text = 'see below', (definitions or {})[key['$ref'].rpartition('/')[2]]['description']
        if name in section.get('required', ()):
            default = '(needed)'
        # A bar would end the cell; two backticks are those of the docstring.
        cells = [f'`{name}`', _type(key), default, text.replace('``', '`')]
        lines.append('| ' + ' | '.join(cell.replace('|', '&#124;') for cell in cells) + ' |')
    return '\n'.join(lines)


def _type(key: dict[str, Any]) -> str:
    if 'anyOf' in key:
        return ' or '.join(dict.fromkeys(filter(None, map(_type, key['anyOf']))))
    if 'enum' in key or 'const' in key:
        return ', '.join(f'`{json.dumps(value)}`' for value in key.get('enum', [key.get('const')]))
    if '$ref' in key:
        return 'section'
    kinds = key.get('type', 'any')
    names = [
        {'array': 'list', 'object': 'mapping'}.get(kind, kind) for kind in ([kinds] if type(kinds) is str else kinds)
    ]
    items = f' of {_type(key["items"])}' if 'items' in key else ''
    return ' or '.join(names) + items + _range(key)


def _range(key: dict[str, Any]) -> str:
    signs = {'minimum': '>=', 'exclusiveMinimum': '>', 'maximum': '<=', 'exclusiveMaximum': '<'}
    bounds = [f'{sign} {key[name]:g}' for name, sign in signs.items() if name in key]
    sizes = [f'{word} {key[name]}' for name, word in (('minItems', 'at least'), ('maxItems', 'at most')) if name in key]
    return f' ({", ".join(html.escape(part) for part in (*bounds, *sizes))})' if bounds or sizes else ''
