"""Questions to versions, as ``--where`` takes them: parsed by hand and never evaluated as a program.

::

    expression = and-part { "or" and-part }
    and-part   = not-part { "and" not-part }
    not-part   = "not" not-part | "(" expression ")" | name operator value
    operator   = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    value      = number | "true" | "false" | date | quoted text

A name is one of `NAMES`, or ``metrics.`` or ``hyperparameters.`` and a key (``hyperparameters.optimizer.lr``,
``metrics."top 1"``). ``~`` asks whether the text on the left contains the one on the right, whatever their case. What
a version does not have makes a comparison false, ``!=`` as well; so does a value of another type, but for ``!=``. A
version may have several tags and stages: one that fits is enough, and ``!=`` wants that none is equal.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from dvc_modelver.errors import UsageError
from dvc_modelver.registry.tags import version_key

MAX_LENGTH = 4_096
"""Characters of an expression."""
MAX_DEPTH = 50
"""Levels of parentheses and ``not``."""
NAMES = ("author", "bytes", "cosine", "date", "format", "framework", "kind", "md5", "name", "number", "parameters",
         "path", "relative_l2", "stage", "subject", "update", "version")  # fmt: skip
GROUPS = ("metrics.", "hyperparameters.")

Value = bool | int | float | str | datetime
Facts = Mapping[str, Value | tuple[str, ...]]
"""What a version has by name; a tuple holds several values."""

_OPERATORS = ("<=", ">=", "!=", "==", "=", "<", ">", "~")
_TOKEN = re.compile(
    r"""(?P<space>\s+)
    |(?P<date>\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?)(?![\w.])
    |(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    |(?P<text>'[^']*'|"[^"]*")
    |(?P<operator><=|>=|!=|==|=|<|>|~)
    |(?P<name>[^\W\d](?:[\w./@%:+-]|(?<=\.)'[^']*'|(?<=\.)"[^"]*")*)
    |(?P<bracket>[()])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class _Token:
    """One word of an expression; `kind` is empty at its end."""

    kind: str
    text: str
    column: int


class Where(Protocol):
    """A parsed expression."""

    def matches(self, facts: Facts) -> bool:
        """Whether a version fits."""

    def names(self) -> Iterable[tuple[str, int]]:
        """Give the names that are asked for, and the column of each."""


@dataclass(frozen=True)
class Comparison:
    """``name operator value``."""

    name: str
    operator: str
    value: Value
    column: int

    def matches(self, facts: Facts) -> bool:
        """Whether a version fits."""
        found = facts.get(self.name)
        if found is None or found == ():
            return False
        values = found if isinstance(found, tuple) else (found,)
        if self.operator == "!=":
            return not any(_holds(self.name, one, "=", self.value) for one in values)
        return any(_holds(self.name, one, self.operator, self.value) for one in values)

    def names(self) -> Iterable[tuple[str, int]]:
        """Give the name that is asked for, and its column."""
        yield self.name, self.column


@dataclass(frozen=True)
class Combined:
    """Parts joined by ``and``, by ``or``, or one after ``not``."""

    how: str
    parts: tuple[Where, ...]

    def matches(self, facts: Facts) -> bool:
        """Whether a version fits."""
        if self.how == "not":
            return not self.parts[0].matches(facts)
        return (all if self.how == "and" else any)(part.matches(facts) for part in self.parts)

    def names(self) -> Iterable[tuple[str, int]]:
        """Give the names that are asked for, and the column of each."""
        for part in self.parts:
            yield from part.names()


_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "=": lambda a, b: a == b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


def _holds(name: str, found: Value, operator: str, wanted: Value) -> bool:
    if operator == "~":
        return str(wanted).lower() in str(found).lower()
    left, right = _comparable(name, found, wanted)
    if type(left) is not type(right) and not (_is_number(left) and _is_number(right)):
        return False
    if isinstance(left, bool) and operator != "=":
        return False
    compare: Callable[..., bool] = _COMPARE[operator]
    return compare(left, right)


def _comparable(name: str, found: Value, wanted: Value) -> tuple[object, object]:
    """Give both values as they compare: versions by their parts, a day with a day, an hour in one time zone or none."""
    if name == "version" and isinstance(found, str) and isinstance(wanted, str):
        return version_key(found), version_key(wanted)
    if name == "date" and isinstance(found, str) and isinstance(wanted, (str, datetime)):
        there = datetime.fromisoformat(found)
        if isinstance(wanted, str):
            return there.date().isoformat(), wanted
        return (there if wanted.tzinfo else there.replace(tzinfo=None)), wanted
    return found, wanted


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def parse_where(text: str) -> Where:
    """Parse an expression.

    Raises:
        UsageError: It is too long, too deep, or does not follow the grammar; the message names the column.
    """
    if len(text) > MAX_LENGTH:
        raise UsageError(f"--where: {len(text)} characters, expected at most {MAX_LENGTH}")
    parser = _Parser(text)
    found = parser.any_of(0)
    parser.expect_end()
    return found


def check_names(where: Where, known: Collection[str], whose: str) -> None:
    """Refuse a metric or hyper-parameter that no version has.

    Args:
        where: The expression.
        known: All names that the versions have.
        whose: Whose versions these are, for the message.

    Raises:
        UsageError: There is one; the nearest name is in the hint.
    """
    for name, column in where.names():
        check_known(name, known, whose, f"--where, column {column}")


def check_known(name: str, known: Collection[str], whose: str, where: str) -> None:
    """Refuse one that no version has; see `check_names`.

    Args:
        name: A name.
        known: All names that the versions have.
        whose: Whose versions these are.
        where: Where it stands, for the message.

    Raises:
        UsageError: No version has it; the nearest name is in the hint.
    """
    if name not in known and name not in NAMES:
        close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
        group = name.partition(".")[0] + "."
        there = [key for key in sorted(known) if key.startswith(group)][:8]
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(there)}" if there else ""
        raise UsageError(f"{where}: {name}: no version of {whose} has it", hint=hint)


def check_name(name: str, column: int = 0, option: str = "--where") -> None:
    """Refuse a name that no version could have.

    Raises:
        UsageError: It is none of `NAMES`, nor in one of `GROUPS`.
    """
    if name in NAMES or any(name.startswith(group) and name != group for group in GROUPS):
        return
    where = f"{option}, column {column}: " if column else f"{option}: "
    known = [*NAMES, *(f"{group}NAME" for group in GROUPS)]
    close = difflib.get_close_matches(name, [*NAMES, *(g.rstrip(".") for g in GROUPS)], n=1, cutoff=0.5)
    meant = f"{close[0]}.NAME" if close and f"{close[0]}." in GROUPS else close[0] if close else ""
    hint = f"did you mean {meant}?" if meant else f"{GROUPS[0]}{name} asks for a metric"
    raise UsageError(f"{where}{name} is no name, expected one of {', '.join(known)}", hint=hint)


class _Parser:
    """Recursive descent over the tokens of one expression."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, self.at = text, list(_tokens(text)), 0

    @property
    def now(self) -> _Token:
        return self.tokens[self.at]

    def take(self) -> _Token:
        token = self.now
        self.at += bool(token.kind)
        return token

    def fail(self, expected: str, hint: str = "") -> UsageError:
        token = self.now
        found = f"found {token.text}" if token.kind else "the expression ends"
        return UsageError(
            f"--where, column {token.column}: {found}, expected {expected}",
            hint=hint or "--where \"metrics.val_acc > 0.9 and stage = 'prod'\"",
        )

    def is_word(self, word: str) -> bool:
        return self.now.kind == "name" and self.now.text.lower() == word

    def any_of(self, depth: int) -> Where:
        return self._joined("or", lambda: self._joined("and", lambda: self._one(depth)))

    def _joined(self, word: str, part: Callable[[], Where]) -> Where:
        parts = [part()]
        while self.is_word(word):
            self.take()
            parts.append(part())
        return parts[0] if len(parts) == 1 else Combined(word, tuple(parts))

    def _one(self, depth: int) -> Where:
        if depth > MAX_DEPTH:
            raise self.fail(f"at most {MAX_DEPTH} levels of parentheses and not")
        if self.is_word("not"):
            self.take()
            return Combined("not", (self._one(depth + 1),))
        if self.now.text == "(" and self.now.kind == "bracket":
            self.take()
            found = self.any_of(depth + 1)
            if self.now.text != ")":
                raise self.fail("), and or or")
            self.take()
            return found
        return self._comparison()

    def _comparison(self) -> Where:
        token = self.now
        if token.kind != "name" or token.text.lower() in ("and", "or"):
            raise self.fail("a name, not or (")
        name = re.sub(r"'([^']*)'|\"([^\"]*)\"", lambda m: m[1] or m[2] or "", token.text)
        check_name(name, token.column)
        self.take()
        if self.now.kind != "operator":
            raise self.fail(f"one of {' '.join(o for o in _OPERATORS if o != '==')} after {name}")
        operator = self.take().text
        if operator == "~" and self.now.kind != "text":
            raise self.fail("a quoted text after ~")
        if operator == "~":
            return Comparison(name, operator, self.take().text[1:-1], token.column)
        column, value = self.now.column, self._value(name)
        if name == "version":
            _check_version(value, column)
        return Comparison(name, "=" if operator == "==" else operator, value, token.column)

    def _value(self, name: str) -> Value:
        token = self.now
        if token.kind == "name" and token.text.lower() in ("true", "false"):
            self.take()
            return token.text.lower() == "true"
        if token.kind == "number":
            self.take()
            return float(token.text) if re.search(r"[.eE]", token.text) else int(token.text)
        if token.kind == "date" or (token.kind == "text" and name == "date"):
            return self._date(name)
        if token.kind == "text":
            self.take()
            return token.text[1:-1]
        hint = f"{name} = '{token.text}': a text has quotes" if token.kind == "name" else ""
        raise self.fail("a number, true, false, a date or a quoted text", hint)

    def _date(self, name: str) -> Value:
        text = self.now.text.strip("'\"")
        try:
            found = datetime.fromisoformat(text)
        except ValueError:
            raise self.fail("a date like 2026-05-01 or 2026-05-01T12:00") from None
        self.take()
        return text if len(text) == len("2026-05-01") or name != "date" else found

    def expect_end(self) -> None:
        if self.now.kind:
            raise self.fail("and, or, or the end")


def _check_version(value: Value, column: int) -> None:
    try:
        version_key(str(value))
    except UsageError as err:
        raise UsageError(f"--where, column {column}: {err}", hint="--where \"version >= 'v1.2.0'\"") from None


def _tokens(text: str) -> Iterable[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            what = "a quoted text without its end" if text[at] in "'\"" else repr(text[at : at + 10])
            raise UsageError(
                f"--where, column {at + 1}: {what}, expected a name, an operator, a number, a date or a quoted text",
                hint="--where \"metrics.val_acc > 0.9 and stage = 'prod'\"",
            )
        if found.lastgroup != "space":
            yield _Token(found.lastgroup or "", found[0], at + 1)
        at = found.end()
    yield _Token("", "", len(text) + 1)
