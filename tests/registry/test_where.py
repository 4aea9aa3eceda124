"""Questions to versions: what the grammar takes, what it answers, and where it points when it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvc_modelver.errors import UsageError
from dvc_modelver.registry.where import MAX_DEPTH, MAX_LENGTH, Facts, check_names, parse_where

FACTS: Facts = {
    "number": 7, "author": "Ada Lovelace", "date": "2026-05-01T09:30:00+02:00", "format": "safetensors",
    "update": "fine-tune", "stage": ("dev", "prod"), "version": ("v1.9.0", "v1.10.0"), "bytes": 4_000,
    "metrics.val_acc": 0.93, "metrics.top 1": 0.5, "hyperparameters.lr": 0.001, "hyperparameters.optimizer.name": "adamw",
    "hyperparameters.amp": True, "hyperparameters.and": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ("metrics.val_acc > 0.9 and hyperparameters.lr <= 0.01 and stage = 'prod'", True),
        ("metrics.val_acc>0.93", False),
        ("metrics.val_acc>=0.93", True),
        ("metrics.val_acc >= 93e-2", True),
        ("number = 7", True),
        ("number == 7.0", True),
        ("number < -3", False),
        ("stage = 'dev'", True),
        ("stage != 'prod'", False),
        ("stage != 'staging'", True),
        ("author ~ 'lovelace'", True),
        ("author ~ 'LOVE'", True),
        ("author = 'ada lovelace'", False),
        ('hyperparameters.optimizer.name = "adamw"', True),
        ("hyperparameters.amp = true", True),
        ("hyperparameters.amp = false", False),
        ("hyperparameters.amp = 1", False),
        ("hyperparameters.lr = '0.001'", False),
        ("hyperparameters.lr != '0.001'", True),
        ("metrics.'top 1' = .5", True),
        ("hyperparameters.and = 1 and number = 7", True),
        ("version >= 'v1.10.0'", True),
        ("version > '1.10.0'", False),
        ("version = 'v1.9.0'", True),
        ("date = 2026-05-01", True),
        ("date < 2026-05-02 and date > '2026-04-30'", True),
        ("date > 2026-05-01T09:00", True),
        ("date > 2026-05-01T08:00Z", False),
        ("date ~ '2026-05'", True),
        # what is missing makes a comparison false, whatever it asks
        ("metrics.f1 > 0", False),
        ("metrics.f1 != 0", False),
        ("not metrics.f1 > 0", True),
        # and binds more than or, not more than and
        ("number = 7 or number = 8 and author = 'x'", True),
        ("(number = 7 or number = 8) and author = 'x'", False),
        ("not number = 8 and author = 'x'", False),
        ("not (number = 8 and author = 'x')", True),
        ("NOT number = 8 AND stage = 'dev'", True),
    ],
)
def test_what_fits(text: str, fits: bool) -> None:
    assert parse_where(text).matches(FACTS) is fits


@pytest.mark.parametrize(
    ("text", "column", "expected", "hint"),
    [
        ("", 1, "a name, not or (", ""),
        ("stag = 'prod'", 1, "expected one of author", "did you mean stage?"),
        ("number = 1 and metric.x > 1", 16, "expected one of author", "did you mean metrics.NAME?"),
        ("val_acc > 1", 1, "expected one of author", "metrics.val_acc"),
        ("metrics. > 1", 1, "expected one of", ""),
        ("stage = prod", 9, "a quoted text", "stage = 'prod'"),
        ("number >", 9, "a number", ""),
        ("number 3", 8, "one of <= >= != = < > ~", ""),
        ("(number > 3", 12, "expected ), and or or", ""),
        ("number > 3)", 11, "and, or, or the end", ""),
        ("number > 3 4", 12, "and, or, or the end", ""),
        ("number > 3 and and number < 4", 16, "a name, not or (", ""),
        ("number > 3 && number < 4", 12, "an operator", ""),
        ("author = 'Ada", 10, "without its end", ""),
        ("number > 3x", 10, "expected a name", ""),
        ("date > 2026-13-01", 8, "a date like", ""),
        ("date > 'yesterday'", 8, "a date like", ""),
        ("version > 'one'", 11, "semantic version", "v1.2.0"),
        ("author ~ 3", 10, "a quoted text after ~", ""),
        ("__import__('os').system('x')", 17, "expected a name", ""),
    ],
)
def test_an_error_points_at_the_column(text: str, column: int, expected: str, hint: str) -> None:
    with pytest.raises(UsageError) as err:
        parse_where(text)
    assert f"column {column}:" in str(err.value)
    assert expected in str(err.value)
    assert hint in err.value.hint
    assert "\n" not in str(err.value)


def test_length_and_depth_are_bounded() -> None:
    parse_where("(" * MAX_DEPTH + "number = 1" + ")" * MAX_DEPTH)
    for text in ("(" * 1_000 + "number = 1" + ")" * 1_000, "not " * 1_000 + "number = 1"):
        with pytest.raises(UsageError, match=f"at most {MAX_DEPTH} levels"):
            parse_where(text)
    with pytest.raises(UsageError, match=f"at most {MAX_LENGTH}"):
        parse_where("number = 1 or " * 1_000 + "number = 1")
    assert parse_where("number = 1 or " * 200 + "number = 7").matches(FACTS)


def test_a_metric_that_no_version_has_is_named() -> None:
    where = parse_where("number > 1 and metrics.val_ac > 0.9")
    with pytest.raises(UsageError, match=r"column 16: metrics\.val_ac: no version of digits has it") as err:
        check_names(where, FACTS.keys(), "digits")
    assert err.value.hint == "did you mean metrics.val_acc?"
    check_names(parse_where("metrics.val_acc > 0.9 and version > 'v1.0.0'"), {"metrics.val_acc"}, "digits")


@given(st.text(alphabet="()<>=!~'\".- \tandortmercs_0129Tx:+", max_size=60))
def test_any_text_parses_or_is_refused_in_one_line(text: str) -> None:
    try:
        assert parse_where(text).matches(FACTS) in (True, False)
    except UsageError as err:
        assert "\n" not in str(err) and err.exit_code == 2
