"""GLUE's classification tasks: columns, classes, metrics, sizes and the quirks of their files.

Source: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding".
"""

from __future__ import annotations

from composer_cmi.data.tasks import FileLayout, Task
from composer_cmi.registry import register_task

__all__ = ['GLUE_HUB', 'GLUE_TASKS', 'stsb']

GLUE_HUB = 'nyu-mll/glue'
GLUE_TASKS = ('cola', 'mnli', 'mrpc', 'qnli', 'qqp', 'rte', 'sst2', 'wnli')

# Sizes: the GLUE paper's table and the Hub's data card. Balances of CoLA and RTE are recounted from the files; the
# others are as the literature gives them, add up to the sizes, and only ever lead to a printed remark.
register_task('cola')(
    Task(
        'cola',
        'GLUE CoLA: is the sentence acceptable English? (Matthews correlation)',
        ('sentence',),
        ('unacceptable', 'acceptable'),
        ('matthews_correlation',),
        test_splits=('test',),
        hub=(GLUE_HUB, 'cola'),
        layout=FileLayout('CoLA', ('sentence',), headerless=('source', 'label', 'mark', 'sentence')),
        published={
            'train': {'unacceptable': 2528, 'acceptable': 6023},
            'dev': {'unacceptable': 322, 'acceptable': 721},
            'test': {'': 1063},
        },
        submission={'test': 'CoLA.tsv'},
    )
)
register_task('mnli')(
    Task(
        'mnli',
        'GLUE MultiNLI: entailment, neutral or contradiction; scored matched and mismatched (accuracy)',
        ('premise', 'hypothesis'),
        ('entailment', 'neutral', 'contradiction'),
        eval_splits=('dev_matched', 'dev_mismatched'),
        test_splits=('test_matched', 'test_mismatched'),
        hub=(GLUE_HUB, 'mnli'),
        layout=FileLayout('MNLI', ('sentence1', 'sentence2'), 'gold_label'),
        published={
            'train': {'entailment': 130899, 'neutral': 130900, 'contradiction': 130903},
            'dev_matched': {'entailment': 3479, 'neutral': 3123, 'contradiction': 3213},
            'dev_mismatched': {'entailment': 3463, 'neutral': 3129, 'contradiction': 3240},
            'test_matched': {'': 9796},
            'test_mismatched': {'': 9847},
        },
        submission={'test_matched': 'MNLI-m.tsv', 'test_mismatched': 'MNLI-mm.tsv'},
        submit_names=True,
    )
)
register_task('mrpc')(
    Task(
        'mrpc',
        'GLUE MRPC: do two news sentences say the same? (F1 and accuracy)',
        ('sentence1', 'sentence2'),
        ('not_equivalent', 'equivalent'),
        ('f1', 'accuracy'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'mrpc'),
        layout=FileLayout('MRPC', ('#1 String', '#2 String'), 'Quality'),
        published={
            'train': {'not_equivalent': 1194, 'equivalent': 2474},
            'dev': {'not_equivalent': 129, 'equivalent': 279},
            'test': {'': 1725},
        },
        submission={'test': 'MRPC.tsv'},
    )
)
register_task('qnli')(
    Task(
        'qnli',
        'GLUE QNLI: does the sentence answer the question? (accuracy)',
        ('question', 'sentence'),
        ('entailment', 'not_entailment'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'qnli'),
        layout=FileLayout('QNLI', ('question', 'sentence')),
        published={
            'train': {'entailment': 52366, 'not_entailment': 52377},
            'dev': {'entailment': 2702, 'not_entailment': 2761},
            'test': {'': 5463},
        },
        submission={'test': 'QNLI.tsv'},
        submit_names=True,
    )
)
register_task('qqp')(
    Task(
        'qqp',
        'GLUE QQP: are two Quora questions duplicates? (F1 and accuracy)',
        ('question1', 'question2'),
        ('not_duplicate', 'duplicate'),
        ('f1', 'accuracy'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'qqp'),
        layout=FileLayout('QQP', ('question1', 'question2'), 'is_duplicate', short_rows=10),
        published={
            'train': {'not_duplicate': 229468, 'duplicate': 134378},
            'dev': {'not_duplicate': 25545, 'duplicate': 14885},
            'test': {'': 390965},
        },
        submission={'test': 'QQP.tsv'},
    )
)
register_task('rte')(
    Task(
        'rte',
        'GLUE RTE: does the first text entail the second? 2,490 training rows (accuracy)',
        ('sentence1', 'sentence2'),
        ('entailment', 'not_entailment'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'rte'),
        layout=FileLayout('RTE', ('sentence1', 'sentence2')),
        published={
            'train': {'entailment': 1249, 'not_entailment': 1241},
            'dev': {'entailment': 146, 'not_entailment': 131},
            'test': {'': 3000},
        },
        submission={'test': 'RTE.tsv'},
        submit_names=True,
    )
)
register_task('sst2')(
    Task(
        'sst2',
        'GLUE SST-2: sentiment of phrases and sentences from film reviews (accuracy)',
        ('sentence',),
        ('negative', 'positive'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'sst2'),
        layout=FileLayout('SST-2', ('sentence',)),
        published={
            'train': {'negative': 29780, 'positive': 37569},
            'dev': {'negative': 428, 'positive': 444},
            'test': {'': 1821},
        },
        submission={'test': 'SST-2.tsv'},
    )
)
register_task('wnli')(
    Task(
        'wnli',
        'GLUE WNLI: what does the pronoun stand for? 71 dev rows, adversarial to train (accuracy)',
        ('sentence1', 'sentence2'),
        ('not_entailment', 'entailment'),
        test_splits=('test',),
        hub=(GLUE_HUB, 'wnli'),
        layout=FileLayout('WNLI', ('sentence1', 'sentence2')),
        published={
            'train': {'not_entailment': 323, 'entailment': 312},
            'dev': {'not_entailment': 40, 'entailment': 31},
            'test': {'': 146},
        },
        submission={'test': 'WNLI.tsv'},
        caveat='WNLI: 71 dev examples, the majority class scores 40/71 = 56.34 and dev is adversarial to train: a '
        'better fit scores worse. Never average it in.',
    )
)


@register_task('stsb')
def stsb() -> Task:
    """Refused: GLUE STS-B is a regression, it has no classes to condition on.

    Raises:
        ValueError: Always.
    """
    raise ValueError(
        'Task stsb is refused: STS-B asks for a similarity between 0 and 5, a regression; I(X;Z|Y) needs class '
        'labels. Choose one of cola, mnli, mrpc, qnli, qqp, rte, sst2, wnli.'
    )
