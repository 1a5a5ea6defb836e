"""A push: the real client against a hub that is a small server here."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub.constants
import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from composer_cmi.cli import app
from composer_cmi.errors import ConfigError
from composer_cmi.exchange.push import push
from run_tools import make_model


class Hub(BaseHTTPRequestHandler):
    """Takes what the client sends, as the hub would answer it; with any token but `good` it knows nobody."""

    def do_GET(self):
        if self.headers.get('Authorization') != 'Bearer good':
            return self._answer(401, {'error': 'Invalid username or password.'})
        self._answer(200, {'isPrivate': True, 'type': 'model', 'id': 'me/mine', 'siblings': []})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get('Content-Length') or 0))
        self.server.seen.append((self.path, body))
        if self.headers.get('Authorization') != 'Bearer good':
            return self._answer(401, {'error': 'Invalid username or password.'})
        if self.path == '/api/repos/create':
            return self._answer(200, {'url': f'{self.server.url}/me/mine', 'name': 'me/mine'})
        if self.path == '/api/validate-yaml':
            return self._answer(200, {'errors': [], 'warnings': []})
        if self.path.endswith('/preupload/main'):
            files = json.loads(body)['files']
            plain = [{'path': f['path'], 'uploadMode': 'regular', 'shouldIgnore': False} for f in files]
            return self._answer(200, {'files': plain})
        return self._answer(200, {'commitUrl': f'{self.server.url}/me/mine/commit/1', 'commitOid': '1'})

    def _answer(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header('Content-Type', 'application/json')
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@contextmanager
def hub(monkeypatch):
    server = ThreadingHTTPServer(('127.0.0.1', 0), Hub)
    server.seen, server.url = [], f'http://127.0.0.1:{server.server_port}'
    monkeypatch.setattr(huggingface_hub.constants, 'ENDPOINT', server.url)  # as HF_ENDPOINT does
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('push') / 'run'
    make_model(folder / 'model')
    (folder / 'model' / 'README.md').write_text('---\nlicense: mit\n---\n# Card\n')
    (folder / 'model' / '.README.md.77.tmp').write_text('of a killed process')
    for name in ('results.json', 'predictions_dev.csv', 'config.yaml'):
        (folder / name).write_text('{}')
    return folder


def test_the_exported_folder_and_its_card_go_to_the_hub_and_nothing_else(run, monkeypatch):
    with hub(monkeypatch) as server:
        url = push(run, 'me/mine', private=True, api=HfApi(endpoint=server.url, token='good'))
    assert url == f'{server.url}/me/mine'
    created = json.loads(next(body for path, body in server.seen if path == '/api/repos/create'))
    private = created.get('private') is True or created.get('visibility') == 'private'  # huggingface_hub 0 and 1
    assert created['name'] == 'mine' and private
    lines = next(body for path, body in server.seen if '/commit/' in path).decode().splitlines()
    sent = {one['value']['path'] for one in map(json.loads, lines) if one['key'] == 'file'}
    assert {'README.md', 'model.safetensors', 'config.json', 'tokenizer.json'} <= sent
    assert sent <= {path.name for path in (run / 'model').iterdir()} and not any(name.endswith('.tmp') for name in sent)


def test_without_a_token_or_a_hub_it_is_one_sentence(run, monkeypatch, tmp_path):
    with hub(monkeypatch) as server:
        for token in (False, 'bad'):
            with pytest.raises(ConfigError, match='The hub knows nobody here: log in by `hf auth login`'):
                push(run, 'me/mine', api=HfApi(endpoint=server.url, token=token))
        with pytest.raises(ConfigError, match="REPO 'a b' is no name of a repository"):
            push(run, 'a b', api=HfApi(endpoint=server.url, token='good'))
    with pytest.raises(ConfigError, match=f'The hub at {server.url} cannot be reached: '):
        push(run, 'me/mine', api=HfApi(endpoint=server.url, token='good'))
    refused = CliRunner().invoke(app, ['push', str(tmp_path), 'me/mine', '--private'])
    assert refused.exit_code == 2 and 'holds no exported model' in refused.stderr


def test_a_model_without_its_card_stays_here(run, tmp_path):
    folder = make_model(tmp_path / 'model')
    with pytest.raises(ConfigError, match=r'has no card, README\.md'):
        push(folder, 'me/mine')
