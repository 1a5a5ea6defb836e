"""GLUE's metrics by scikit-learn, as a local module of Hugging Face `evaluate`.

It shares no code with `composer_cmi.run.scoring`, on purpose: the two are held against each other.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

_DESCRIPTION = 'The official metrics of the GLUE classification tasks, and macro F1, by scikit-learn.'
_CITATION = """\
@inproceedings{wang2019glue,
  title={{GLUE}: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding},
  author={Wang, Alex and Singh, Amanpreet and Michael, Julian and Hill, Felix and Levy, Omer and Bowman, Samuel R.},
  booktitle={International Conference on Learning Representations},
  year={2019}
}"""
_INPUTS = """
Args:
    predictions: class indices.
    references: class indices.
    metrics: names, of accuracy, f1 (of class 1), macro_f1, matthews_correlation.
    num_classes: number of classes; macro F1 averages over all of them.
"""


class SecondScores(evaluate.Metric):
    """Loaded by `evaluate.load` from this file's folder."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({'predictions': datasets.Value('int64'), 'references': datasets.Value('int64')}),
        )

    def _compute(self, predictions, references, metrics=('accuracy',), num_classes=2):
        available = {
            'accuracy': lambda: accuracy_score(references, predictions),
            'f1': lambda: f1_score(references, predictions, pos_label=1),
            'macro_f1': lambda: f1_score(references, predictions, labels=list(range(num_classes)), average='macro'),
            'matthews_correlation': lambda: matthews_corrcoef(references, predictions),
        }
        return {name: float(available[name]()) for name in metrics}
