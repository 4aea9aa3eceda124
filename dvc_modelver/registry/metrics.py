"""Which way a metric is better, by the names that are in use."""

from __future__ import annotations

import re

_LOWER = frozenset(
    [
        "bce",
        "bpc",
        "bpd",
        "cer",
        "cost",
        "duration",
        "ece",
        "eer",
        "err",
        "error",
        "fid",
        "fnr",
        "fpr",
        "hinge",
        "kl",
        "latency",
        "logloss",
        "loss",
        "mae",
        "mape",
        "mase",
        "mse",
        "msle",
        "nll",
        "perplexity",
        "ppl",
        "regret",
        "rmse",
        "rmsle",
        "smape",
        "time",
        "ter",
        "wer",
    ]
)
_HIGHER = frozenset(
    [
        "acc",
        "accuracy",
        "ap",
        "auc",
        "auroc",
        "auprc",
        "bleu",
        "chrf",
        "coverage",
        "dice",
        "elo",
        "em",
        "f1",
        "f2",
        "fbeta",
        "gini",
        "hit",
        "hits",
        "iou",
        "jaccard",
        "kappa",
        "map",
        "mcc",
        "meteor",
        "miou",
        "mrr",
        "ndcg",
        "ppv",
        "precision",
        "psnr",
        "r2",
        "recall",
        "reward",
        "roc",
        "rouge",
        "score",
        "sensitivity",
        "specificity",
        "spearman",
        "pearson",
        "ssim",
        "throughput",
        "top1",
        "top5",
        "tnr",
        "tpr",
        "win",
        "wins",
    ]
)


def find_direction(metric: str) -> str | None:
    """Give ``min`` or ``max`` for a metric whose name says which is better; None for any other.

    A word for an error decides over one for a success: ``accuracy_loss`` is a loss. Camel case and digits are parted as
    people write them: ``valAcc``, ``val/acc``, ``eval.rouge-1``, ``F1_macro``.
    """
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", metric)
    words = {word for word in re.split(r"[^a-z0-9]+", f"{metric} {spaced}".lower()) if word}
    words |= {word.rstrip("0123456789") for word in words}
    if words & _LOWER:
        return "min"
    return "max" if words & _HIGHER else None
