"""Stages: one tag each, refused by policy, one winner of two, and GTO and DVC see the same."""

from __future__ import annotations

import json

from tests.registry.conftest import Registry


def held(box: Registry, stage: str = "prod") -> str:
    found = json.loads(box.modelver("stages", "net", "--json"))["stages"]
    return next((one["version"] for one in found if one["stage"] == stage), "")


def test_promote_demote_and_rollback_are_one_tag_each(registry: Registry) -> None:
    registry.modelver("promote", "net", "v1.0.0", "prod", "--reason", "the first")
    registry.modelver("promote", "net", "2", "staging")
    registry.modelver("promote", "net", "v1.1.0", "prod")
    assert registry.tags("net#*") == ["net#prod#1", "net#prod#3", "net#staging#2"]
    assert held(registry) == "v1.1.0"
    print(registry.modelver("stages", "net", "--all"))
    print(registry.git("tag", "-n99", "-l", "net#prod#3"))
    registry.modelver("rollback", "net", "--stage", "prod", "--reason", "too slow")
    assert held(registry) == "v1.0.0"
    print(registry.modelver("stages", "net", "--all"))
    print(registry.run("gto", "show", "net").stdout)
    print(registry.run("gto", "history", "net").stdout)
    print(registry.run("modelver", "promote", "net", "1", "prod", ok=False))
    print(registry.run("modelver", "status", ok=False))
    print(registry.run("modelver", "demote", "net", "prod", "--push", ok=False))
    print(registry.run("modelver", "status", ok=False))
    print(registry.run("gto", "show", "net").stdout)
