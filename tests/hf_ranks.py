"""What test_hf_exact runs on two ranks: updates of several cases, and a resumed run, for the parent to compare."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from hf_tools import Rows, bert, trainer, update
from test_hf_exact import TERMS, with_teacher

CASES = [
    (54, 1, 'all'),
    (54, 4, 'features'),
    (20, 2, 'all'),
    (20, 1, 'cross-entropy'),
    (22, 2, 'fixed'),
    (22, 4, 'logits'),
    (20, 2, 'contrastive'),
    (20, 2, 'relation'),
]


def main(folder: Path) -> None:
    found = {}
    for rows, accumulation, name in CASES:
        run = trainer(folder / 'two', accumulation=accumulation, rows=Rows(rows), **with_teacher(TERMS[name]))
        run.train()
        totals = run._cmi.centroids.tables['totals'] if run._cmi else None
        losses = [row['loss'] for row in run.state.log_history if 'loss' in row]
        found[rows, accumulation, name] = {'update': update(run.model, bert()), 'totals': totals, 'losses': losses}
    settings = {'save_strategy': 'steps', 'save_steps': 2}
    whole = trainer(folder / 'resume', rows=Rows(22), settings=settings, **with_teacher(TERMS['all']))
    whole.train()
    again = trainer(folder / 'resume', rows=Rows(22), settings=settings, **with_teacher(TERMS['all']))
    # transformers 4.53 cannot map a CPU rank's optimizer state back; the index is all that it stumbles over.
    again.args.__dict__['__cached__setup_devices'] = torch.device('cpu')
    again.train(resume_from_checkpoint=str(folder / 'resume' / 'checkpoint-2'))
    if dist.get_rank() == 0:
        torch.save(found, folder / 'two.pt')
        apart = (update(again.model, bert()) - update(whole.model, bert())).abs().max()
        tables = [run._cmi.centroids.tables['running'] for run in (whole, again)]
        torch.save(float(apart + (tables[0] - tables[1]).abs().max()), folder / 'resumed.pt')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
