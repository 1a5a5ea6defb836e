"""A minimal run's YAML, loaded with overrides or refused by them."""

from __future__ import annotations

import pytest

from composer_cmi.run.config import ConfigError, load_config

MINIMAL = 'task: rte\nrun_name: x\nmodel: {name_or_path: some/model}\n'


def refused(tmp_path, *overrides, text=MINIMAL, load=load_config):
    path = tmp_path / 'run.yaml'
    path.write_text(text, encoding='utf-8')
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    sentence = str(caught.value)
    assert '\n' not in sentence and sentence.endswith('.') and len(sentence) < 700
    return sentence


def loaded(tmp_path, *overrides, text=MINIMAL):
    (tmp_path / 'run.yaml').write_text(text)
    return load_config(tmp_path / 'run.yaml', overrides)
