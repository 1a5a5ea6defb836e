"""What lies in another one's folder is not run, and keys of services are not copied."""

from __future__ import annotations

import re

import pytest
import torch
import yaml

from composer_cmi.run.config import ConfigError
from composer_cmi.run.outputs.folder import enter_folder, identity_of, open_folder
from composer_cmi.run.outputs.submission import submit
from composer_cmi.study.findings.report import report
from config_tools import MINIMAL, loaded
from file_fuzz import FILE_KINDS


def test_promise_23_keys_of_services_are_masked_and_a_resumed_run_is_the_same(tmp_path):
    text = (
        MINIMAL
        + f'output_dir: {tmp_path}\n'
        + """loggers:
  slack: {slack_logging_api_key: xoxb-1, channel_id: c}
  wandb: {project: p, init_kwargs: {settings: {api_key: k1, password: k2, token: k3}, tags: [a]}}
  neptune: {api_token: k4, project: p}
  mlflow: {tracking_uri: 'https://me:k5@host/x'}
"""
    )
    config = loaded(tmp_path, text=text)
    assert config.loggers['slack']['slack_logging_api_key'] == 'xoxb-1'
    written = yaml.safe_dump(config.resolved())
    assert not re.findall(r'xoxb|\bk\d', written)
    assert written.count('***') == 6 and 'channel_id: c' in written
    identity = identity_of(config, {})
    open_folder(config, identity)
    enter_folder(config, identity, of_unknown=None)
    (config.folder / 'checkpoints').mkdir(exist_ok=True)
    (config.folder / 'checkpoints' / 'ep1.pt').touch()
    open_folder(config, identity)  # refused, if another configuration lay there
    assert not [file for file in config.folder.glob('*.*') if 'xoxb' in file.read_text()]


def test_promise_23_submit_does_not_run_a_strangers_code(tmp_path, monkeypatch):
    FILE_KINDS['results.json'].whole(tmp_path / 'results.json')
    (tmp_path / 'evil.py').write_text(f'open({str(tmp_path / "harm")!r}, "w")')
    text = MINIMAL + f'code_paths: [{tmp_path / "evil.py"}]\ndata: {{path: {tmp_path}/none}}\ntrain: {{device: gpu}}\n'
    (tmp_path / 'config.yaml').write_text(text)
    with pytest.raises(ConfigError, match=r'names Python files .*evil\.py.* add --run-code'):
        submit([tmp_path], tmp_path / 'out')
    assert not (tmp_path / 'harm').exists()
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(ConfigError, match='none'):  # its data are not there: neither code nor device stood in the way
        submit([tmp_path], tmp_path / 'out', run_code=True)
    assert (tmp_path / 'harm').exists()


def test_promise_23_a_report_writes_nothing_outside_its_folder(tmp_path):
    folder = tmp_path / 'a' / 'b' / 'runs'
    for arm in ('ce', '<img src=x>'):
        (folder / arm).mkdir(parents=True)
        FILE_KINDS['results.json'].whole(folder / arm / 'results.json')
        text = (folder / arm / 'results.json').read_text()
        (folder / arm / 'results.json').write_text(text.replace('"rte"', '"x/../../../../../y <b>|$"'))
        (folder / arm / 'history.csv').write_text('step,cmi/cmi\n0,0.7\n1,0.6\n')
    before = {path for path in tmp_path.rglob('*') if folder not in path.parents}
    files = report(folder)
    assert {path for path in tmp_path.rglob('*') if folder not in path.parents} == before
    (picture,) = (folder / 'report' / 'pictures').iterdir()
    markdown = files['markdown'].read_text()
    assert f'](pictures/{picture.name})' in markdown
    assert '<img src=x>' not in markdown.replace('\\<', '') and '<img src=x>' not in files['html'].read_text()
    assert 'y \\<b>\\|\\$' in markdown
