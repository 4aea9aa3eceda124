"""Which way a metric is better, by its name."""

from __future__ import annotations

import pytest

from dvc_modelver.registry.metrics import find_direction


@pytest.mark.parametrize(
    "name",
    [
        "val_acc",
        "valAcc",
        "accuracy",
        "test/F1_macro",
        "eval.rouge-1",
        "mIoU",
        "nDCG@10",
        "mAP50",
        "R2",
        "top5",
        "AUC-PR",
    ],
)
def test_more_is_better(name: str) -> None:
    assert find_direction(name) == "max"


@pytest.mark.parametrize(
    "name", ["loss", "val_loss", "valLoss", "LogLoss", "accuracy_loss", "top5_error", "WER", "eval/perplexity", "rmse2"]
)
def test_less_is_better(name: str) -> None:
    assert find_direction(name) == "min"


@pytest.mark.parametrize("name", ["", "zig", "epoch", "lr", "glossary", "faccade", "n_samples"])
def test_other_names_say_nothing(name: str) -> None:
    assert find_direction(name) is None
