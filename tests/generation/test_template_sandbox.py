"""A chat template comes with a checkpoint: it must neither escape nor exhaust the machine."""

from __future__ import annotations

import time
import tracemalloc
from itertools import count

import pytest

from gemma_surgery.errors import SurgeryError
from gemma_surgery.generation import template_limits
from gemma_surgery.generation.chat_template import ChatTemplate
from gemma_surgery.generation.conversation import check_conversation

LAUGHS = "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}"
TWO_LAUGHS = (
    "{% set n = namespace(a=[1], b=[1]) %}"
    "{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
)
TUPLES = "{% set n = namespace(a=(1,)) %}{% for i in range(60) %}{% set n.a = (n.a, n.a) %}{% endfor %}"
LONG = "{% set a = 'a' * 100000 %}"

FORBIDDEN = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "append": "{{ messages.append(1) }}",
    "update": "{{ dict(a=1).update(b=2) }}",
    "namespace_attribute": "{% set n = namespace() %}{% set n.__class__ = 1 %}",
    "namespace_keyword": "{{ namespace(__class__=1) }}",
    "multiply_text": "{{ 'a' * 10**9 }}",
    "multiply_reversed": "{{ 10**9 * 'a' }}",
    "multiply_list": "{{ [0] * 10**9 }}",
    "power": "{{ 9 ** (9 ** 9) }}",
    "square_again": "{% set n = namespace(a=10**60) %}"
    "{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "double_with_tilde": "{% set n = namespace(a='aa') %}"
    "{% for i in range(60) %}{% set n.a = n.a ~ n.a %}{% endfor %}",
    "double_with_plus": "{% set n = namespace(a='aa') %}"
    "{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
    "print_laughs": LAUGHS + "{{ n.a }}",
    "join_laughs": LAUGHS + "{{ n.a ~ '' }}",
    "json_laughs": LAUGHS + "{{ n.a | tojson }}",
    "pprint_laughs": LAUGHS + "{{ n.a | pprint }}",
    "string_laughs": LAUGHS + "{{ n.a | string }}",
    "trim_laughs": LAUGHS + "{{ n.a | trim }}",
    "compare_laughs": TWO_LAUGHS + "{{ n.a == n.b }}",
    "test_laughs": TWO_LAUGHS + "{{ n.a is eq n.b }}",
    "find_laughs": TWO_LAUGHS + "{{ [n.a].index(n.b) }}",
    "sort_laughs": TWO_LAUGHS + "{{ [n.a, n.b] | sort | length }}",
    "hash_laughs": TUPLES + "{{ {n.a: 1} | length }}",
    "look_up_laughs": TUPLES + "{{ messages[0][n.a] }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "map_center": "{{ ['a'] | map('center', 10**9) | list }}",
    "format_width": "{{ '{:>999999999}'.format(1) }}",
    "format_nested_width": "{{ '{:>{}}'.format(1, '999999999') }}",
    "percent_width": "{{ '%999999999d' % 1 }}",
    "percent_name": "{{ '%(a)-0999999999d' % {'a': 1} }}",
    "percent_precision": "{{ '%.999999999f' % 1 }}",
    "percent_star": "{{ '%*d' % (999999999, 1) }}",
    "format_filter": "{{ '%999999999d' | format(1) }}",
    "replace": LONG + "{{ a.replace('a', a) }}",
    "replace_filter": LONG + "{{ a | replace('a', a) }}",
    "join_filter": LONG + "{{ ([a] * 100000) | join }}",
    "join": LONG + "{{ a.join([a] * 100000) }}",
    "translate": LONG + "{{ a.translate({97: a}) }}",
    "sum": "{% set a = [0] * 100000 %}{{ ([a] * 100000) | sum(start=[]) }}",
    "batch": "{{ [1] | batch(10**9, 0) | list }}",
    "slice": "{{ [1] | slice(10**9) | list }}",
    "to_bytes": "{{ (1).to_bytes(10**9) }}",
    "indent": "{{ ('\\n' * 100000) | indent(100000, true, true) }}",
    "text_in_loops": "{% for i in range(90000) %}" + "x" * 5000 + "{% endfor %}",
    "constants_in_loops": "{% for i in range(90000) %}{{ 'x' | center(100000) }}{% endfor %}",
    "collect": "{% set n = namespace(a=[]) %}"
    "{% for i in range(90000) %}{% set n.a = n.a + ['x' | center(1000000)] %}{% endfor %}",
    "nested_loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursive_loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
}
FAILING = {
    "range": ("{% for i in range(10**6) %}{% endfor %}", "Range too big"),
    "include": ("{% include '/etc/passwd' %}", "no loader"),
    "import": ("{% import 'os' as os %}", "no loader"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "lipsum": ("{{ lipsum(1) }}", "'lipsum' is undefined"),
    "endless_recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "needs too much memory"),
    "brackets": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "needs too much memory"),
    "syntax": ("\n{% for x in %}", "an error in line 2"),
    "unknown_filter": ("{{ 1 | nofilter }}", "No filter named 'nofilter'"),
}


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real number of steps takes seconds to use up."""
    monkeypatch.setattr(template_limits, "MAX_STEPS", 100_000)


def rendered(source: str) -> str:
    return ChatTemplate(source, "chat_template.jinja").render(check_conversation("hello"))


@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_harmful_template_ends_in_one_sentence(name: str) -> None:
    began = time.process_time()
    with pytest.raises(SurgeryError, match=r"^\[chat template\] .*") as caught:
        rendered(FORBIDDEN[name])
    # A loop of two per level ends by depth or by count, whichever comes first.
    assert "tries something forbidden" in str(caught.value) or name == "recursive_loop"
    assert "\n" not in str(caught.value)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    "name",
    [
        *("multiply_text", "multiply_reversed", "multiply_list", "ljust", "center", "map_center"),
        *("format_width", "format_nested_width", "percent_width", "percent_name", "percent_precision"),
        *("percent_star", "format_filter", "replace", "replace_filter", "join_filter", "join"),
        *("translate", "to_bytes", "indent"),
    ],
)
def test_a_large_value_is_refused_before_it_is_made(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(SurgeryError, match="tries something forbidden"):
            rendered(FORBIDDEN[name])
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", FAILING)
def test_a_broken_template_ends_in_one_sentence(name: str) -> None:
    source, reason = FAILING[name]
    with pytest.raises(SurgeryError) as caught:
        rendered(source)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception.__globals__ }}",
        "{{ '' | attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ messages[0]['__class__'] }}",
    ],
)
def test_internals_of_python_print_as_nothing(source: str) -> None:
    assert rendered(source) == ""


def test_time_ends_a_template_that_does_little_steps_of_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_SECONDS", 0.2)
    with pytest.raises(SurgeryError, match="seconds"):
        rendered("{% for i in range(90000) %}{% set x = range(9999) | sort | length %}{% endfor %}")


def test_a_machine_that_is_busy_with_other_things_ends_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count(step=3600)
    monkeypatch.setattr(template_limits.time, "monotonic", lambda: float(next(clock)))
    assert rendered("{% for i in range(3) %}{{ i }}{% endfor %}") == "012"


def test_every_rendering_of_a_template_has_limits_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_limits, "MAX_STEPS", 1000)
    template = ChatTemplate("{% for i in range(messages[0].content | int) %}{% endfor %}.", "a.jinja")
    assert [template.render(check_conversation("600")) for _ in range(3)] == [".", ".", "."]
    with pytest.raises(SurgeryError, match="steps"):
        template.render(check_conversation("2000"))
    assert template.render(check_conversation("600")) == "."


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].role ~ '/' ~ messages[0]['content'] }}", "user/hello"),
        (
            "{% for m in messages %}{% if m.role == 'user' %}1{% break %}{% endif %}{% endfor %}",
            "1",
        ),
        ("{% set n = namespace(k=0) %}{% for c in 'abc' %}{% set n.k = n.k + 1 %}{% endfor %}{{ n.k }}", "3"),
        ("{% macro m(x) %}<{{ x }}>{% endmacro %}{{ m('a') ~ m('b') }}", "<a><b>"),
        ("{% generation %}answer{% endgeneration %}", "answer"),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        (
            "{{ 'a</think>b'.split('</think>')[-1] }}{{ '%s-%d' % ('x', 3) }}{{ '{}:{:>3}'.format(1, 2) }}",
            "bx-31:  2",
        ),
        (
            "{{ '**{}**: {} 1234567 {{}}'.format(1, 2) }}{{ '%5.2f%% * 1234567' % 0.5 }}",
            "**1**: 2 1234567 {} 0.50% * 1234567",
        ),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}",
            "hello",
        ),
        ("{{ 'x' if missing is defined else 'y' }}{{ missing | default('z') }}{{ missing }}", "yz"),
        ("  {% if true %}\nline\n  {% endif %}\nend", "line\nend"),
        ("{{ strftime_now('%Y') | length }}{{ dict(a=1).a }}{{ 'ab'.replace('a', 'c') | upper }}", "41CB"),
        ("{{ (1, 2) == (1, 2) }}{{ 'a' in {'a': 1} }}{{ {('k', 1): 5}[('k', 1)] }}", "TrueTrue5"),
    ],
)
def test_what_templates_use_works(source: str, text: str) -> None:
    assert rendered(source) == text


def test_a_long_conversation_stays_within_the_limits() -> None:
    source = (
        "{% for m in messages %}{% if messages[loop.index0 - 1] is mapping and m.role != 'tool' %}"
        "{{ m.role ~ ': ' ~ m.content.split('</think>')[-1] | trim }}{% endif %}"
        "{% if loop.index0 == messages | length - 1 %}!{% endif %}{% endfor %}"
    )
    roles = ("user", "assistant")
    messages = [{"role": roles[index % 2], "content": "word " * 300} for index in range(1000)]
    text = ChatTemplate(source, "t").render(check_conversation(messages))
    assert text.startswith("user: word word") and text.endswith("word!")
    assert len(text) > 1_000_000
