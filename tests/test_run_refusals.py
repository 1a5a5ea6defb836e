"""What cannot be run is refused before training, in one sentence and by an exit code."""

from __future__ import annotations

import pytest

from composer_cmi.run.command import run_file
from run_tools import make_all


def test_half_precision_on_a_cpu_is_refused(tmp_path, capsys):
    assert run_file(str(make_all(tmp_path)), ['train.precision=amp_fp16']) == 2
    assert 'needs a GPU; on this device it must be fp32 or amp_bf16' in capsys.readouterr().err


BAD_INPUT = {
    'missing YAML file': ([], 'none.yaml', r'There is no file'),
    'unknown key': (['train.batch_sise=8'], None, r"unknown key 'train.batch_sise'. Did you mean 'batch_size'?"),
    'wrong type': (['train.batch_size=many'], None, r'train.batch_size: input should be a valid integer'),
    'unknown task': (['task=rtt'], None, r"Unknown task 'rtt'. Did you mean 'rte'?"),
    'regression': (['task=stsb'], None, r'STS-B'),
    'missing data': (['data.path=nowhere'], None, r'nowhere'),
    'no such model': (['model.name_or_path=./nowhere'], None, r"there is no folder './nowhere'"),
    'folder without a model': (['model.name_or_path={tmp}/data'], None, r'neither a Hugging Face model'),
    'too long for the model': (['data.max_length=64'], None, r'64 is more than the 32 positions of the model'),
    'no such layer': (
        ['model.keep_layers=[0, 5]'],
        None,
        r'model.keep_layers: [0, 5] must be different numbers from 0 to 1',
    ),
    'bad algorithm argument': (
        ['algorithms.cmi_regularization.space=labels'],
        None,
        r"algorithms.cmi_regularization.space: must be one of features, logits, centered (given: 'labels')",
    ),
    'bad weight': (['algorithms.cmi_regularization.weight=-1'], None, r'.weight: must be at least 0 (given: -1)'),
    'bad feature module': (['algorithms.cmi_regularization.feature_module=bert.poler'], None, r'bert.pooler'),
    'no such peft target': (['peft.target_modules=[nothing]'], None, r'peft: '),
    'unknown peft key': (['peft.rank=8'], None, r"unknown key 'peft.rank'"),
    'unknown fsdp key': (['fsdp.shard=1'], None, r"unknown key 'fsdp.shard'"),
    'warm-up of the whole run': (['scheduler.warmup=1dur'], None, r'scheduler.warmup: 9 steps leave nothing'),
    'term of after the training': (
        ['algorithms.cmi_regularization.start=9ba'],
        None,
        r"algorithms.cmi_regularization.start: '9ba' is not before the end of the training at 9 steps",
    ),
    'label that the task does not have': (['data.labels=[food, sport]'], None, r'weather'),
    'more rows than there are': (['data.train_rows=1000'], None, r'1000'),
}


@pytest.mark.parametrize('case', BAD_INPUT)
def test_bad_input_is_one_sentence_and_an_exit_code_before_training(tmp_path, capsys, case):
    overrides, file, sentence = BAD_INPUT[case]
    path = make_all(tmp_path)
    path = tmp_path / file if file else path
    assert run_file(str(path), [override.format(tmp=tmp_path) for override in overrides]) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert 'Traceback' not in error
    # All faults of a file are told in one go, a sentence each.
    lines = error.strip().splitlines()
    assert error.startswith('composer-cmi: ') and (len(lines) == 1 or all('.tsv, line ' in line for line in lines))
    assert not list((tmp_path / 'runs').glob('**/checkpoints/*'))


def test_files_that_are_no_data_are_refused(tmp_path, capsys):
    path = make_all(tmp_path)
    train = tmp_path / 'data' / 'train.tsv'
    for text, sentence in (
        ('', 'empty'),
        ('text\tlabel\n', 'train.tsv'),
        ('text\tlabel\na b\tfood\nc d\tfood\n', 'class'),
        ('text\tlabel\na b\t0.5\nc d\t2.75\ne f\t3.1\n', 'train.tsv'),
    ):
        train.write_text(text)
        assert run_file(str(path), []) == 2, text
        error = capsys.readouterr().err
        assert sentence in error, error
        assert len(error.strip().splitlines()) == 1


def test_fsdp_with_a_searched_microbatch_size_is_refused_where_composer_cannot_search(tmp_path, capsys, monkeypatch):
    # What torch < 2.7.1 has and newer ones lack; without it, beside any torch, Composer ends in a NameError.
    monkeypatch.delattr('composer.trainer._patch_pytorch.unshard_with_sync', raising=False)
    assert run_file(str(make_all(tmp_path)), ['fsdp={}', 'train.microbatch_size=auto']) == 2
    error = capsys.readouterr().err
    assert "train.microbatch_size: 'auto' together with fsdp fails in Composer" in error
    assert len(error.strip().splitlines()) == 1


def test_a_searched_microbatch_size_needs_a_gpu(tmp_path, capsys):
    assert run_file(str(make_all(tmp_path)), ['train.microbatch_size=auto']) == 2
    assert "train.microbatch_size: 'auto' needs a GPU, and this is a cpu:" in capsys.readouterr().err
