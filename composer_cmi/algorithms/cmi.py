"""CE + lambda * CMI for classifiers, CE - lambda * CMI for teachers, as Composer algorithms."""

from dataclasses import dataclass

from composer_cmi.algorithms.base import CMIAlgorithm
from composer_cmi.registry import register_algorithm
from composer_cmi.terms.arguments import MaximizationArguments, RegularizationArguments

__all__ = ['CMIMaximization', 'CMIRegularization']


@register_algorithm('cmi_regularization')
@dataclass(repr=False, eq=False)
class CMIRegularization(RegularizationArguments, CMIAlgorithm):
    """Fine-tune with CE + lambda * I(X;Z|Y): tighter clusters of each class (Sivakaran & Yang, arXiv 2502.11258).

    The term is measured from the first batch and added to the loss from `start` on. Against frozen centroids it is a
    mean over examples, so the result does not depend on microbatches or ranks; the centroids move once per batch.

    Args:
        weight: lambda, at least 0; its unit is set by `form`. 0 only measures and logs.
        space: `'features'`: `f_x = softmax(h_s)` of the input of the last linear layer (the paper). `'centered'`:
            `f_x = softmax((h_s - m) / (|h_s - m| T))`, `m` the running mean of the features (arXiv 2601.02543): no
            change of their scale meets the term. `'logits'`: `f_x = softmax(logits)` (CMIC-DL, arXiv 2309.09123).
        form: `'scaled'`: `weight * CMI / CMI_0`, one weight for every model; `CMI_0` is what was measured when the term
            started, or the largest running CMI since then if that is larger. `'plain'`: `weight * CMI` in nats; with
            `start='0ba'` this is the paper's. `'relative'`: `weight * CMI / I(X;Z)`. `'normalized'`: `weight * CMI /
            Gamma`, the NCMI of arXiv 2309.09123. `'contrastive'`: `weight` times the mean of
            `-log softmax_c(-D(f_x || g_c) / tau)[y]`, in nats: clusters are tightened and driven apart.
        start: Composer time string from which on the term counts. `'scaled'` from the first step is fatal: the unit
            is then the CMI of features that have not begun to separate.
        ramp: time over which the weight then rises linearly, in the unit of `start`.
        temperature: `f_x = softmax(x / temperature)`; by default 1, and 0.05 for centred features. A list: the mean
            over these temperatures (CMIM, arXiv 2507.00012).
        centroids: `'ema'` or `'fixed'`, see `composer_cmi.centroids.ClassCentroids`.
        decay: of the exponential average, per batch in which the class occurs.
        feature_module: name of the module whose output is `h_s`; found automatically by default.
        feature_position: `'first'` or `'last'` (non-padding) position, where features come as `[N, L, D]`.
        separation: beta, at least 0: `weight * CMI - beta * Gamma` (CMIC-DL), both divided by CMI_0 in the `'scaled'`
            form. Gamma is the mean cross-entropy between examples of different classes, nats.
        tau: temperature of the `'contrastive'` form, 0.1 by default.
        label_key: where the batch holds the class of each example; by default `'labels'` in a mapping, else index 1.

    Raises:
        ValueError: for values out of range or that mean nothing together, when the features cannot be found in the
            model (the message lists the candidates), or beside MixUp, CutMix or another CMI algorithm.

    Example:
        .. code-block:: python

            trainer = Trainer(model=model, train_dataloader=loader, algorithms=[CMIRegularization()], ...)
    """


@register_algorithm('cmi_maximization')
@dataclass(repr=False, eq=False)
class CMIMaximization(MaximizationArguments, CMIAlgorithm):
    """Make a better teacher with CE - lambda * I(X;Z|Y): wider clusters teach more (arXiv 2401.08732, 2502.11258).

    Ascent against stale centroids would climb `CMI + sum_y P(y) D(g_y || Q_y)` by moving the class means away from `Q`.
    Subtracting that drift leaves, for each example, the direction `log f_n - log g_{y_n}` with *fresh* means `g`. So
    the centroids here follow the model closely (`decay`), which keeps the feedback between drift and centroids damped:
    the drift that survives a step is `decay` plus what one step moves the means, and dies out while that is below 1.

    Args:
        weight: lambda, at least 0. On images (arXiv 2401.08732) about 0.2 was best in logit space and more than 0.5
            harmful. So it was in our study of distillation (`studies/results/distill_l6_l3`), although held-out CMI
            rises plainly only from about 1 on.
        space: `'logits'` is right for distillation, where the student sees only logits; or `'features'`.
        form: as in `CMIRegularization`.
        start: as in `CMIRegularization`.
        ramp: as in `CMIRegularization`.
        max_cmi: the term is switched off while the running CMI is at or above this many nats. Set this cap or the next
            in feature space, where a growing norm of the features alone meets the objective. `None`: no cap.
        max_growth: the same cap as a multiple of the CMI measured when the term started. `None`: no cap.
        temperature: as in `CMIRegularization`.
        centroids: `'ema'` (fresh), or `'fixed'`: the MCMI recipe, one pass over the training set with a trained CE
            teacher, which is then tuned further against those centroids, drift included.
        decay: as in `CMIRegularization`; small on purpose.
        feature_module: as in `CMIRegularization`.
        feature_position: as in `CMIRegularization`.
        label_key: as in `CMIRegularization`.

    Raises:
        ValueError: as in `CMIRegularization`.
    """
