"""Files to start from: what ``composer-cmi init`` writes. The repository's ``yamls/`` and ``studies/`` link to them."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from composer_cmi.errors import ConfigError

__all__ = ['STARTERS', 'write_starters']

_GLUE = (
    'bert_glue_ce',
    'bert_glue_mincmi',
    'bert_glue_maxcmi_teacher',
    'bert_glue_distill',
    'distilbert_glue_ce',
    'distilbert_glue_kd',
)
STARTERS: dict[str, dict[str, str]] = {
    'demo': {'demo.yaml': 'yamls/demo_mincmi.yaml', 'demo_distill.yaml': 'yamls/demo_distill.yaml'},
    'glue': {f'yamls/{name}.yaml': f'yamls/{name}.yaml' for name in _GLUE},
    'custom': {'custom.yaml': 'yamls/custom.yaml'},
    'study': {
        f'studies/{name}': f'studies/{name}' for name in ('mincmi_small.yaml', 'base_minilm.yaml', 'text_tasks.py')
    },
}
"""For each kind, what is written (the main file first) and which file of this folder it is."""


def write_starters(kind: str, folder: str | Path) -> list[Path]:
    """Write the starting files of a kind below a folder, all of them or none.

    Raises:
        ConfigError: one of them is there already, or the folder cannot be written.
    """
    texts = {
        Path(folder, target): files(__name__).joinpath(source).read_text(encoding='utf-8')
        for target, source in STARTERS[kind].items()
    }
    there = [str(path) for path in texts if path.exists()]
    if there:
        raise ConfigError(
            f'init does not overwrite: {", ".join(there)} {"is" if len(there) == 1 else "are"} there already; '
            f'name another folder, as in: composer-cmi init {kind} new_folder'
        )
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding='utf-8')
    except OSError as error:
        raise ConfigError(f'init cannot write {str(folder)!r}: {error}') from error
    return list(texts)
