"""Chat templates: what reaches Python is never taken for formatting, and what people use is."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import jinja2
import pytest

from dvc_modelver.security.scan import scan_file
from dvc_modelver.security.templates import MAX_CHARS, find_trick
from dvc_modelver.security.verdicts import Verdict
from tests.security.samples import CANARY

RUNS = f"open('{CANARY}','w').close()"
BUILTINS = "['\\x5f\\x5finit\\x5f\\x5f']['\\x5f\\x5fglobals\\x5f\\x5f']['\\x5f\\x5fbuiltins\\x5f\\x5f']"
CODE = {
    "escapes": f"{{{{ cycler{BUILTINS}.open('{CANARY}', 'w').close() }}}}",
    "octal escapes": f"{{{{ (cycler|attr('\\137\\137init\\137\\137')).__globals__['__builtins__'].eval(\"{RUNS}\") }}}}",
    "computed items": (
        "{% set u = '_' * 2 %}{{ cycler[u ~ 'init' ~ u][u ~ 'globals' ~ u][u ~ 'builtins' ~ u]"
        f".open('{CANARY}', 'w').close() }}}}"
    ),
    "computed attributes of map": (
        "{% set u = '%c%c'|format(95, 95) %}{{ ([range]|map(attribute=u ~ 'class' ~ u)|list) }}"
        "{{ ([cycler]|map(attribute=u ~ 'init' ~ u ~ '.' ~ u ~ 'globals' ~ u ~ '.' ~ u ~ 'builtins' ~ u)|first)"
        f".open('{CANARY}', 'w').close() }}}}"
    ),
    "a name kept in a list": (
        "{% set names = ['role'] %}{% set keep = names.append %}{{ keep('_' ~ '_init_' ~ '_') }}"
        "{% for name in names %}{% set f = cycler[name] %}{% if f %}"
        f"{{{{ f.__globals__.__builtins__.open('{CANARY}', 'w').close() }}}}{{% endif %}}{{% endfor %}}"
    ),
    "the frame of a generator": f"{{{{ ([1]|select('odd')).gi_frame.f_builtins.open('{CANARY}', 'w').close() }}}}",
    "itself": (
        "{{ self._TemplateReference__context.cycler.__init__.__globals__.__builtins__"
        f".open('{CANARY}', 'w').close() }}}}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CODE)
def test_templates_that_run_code_are_not_safe(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = CODE[what]
    assert find_trick(text) is not None
    configuration = json.dumps({"chat_template": [{"name": "default", "template": text}]}).encode()
    named = json.dumps({"chat_template": {"default": text}}).encode()
    for name, data in (
        ("chat_template.jinja", text.encode()),
        ("tokenizer_config.json", configuration),
        ("tokenizer_config.json", named),
        ("m.gguf", gguf(text)),
    ):
        found = scan_file(io.BytesIO(data), name)
        assert any(f.kind == "template" and f.verdict is Verdict.UNKNOWN for f in found.findings), (name, found)
    assert not Path(CANARY).exists()
    jinja2.Environment().from_string(text).render(messages=[])
    assert Path(CANARY).exists(), "no test of anything: it runs no code"


def gguf(template: str) -> bytes:
    key, value = b"tokenizer.chat_template", template.encode()
    pair = len(key).to_bytes(8, "little") + key + (8).to_bytes(4, "little") + len(value).to_bytes(8, "little") + value
    return b"GGUF\x03\0\0\0" + bytes(8) + (1).to_bytes(8, "little") + pair + bytes(64)


TRICKS = [
    "{{ ''.__class__ }}",
    "{{ ''['__class__'] }}",
    "{{ messages|attr(messages[0].role) }}",
    "{{ messages|map('attr', '__class__') }}",
    "{{ messages|map('at' ~ 'tr', 'x') }}",
    "{{ messages|map(*messages) }}",
    "{{ messages|sum(attribute='a' ~ 'b') }}",
    "{{ messages|sort(false, false, key) }}",
    "{{ messages|groupby('_private') }}",
    "{{ messages[bos_token] }}",
    "{{ messages[bos_token] }}{% set bos_token = 'role' %}",
    "{% if tools %}{% set key = 'role' %}{% endif %}{{ messages[key] }}",
    "{% set key %}_{{ '_class_' }}_{% endset %}{{ messages[key] }}",
    "{% macro get(key) %}{{ messages[key] }}{% endmacro %}{{ get('_' ~ '_class_' ~ '_') }}",
    "{% macro get(key) %}{{ messages[key] }}{% endmacro %}{% set f = get %}{{ f('_' + '_x') }}",
    "{% macro get() %}{{ messages[kwargs.key] }}{% endmacro %}{{ get(key='_' ~ '_x') }}",
    "{% for key in ['role'] recursive %}{{ messages[key] }}{{ loop(['_' ~ '_x']) }}{% endfor %}",
    "{% set a = namespace(key='role') %}{% set b = a %}{% set b.key = '_' ~ '_x' %}{{ messages[a.key] }}",
    "{% set keys = ['role'] %}{{ keys.append('_' ~ '_x') }}{% for k in keys %}{{ messages[k] }}{% endfor %}",
    "{% set d = {'find': '_'['join']} %}{{ messages[d.find(['', 'x'])] }}",
    "{{ messages['x'|float('_' ~ '_x')] }}",
    "{{ messages['x__class__'[1:]] }}",
    "{{ messages[('_' ~ '_x', 'role')|first] }}",
    "{{ '{0.__class__}'.format(messages) }}",
    "{{ text.format(messages) }}",
    "{{ lipsum }}",
    "{% include 'other' %}",
    "{% from 'other' import x %}",
    "{% if %}",
    "{{ " + "(" * 3_000,
    "{{ " + "1" * 9_000 + " }}",
    "{{ a }}" * (MAX_CHARS // 7 + 1),
]


@pytest.mark.parametrize("text", TRICKS, ids=range(len(TRICKS)))
def test_what_may_reach_further_is_unknown(text: str) -> None:
    found = scan_file(io.BytesIO(text.encode()), "chat_template.jinja")
    assert found.verdict is Verdict.UNKNOWN
    assert found.findings[0].reason.startswith("Jinja text ")


def test_many_templates_cost_no_more_than_one() -> None:
    entries = [{"name": str(i), "template": "{{ a }}" * 1_000} for i in range(50)]
    found = scan_file(io.BytesIO(json.dumps({"chat_template": entries}).encode()), "tokenizer_config.json")
    assert found.verdict is Verdict.UNKNOWN


PLAIN = {
    "roles": "{% for m in messages %}<|{{ m['role'] }}|>{{ m.content|trim }}{% endfor %}",
    "checks": "{% if messages[0]['role'] != 'system' %}{{ raise_exception('no ' ~ messages[0].role) }}{% endif %}",
    "slices": "{% set rest = messages[1:] %}{% for m in rest %}{{ m.content.split('</think>')[-1] }}{% endfor %}",
    "backwards": (
        "{% for m in messages[::-1] %}{% set i = (messages|length - 1) - loop.index0 %}{{ messages[i].content }}{% endfor %}"
    ),
    "neighbours": "{% for m in messages %}{{ messages[loop.index0 - 1].role if not loop.first }}{% endfor %}",
    "counters": (
        "{% set ns = namespace(last=0) %}{% for m in messages %}{% set ns.last = loop.index0 %}{% endfor %}"
        "{{ messages[ns.last].content }}"
    ),
    "keys of a schema": (
        "{% macro extra(fields, known) %}{% for key in fields %}{% if key not in known %}{{ fields[key] }}{% endif %}"
        "{% endfor %}{% endmacro %}{% for tool in tools %}{{ extra(tool.function, ['type', 'name']) }}{% endfor %}"
    ),
    "cut names": "{% for t in tools %}{% set n = t.name.split('.')[0] %}{{ tools[n] if n in tools }}{% endfor %}",
    "filters": (
        "{{ tools|map(attribute='name')|join(', ') }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
        "{{ tools|tojson(indent=4) }}{{ messages|rejectattr('tool_calls')|map(attribute='content')|first }}"
    ),
    "training": "{% generation %}{{ messages[0].content }}{% endgeneration %}{% break %}",
    "a spare name": "{% set _ = 1 %}{{ '__' }}{{ 'snake_case' }}",
}


@pytest.mark.parametrize("what", PLAIN)
def test_what_chats_need_is_safe(what: str) -> None:
    assert find_trick(PLAIN[what]) is None


def test_nothing_of_a_template_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("compiled")

    monkeypatch.setattr(jinja2.Environment, "compile", refuse)
    monkeypatch.setattr(jinja2.Environment, "_generate", refuse)
    assert find_trick("{{ 'a' * 10**12 }}{{ 2 ** 10**10 }}") is None
