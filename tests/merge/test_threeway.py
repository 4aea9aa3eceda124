"""The decisions of a merge, over every combination of what the three sides can have."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from dvc_modelver.errors import BadMetadataError
from dvc_modelver.fingerprint.row import TensorRow
from dvc_modelver.merge.threeway import Decision, Plan, Take, merge_facts, plan
from dvc_modelver.metadata import TensorTable
from dvc_modelver.settings import parse_settings
from dvc_modelver.strategy import STRATEGIES, Rule, Rules, parse_strategy

EVERY_COMBINATION = """
    base ours theirs
    - - -  none
    - - x  theirs    added by theirs
    - - y  theirs    added by theirs
    - - z  theirs    added by theirs
    - x -  ours      added by ours
    - x x  same      added on both sides alike
    - x y  conflict  added on both sides, differently
    - x z  conflict  added on both sides, differently
    - y -  ours      added by ours
    - y x  conflict  added on both sides, differently
    - y y  same      added on both sides alike
    - y z  conflict  added on both sides, differently
    - z -  ours      added by ours
    - z x  conflict  added on both sides, differently
    - z y  conflict  added on both sides, differently
    - z z  same      added on both sides alike
    x - -  removed   removed on both sides
    x - x  removed   removed by ours
    x - y  conflict  removed by ours, changed by theirs
    x - z  conflict  removed by ours, changed by theirs
    x x -  removed   removed by theirs
    x x x  same      unchanged
    x x y  theirs    changed by theirs
    x x z  theirs    changed by theirs
    x y -  conflict  removed by theirs, changed by ours
    x y x  ours      changed by ours
    x y y  same      changed on both sides alike
    x y z  conflict  changed on both sides
    x z -  conflict  removed by theirs, changed by ours
    x z x  ours      changed by ours
    x z y  conflict  changed on both sides
    x z z  same      changed on both sides alike
    y - -  removed   removed on both sides
    y - x  conflict  removed by ours, changed by theirs
    y - y  removed   removed by ours
    y - z  conflict  removed by ours, changed by theirs
    y x -  conflict  removed by theirs, changed by ours
    y x x  same      changed on both sides alike
    y x y  ours      changed by ours
    y x z  conflict  changed on both sides
    y y -  removed   removed by theirs
    y y x  theirs    changed by theirs
    y y y  same      unchanged
    y y z  theirs    changed by theirs
    y z -  conflict  removed by theirs, changed by ours
    y z x  conflict  changed on both sides
    y z y  ours      changed by ours
    y z z  same      changed on both sides alike
    z - -  removed   removed on both sides
    z - x  conflict  removed by ours, changed by theirs
    z - y  conflict  removed by ours, changed by theirs
    z - z  removed   removed by ours
    z x -  conflict  removed by theirs, changed by ours
    z x x  same      changed on both sides alike
    z x y  conflict  changed on both sides
    z x z  ours      changed by ours
    z y -  conflict  removed by theirs, changed by ours
    z y x  conflict  changed on both sides
    z y y  same      changed on both sides alike
    z y z  ours      changed by ours
    z z -  removed   removed by theirs
    z z x  theirs    changed by theirs
    z z y  theirs    changed by theirs
    z z z  same      unchanged
"""
TABLE = {
    (base, ours, theirs): (*rest, "")[:2]
    for base, ours, theirs, *rest in (line.split(maxsplit=4) for line in EVERY_COMBINATION.strip().splitlines()[1:])
}
SIDES = ("ours", "theirs")


def row(
    name: str = "w", values: str = "x", dtype: str = "F32", shape: tuple[int, ...] = (4,), **more: Any
) -> TensorRow:
    return TensorRow(name=name, dtype=dtype, shape=shape, digest=f"blake3:{values}", **more)


def table(*rows: TensorRow | None, structure: dict[str, Any] | None = None) -> TensorTable:
    kept = sorted((r for r in rows if r is not None), key=lambda r: r.name)
    return TensorTable("", 64, tuple(kept), structure=structure or {})


def decide(sides: list[TensorTable], chosen: Rules | None = None, *, same_format: bool = True) -> Plan:
    base, ours, theirs = sides
    return plan(base, ours, theirs, chosen, same_format=same_format)


def only(found: Plan) -> Decision:
    assert len(found.tensors) == 1, found.tensors
    return found.tensors[0]


def by_name(found: Plan) -> dict[str, Decision]:
    return {d.name: d for d in found.tensors}


def rules(text: str) -> Rules:
    return Rules(parse_strategy(text))


def one(values: str) -> TensorRow | None:
    return None if values == "-" else row(values=values)


@pytest.mark.parametrize("case", TABLE, ids="".join)
def test_a_tensor_is_decided_as_the_table_says(case: tuple[str, str, str]) -> None:
    take, why = TABLE[case]
    found = decide([table(one(values)) for values in case]).tensors
    assert [(str(d.take), d.why) for d in found] == ([] if take == "none" else [(take, why)])


def test_the_table_is_complete() -> None:
    assert set(TABLE) == set(itertools.product("-xyz", repeat=3))


@pytest.mark.parametrize("case", TABLE, ids="".join)
def test_a_fact_is_decided_as_a_tensor_is(case: tuple[str, str, str]) -> None:
    take, _ = TABLE[case]
    base, ours, theirs = ({} if value == "-" else {"layers": value} for value in case)
    found = merge_facts(base, ours, theirs, Rules())
    if take == "none" or len(set(case)) == 1:
        assert not found
        return
    (fact,) = found
    assert str(fact.take) == take
    if fact.take is not Take.CONFLICT:
        assert fact.value == (None if take == "removed" else {"theirs": theirs}.get(take, ours)["layers"])


@pytest.mark.parametrize("case", TABLE, ids="".join)
def test_ours_and_theirs_decide_what_is_a_conflict_and_nothing_else(case: tuple[str, str, str]) -> None:
    take, _ = TABLE[case]
    for side in SIDES:
        found = decide([table(one(values)) for values in case], rules(side)).tensors
        if take == "none":
            assert not found
        elif take == "conflict":
            assert str(found[0].take) == ("removed" if case[1 + SIDES.index(side)] == "-" else side)
        else:
            assert str(found[0].take) == take


VARIANTS: dict[str, TensorRow | None] = {
    "absent": None,
    "x": row(),
    "y": row(values="y"),
    "longer": row(values="l", shape=(5,)),
    "wider": row(values="w", shape=(6,)),
    "half": row(values="h", dtype="F16"),
    "brain": row(values="b", dtype="BF16"),
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_combination_of_shapes_and_dtypes_is_the_mirror_of_itself(strategy: str) -> None:
    swapped = {"ours": "theirs", "theirs": "ours"}
    mirrored = swapped.get(strategy, strategy)
    for base, ours, theirs in itertools.product(VARIANTS.values(), repeat=3):
        here = plan(table(base), table(ours), table(theirs), rules(strategy)).tensors
        there = plan(table(base), table(theirs), table(ours), rules(mirrored)).tensors
        assert [swapped.get(d.take, d.take) for d in here] == [d.take for d in there]


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s not in ("ours", "theirs", "conflict")])
def test_values_are_combined_only_where_they_fit(strategy: str) -> None:
    needs_base = strategy in ("task-arithmetic", "ties", "dare")
    for names in itertools.product(VARIANTS, repeat=3):
        base, ours, theirs = (VARIANTS[name] for name in names)
        found = plan(table(base), table(ours), table(theirs), rules(strategy)).tensors
        is_clash = len({names[0], names[1], names[2]}) == 3
        if not is_clash:
            assert all(d.take not in (Take.COMBINED, Take.CONFLICT) for d in found)
            continue
        fits = ours is not None and theirs is not None and ours.shape == theirs.shape
        has_base = fits and base is not None and ours is not None and base.shape == ours.shape
        dtypes = {r.dtype for r in (base, ours, theirs) if r is not None}
        is_combined = fits and (has_base or not needs_base) and not (has_base and len(dtypes) == 3)
        assert (found[0].take is Take.COMBINED) == is_combined, names
        assert (found[0].take is Take.CONFLICT) == (not is_combined), names
        assert (found[0].strategy is not None) == is_combined


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "why"),
    [
        ("x", "longer", "y", "shape changed by ours, changed by theirs"),
        ("x", "y", "longer", "changed by ours, shape changed by theirs"),
        ("x", "longer", "wider", "shape changed on both sides"),
        ("x", "half", "y", "dtype changed by ours, changed by theirs"),
        ("x", "half", "brain", "dtype changed on both sides"),
        ("x", "half", "longer", "dtype changed by ours, shape changed by theirs"),
        ("x", "absent", "longer", "removed by ours, shape changed by theirs"),
        ("absent", "x", "longer", "added on both sides, differently"),
    ],
)
def test_a_conflict_says_what_changed(base: str, ours: str, theirs: str, why: str) -> None:
    found = only(plan(table(VARIANTS[base]), table(VARIANTS[ours]), table(VARIANTS[theirs])))
    assert (found.take, found.why) == (Take.CONFLICT, why)


@pytest.mark.parametrize(("side", "what"), [("longer", "shape changed by theirs"), ("half", "dtype changed by theirs")])
def test_another_shape_or_dtype_of_one_side_is_taken(side: str, what: str) -> None:
    changed = VARIANTS[side]
    assert changed is not None
    found = only(plan(table(row()), table(row()), table(changed)))
    assert (found.take, found.why, found.dtype, found.shape) == (Take.THEIRS, what, changed.dtype, changed.shape)


def test_without_a_base_every_difference_is_one_of_both_sides() -> None:
    found = plan(None, table(row("a"), row("b", "y"), row("c")), table(row("a"), row("b", "z"), row("d", "d")))
    takes = {d.name: d.take for d in found.tensors}
    assert takes == {"a": Take.SAME, "b": Take.CONFLICT, "c": Take.OURS, "d": Take.THEIRS}


def test_a_combined_tensor_has_the_dtype_that_a_side_changed_it_to() -> None:
    first = only(plan(table(row()), table(row(values="y")), table(row(values="h", dtype="F16")), rules("mean")))
    second = only(plan(table(row()), table(row(values="h", dtype="F16")), table(row(values="y")), rules("mean")))
    assert first.dtype == second.dtype == "F16"
    assert only(plan(table(row()), table(row(values="y")), table(row(values="z")), rules("mean"))).dtype == "F32"


@pytest.mark.parametrize("dtype", ["I64", "I8", "U8", "BOOL", "QI8", "Q4_K", "F4", "F8_E8M0"])
def test_what_is_no_float_by_itself_is_never_combined(dtype: str) -> None:
    sides = [table(row(values=v, dtype=dtype, shape=(256,))) for v in "xyz"]
    for strategy in ("mean", "weighted", "slerp", "task-arithmetic", "ties", "dare"):
        found = only(decide(sides, rules(strategy)))
        assert found.take is Take.CONFLICT
        assert found.why == f"changed on both sides; {dtype} values are not combined, say ours or theirs"
    assert only(decide(sides, rules("ours"))).take is Take.OURS
    assert only(decide(sides, rules("theirs"))).take is Take.THEIRS


# Renames


def _sketched(name: str, digest: str) -> TensorRow:
    return row(name, digest, shape=(128,))


def test_a_tensor_renamed_by_one_side_and_changed_by_the_other_gets_both() -> None:
    base, ours, theirs = table(_sketched("old", "x")), table(_sketched("old", "y")), table(_sketched("new", "x"))
    for first, second, side in ((ours, theirs, "theirs"), (theirs, ours, "ours")):
        found = only(plan(base, first, second))
        other = "ours" if side == "theirs" else "theirs"
        assert found.name == "new"
        assert found.take == other
        assert found.source is not None
        assert found.source.digest == "blake3:y"
        assert found.why == f"renamed by {side} from old, changed by {other}"


def test_a_tensor_renamed_by_one_side_alone_keeps_its_values() -> None:
    found = only(plan(table(_sketched("old", "x")), table(_sketched("old", "x")), table(_sketched("new", "x"))))
    assert (found.name, found.take, found.why) == ("new", Take.SAME, "renamed by theirs from old")


def test_a_prefix_that_came_on_one_side_is_followed() -> None:
    names = ("encoder.weight", "decoder.weight", "head.weight")
    base = table(*(row(n, n) for n in names))
    ours = table(*(row(n, n + "!" if n == "head.weight" else n) for n in names))
    theirs = table(*(row("model." + n, n) for n in names))
    found = by_name(plan(base, ours, theirs))
    assert set(found) == {"model." + n for n in names}
    assert found["model.head.weight"].take is Take.OURS
    assert not plan(base, ours, theirs).conflicts


def test_equal_constants_are_not_taken_for_one_another() -> None:
    """Zeros of two layers that theirs named anew: nobody can tell which is which, so the one ours changed is a conflict."""
    zeros = [row(name, "zeros", shape=(128,)) for name in ("a", "b")]
    found = plan(table(*zeros), table(row("a", "mine", shape=(128,)), zeros[1]),
                 table(*(replace(z, name=name) for z, name in zip(zeros, ("p", "q"), strict=True))))  # fmt: skip
    takes = {d.name: (d.take, d.why) for d in found.tensors}
    assert takes["a"] == (Take.CONFLICT, "removed by theirs, changed by ours")
    assert takes["b"][0] is Take.REMOVED
    assert takes["p"][0] is takes["q"][0] is Take.THEIRS


def test_a_small_constant_is_no_evidence_of_a_rename() -> None:
    base, theirs = row("temperature", "one", shape=(), min=1, max=1), row("scale", "one", shape=(), min=1, max=1)
    found = by_name(plan(table(base), table(replace(base, digest="blake3:two")), table(theirs)))
    assert found["temperature"].take is Take.CONFLICT
    assert found["scale"].take is Take.THEIRS
    trained = [row(name, "bias", shape=(10,), min=-0.3, max=0.2) for name in ("fc.bias", "classifier.bias")]
    found = by_name(plan(table(trained[0]), table(replace(trained[0], digest="blake3:tuned")), table(trained[1])))
    assert found["classifier.bias"].take is Take.OURS


def test_two_new_names_of_one_tensor_are_a_conflict() -> None:
    sides = [table(_sketched(name, "x")) for name in ("old", "mine", "yours")]
    found = only(decide(sides))
    assert found.take is Take.CONFLICT
    assert found.why == "renamed on both sides from old, to mine by ours and to yours by theirs"
    assert only(decide(sides, rules("theirs"))).name == "yours"
    assert only(decide(sides, rules("ours"))).name == "mine"
    assert only(decide(sides, rules("mean"))).take is Take.CONFLICT


def test_two_tensors_that_would_get_one_name_are_a_conflict() -> None:
    base = table(_sketched("a", "x"))
    ours = table(_sketched("a", "x"), _sketched("b", "mine"))
    theirs = table(_sketched("b", "x"))
    found = plan(base, ours, theirs)
    assert [d.take for d in found.tensors] == [Take.CONFLICT, Take.CONFLICT]
    assert all("another tensor gets the same name" in d.why for d in found.tensors)


# Rules


def test_the_last_rule_that_matches_wins() -> None:
    chosen = Rules(
        parse_strategy("mean"), (Rule(parse_strategy("ours"), "enc.*"), Rule(parse_strategy("theirs"), "enc.bias"))
    )
    sides = [table(*(row(n, n + v) for n in ("enc.bias", "enc.weight", "head"))) for v in "xyz"]
    takes = {d.name: d.take for d in decide(sides, chosen).tensors}
    assert takes == {"enc.bias": Take.THEIRS, "enc.weight": Take.OURS, "head": Take.COMBINED}


def test_settings_give_the_rules_of_a_path() -> None:
    settings = parse_settings(
        """
        [merge]
        strategy = "weighted:weight=0.25"
        [[merge.rule]]
        path = "models/*.pt"
        strategy = "ties:density=0.1,scale=0.5"
        [[merge.rule]]
        tensors = "encoder.*"
        strategy = "theirs"
        """
    )
    assert not settings.unknown
    assert settings.merge_rules("models/a.pt").find("head").parameters == {"density": 0.1, "scale": 0.5}
    assert settings.merge_rules("models/a.safetensors").find("head").parameters == {"weight": 0.25}
    assert settings.merge_rules("other.bin").find("encoder.0").name == "theirs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[merge]\nstrategy = "median"', "merge.strategy is 'median', expected one of ours, theirs"),
        ("[merge]\nstrategy = 3", "merge.strategy is 3, expected a string"),
        ('[merge]\nstrategy = "mean:weight=1"', "found 'weight', expected no parameter of mean"),
        ('[merge]\nstrategy = "ties:weight=1"', "found 'weight', expected density and scale of ties"),
        ('[merge]\nstrategy = "ties:density=0"', "density is '0', expected a number above 0 to 1"),
        ('[merge]\nstrategy = "weighted:weight=1.5"', "weight is '1.5', expected a number from 0 to 1"),
        ('[merge]\nstrategy = "dare:seed=0.5"', "seed is '0.5', expected a whole number"),
        ('[merge]\nstrategy = "dare:scale=inf"', "scale is 'inf', expected a finite number"),
        ("[[merge.rule]]\ntensors = 'a'", "merge.rule 1: strategy is missing"),
        ("[[merge.rule]]\nstrategy = 'ours'\ntensors = 3", "merge.rule 1: tensors is 3, expected a pattern"),
        ("[merge]\nrule = 3", "merge.rule is 3, expected tables [[merge.rule]]"),
    ],
)
def test_settings_that_make_no_sense_are_named(text: str, said: str) -> None:
    with pytest.raises(BadMetadataError) as err:
        parse_settings(text)
    assert said in str(err.value)


def test_a_strategy_is_written_as_it_is_read() -> None:
    for text in ("mean", "weighted:weight=0.3", "dare:density=0.9,seed=7", "ties", "slerp:weight=0.1"):
        assert str(parse_strategy(text)) == text


# Optimiser state


def _trained(name: str, values: str) -> list[TensorRow]:
    state = [row(f"optimizer.state.0.{key}", values + key, role="optimizer") for key in ("exp_avg", "step")]
    return [row(name, values), *state]


def test_optimiser_state_of_the_side_that_trained_is_taken() -> None:
    found = plan(table(*_trained("w", "x")), table(*_trained("w", "x")), table(*_trained("w", "y")))
    assert {d.take for d in found.tensors} == {Take.THEIRS}
    assert not found.notes


def test_optimiser_state_that_both_sides_changed_is_that_of_ours_as_a_whole() -> None:
    base, ours, theirs = (_trained("w", v) for v in "xyz")
    ours[2] = base[2]  # the one number that ours did not change
    found = plan(table(*base), table(*ours), table(*theirs), rules("mean"))
    takes = {d.name: d.take for d in found.tensors}
    assert takes == {"w": Take.COMBINED, "optimizer.state.0.exp_avg": Take.OURS, "optimizer.state.0.step": Take.OURS}
    assert found.notes == ("optimiser state is that of ours: it was not trained on the merged weights",)


def test_a_rule_says_where_optimiser_state_comes_from() -> None:
    sides = [table(*_trained("w", v)) for v in "xyz"]
    theirs = decide(sides, rules("mean").with_rule("optimizer.*", parse_strategy("theirs")))
    assert by_name(theirs)["optimizer.state.0.step"].take is Take.THEIRS
    conflict = decide(sides, rules("mean").with_rule("optimizer.*", parse_strategy("conflict")))
    assert {d.name for d in conflict.conflicts} == {"optimizer.state.0.exp_avg", "optimizer.state.0.step"}


def test_facts_of_the_optimiser_follow_it() -> None:
    sides = [table(*_trained("w", v), structure={"optimizer.lr": v, "epoch": 1}) for v in "xyz"]
    found = decide(sides, rules("mean").with_rule("optimizer.*", parse_strategy("theirs")))
    assert [(f.name, f.value) for f in found.facts] == [("optimizer.lr", "z")]


def test_factors_of_lora_layers_that_are_combined_are_told() -> None:
    for name in ("base_model.model.q.lora_A.weight", "q.lora_B.default.weight", "lora_unet_q.lora_up.weight"):
        sides = [table(row(name, v)) for v in "xyz"]
        assert decide(sides, rules("mean")).notes[0].startswith("factors of LoRA layers are combined one by one")
        assert not decide(sides, rules("ours")).notes
    assert not decide([table(row("lorax.weight", v)) for v in "xyz"], rules("mean")).notes


# Facts


def test_facts_of_other_formats_have_nothing_in_common() -> None:
    sides = [table(row(), structure={key: 1}) for key in ("a", "b", "c")]
    assert len(decide(sides).facts) == 3
    assert not decide(sides, same_format=False).facts


def test_true_and_one_are_different_facts() -> None:
    (found,) = merge_facts({"bias": True}, {"bias": True}, {"bias": 1}, Rules())
    assert found.take is Take.THEIRS


# What is told


def test_the_recipe_names_rules_and_what_they_were_used_for() -> None:
    chosen = rules("ties:density=0.3").with_rule("b", parse_strategy("ours"))
    sides = [table(row("a", "a" + v), row("b", "b" + v), row("c")) for v in "xyz"]
    assert decide(sides, chosen).recipe() == {
        "strategy": "ties:density=0.3",
        "tensors": {"same": 1, "ours": 1, "combined": 1},
        "rules": [{"tensors": "b", "strategy": "ours"}],
        "combined": {"ties:density=0.3": ["a"]},
    }
