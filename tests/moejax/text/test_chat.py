"""Chats to prompts: the templates of Mixtral checkpoints, and templates that should not be trusted."""

from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from moejax.text.chat import MAX_TEMPLATE, encode_chat, render_chat
from tests.messages import refuses, says
from tests.tokenizer_models import BOS, EOS, byte_level, loaded, sentencepiece

CHAT = [
    {"role": "user", "content": "the list"},
    {"role": "assistant", "content": "a <list>"},
    {"role": "user", "content": "é 😀, cost: 100000 {a: 999999} %(b)99999d %*d"},
]
# In the manner of Mixtral-8x7B-Instruct.
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate\\nuser/assistant') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ ' [INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# In the manner of ChatML, with what else is found in templates.
RICH = """{%- set ns = namespace(system='none', turns=0) -%}
{% macro head(name) %}<|{{ name | trim | upper }}|>{% endmacro %}
{% for message in messages if message.content is string %}
    {% if loop.first %}
        {{- head(' start ') ~ ns.system }}
    {% endif %}
    {% set ns.turns = ns.turns + 1 %}
    {% generation %}{{ message | tojson }} {{ '%s/%d' | format(message.role, loop.length) }}{% endgeneration %}
    {% if loop.last %}{% break %}{% endif %}
{% endfor %}
{{ messages[2].content | trim }} {{ messages[2].content.split(':')[1].replace('0', '1') }}
{{ '{}: 123456 %% {:>5}' .format('a', 'b') }} {{ '100%% 123456 %s' % 'a' }} {{ '%s' % messages[2].content }}
{{ '{} {}'.format(1234567890, 'x'.center(9)) }} {{ '%d' | format(1234567890) }} {{ '' | default(1234567890) }}
{% set tail %}{{ '-' * 3 }}{{ messages[::-1] | map(attribute='role') | join(', ') }}{% endset %}
{{ tail }}{{ ns.turns }}{{ messages[0].name is defined }}{{ messages[0].get('name', 'x').split('x') }}
{% if tools is not none %}TOOLS{% endif %}{% if add_generation_prompt %}{{ dict(a=1).items() | list }}{% endif %}"""


def render(template: str, messages: Any = CHAT, **options: Any) -> str:
    return render_chat(template, messages, bos_token=BOS, eos_token=EOS, **options)


def error_of(template: str, messages: Any = CHAT) -> str:
    with pytest.raises(ValueError) as caught:
        render(template, messages)
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    return message


# --- rendering ---


@pytest.mark.parametrize("template", [INSTRUCT, RICH, "{{ messages | tojson(indent=1) }}", "{{ strftime_now('%Y') }}"])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_equals_transformers(template: str, add_generation_prompt: bool) -> None:
    options: Any = {"add_generation_prompt": add_generation_prompt, "bos_token": BOS, "eos_token": EOS}
    [expected], _ = render_jinja_template([CHAT], chat_template=template, **options)
    assert render(template, add_generation_prompt=add_generation_prompt) == expected


def test_instruct_text() -> None:
    assert render(INSTRUCT) == f"{BOS} [INST] the list [/INST] a <list>{EOS} [INST] {CHAT[2]['content']} [/INST]"


def test_tokens_that_the_checkpoint_lacks_are_undefined() -> None:
    template = "{{ bos_token is defined }}{{ eos_token is defined }}"
    assert render_chat(template, CHAT, bos_token=None, eos_token=None) == "FalseFalse"
    assert render(template) == "TrueTrue"


def test_further_keys_are_passed_on() -> None:
    assert render("{{ messages[0].name.first }}", [{"role": "user", "content": "", "name": {"first": "A"}}]) == "A"


@pytest.mark.parametrize("content", [{"content": None}, {}])
def test_assistant_without_content(content: dict[str, Any]) -> None:
    chat = [CHAT[0], {"role": "assistant", **content}, CHAT[2]]
    assert render(INSTRUCT, chat) == render(INSTRUCT, [CHAT[0], {"role": "assistant", "content": ""}, CHAT[2]])
    called = [CHAT[0], {"role": "assistant", **content, "tool_calls": [{"id": "1"}], "name": None}, CHAT[2]]
    [expected], _ = render_jinja_template(
        [[{k: v for k, v in m.items() if v is not None} for m in called]], chat_template="{{ messages }}"
    )
    assert render("{{ messages }}", called) == expected
    assert "content" not in expected.split("}, {")[1] and "None" not in expected


@pytest.mark.parametrize(
    ("template", "role"),
    [
        ("{{ messages[0].role }}", "system"),
        ("{{ messages[0].role }}{% if messages[0].role == 'developer' %}{% endif %}", "developer"),
    ],
)
def test_developer_is_system_where_the_template_does_not_know_it(template: str, role: str) -> None:
    assert render(template, [{"role": "developer", "content": "be kind"}, CHAT[0]]) == role


def test_variables_for_the_template() -> None:
    template = "{{ reasoning_effort }} {{ enable_thinking }} {{ other is defined }} {{ budget.tokens }}"
    given = {"reasoning_effort": "low", "enable_thinking": False, "budget": {"tokens": 7}}
    assert render(template, template_kwargs=given) == "low False False 7"
    tokenizer = loaded(byte_level(), chat_template="{{ reasoning_effort }}")
    assert tokenizer.decode(encode_chat(tokenizer, CHAT, template_kwargs=given)) == "low"


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        ({"messages": []}, ("template_kwargs", "'messages'")),
        ({"bos_token": "x"}, ("template_kwargs", "'bos_token'")),
        ({"a b": 1}, ("template_kwargs", "'a b'")),
        ({"f": print}, ("template_kwargs", "JSON")),
    ],
)
def test_variables_of_the_wrong_form(given: Any, facts: tuple[str, ...]) -> None:
    with refuses(ValueError, *facts):
        render("x", template_kwargs=given)


# --- token ids ---


@pytest.mark.parametrize("backend", [byte_level, sentencepiece])
@pytest.mark.parametrize(
    ("template", "text"), [(INSTRUCT, f"{BOS} [INST] a [/INST]"), ("{{ messages[0].content }}", "a")]
)
def test_bos_is_not_doubled(backend: Any, template: str, text: str) -> None:
    tokenizer = loaded(backend(), chat_template=template)
    ids = encode_chat(tokenizer, [{"role": "user", "content": "a"}])
    without_bos = tokenizer.backend.encode(text.removeprefix(BOS), add_special_tokens=False).ids
    assert ids == [tokenizer.bos_id, *without_bos]


def test_special_tokens_are_passed_on() -> None:
    tokenizer = loaded(byte_level(), chat_template=INSTRUCT, add_bos_token=False)
    ids = encode_chat(tokenizer, CHAT)
    assert (ids.count(0), ids.count(1)) == (1, 1)


def test_generation_prompt_is_passed_on() -> None:
    tokenizer = loaded(byte_level(), chat_template="{% if add_generation_prompt %}ab{% else %}a{% endif %}")
    assert tokenizer.decode(encode_chat(tokenizer, CHAT)) == "ab"
    assert tokenizer.decode(encode_chat(tokenizer, CHAT, add_generation_prompt=False)) == "a"


def test_no_template() -> None:
    with refuses(ValueError, "no chat template", "plain prompt"):
        encode_chat(loaded(byte_level()), CHAT)


# --- messages ---


@pytest.mark.parametrize(
    ("messages", "facts"),
    [
        ([], ("role", "content", "got []")),
        ("hello", ("role", "content", "got 'hello'")),
        (CHAT[0], ("role", "content", "got {'role': 'user'")),
        (None, ("role", "content", "got None")),
        (["hello"], ("message 0", "mapping", "got 'hello'")),
        ([CHAT[0], {"role": "user"}], ("message 1", "'content'", "['role']")),
        ([{"content": "x"}], ("message 0", "'role'", "['content']")),
        ([{"role": "user", "content": None}], ("message 0", "'content'", "got None")),
        ([CHAT[0], {"role": "tool", "content": None}], ("message 1", "'content'", "got None")),
        ([{"role": "assistant", "content": [{"text": "a"}]}], ("message 0", "'content'", "got [{")),
        ([{"role": 3, "content": "x"}], ("message 0", "'role'", "got 3")),
        ([{"role": "user", "content": "x", "f": print}], ("JSON", "Object")),
    ],
)
def test_messages_of_the_wrong_form(messages: Any, facts: tuple[str, ...]) -> None:
    says(error_of("x", messages), *facts)


def test_template_that_refuses() -> None:
    message = error_of(INSTRUCT, [CHAT[0], CHAT[0]])
    says(message, "refuses", "user/assistant")


# --- templates that are wrong or hostile ---


@pytest.mark.parametrize(
    ("template", "facts"),
    [
        ("a\n{% if %}", ("Jinja", "line 2")),
        ("{% for m in messages %}", ("Jinja", "line 1")),
        ("{{ messages[0].a.b }}", ("UndefinedError", "'dict object'", "'a'")),
        ("{{ 1 / 0 }}", ("ZeroDivisionError", "division by zero")),
        ("{% include '/etc/passwd' %}", ("TypeError", "loader")),
        pytest.param(
            "{{" + "(" * 5000 + ")" * 5000 + "}}",
            ("RecursionError",),
            id="nested",
        ),
        (
            "{% for m in messages recursive %}{% endfor %}",
            ("Jinja", "line 1", "recursive"),
        ),
        ("{{ raise_exception('\x1b[31m') }}", ("refuses",)),
    ],
)
def test_template_that_fails(template: str, facts: tuple[str, ...]) -> None:
    says(error_of(template), *facts)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set f = '{0.__class__}'.format %}{{ f(1) }}",
        "{{ '{x.__class__}'.format_map({'x': 1}) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self._TemplateReference__context }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
        "{% set n = namespace(__html__=1) %}",
        "{% set n = namespace() %}{% set n.__html__ = 1 %}",
    ],
)
def test_template_that_leaves_the_sandbox(template: str) -> None:
    says(error_of(template), "unsafe")


@pytest.mark.parametrize(
    "template", ["{{ dict.update(messages[0], {'role': 'x'}) }}", "{% set messages[0].role = 'x' %}", "{{ lipsum() }}"]
)
def test_messages_cannot_be_changed(template: str) -> None:
    before = [dict(message) for message in CHAT]
    error_of(template)
    assert before == CHAT


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ 10 ** 10 * [1] }}",
        "{{ 10 ** (10 ** 10) }}",
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x %}{{ n.x }}{{n.x}}{% endset %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = n.x.replace('a', 'aa') %}{% endfor %}",
        "{% set n = namespace(x='aa') %}{% for i in range(99) %}{% set n.x = [n.x, n.x] | join %}{% endfor %}",
        "{% for i in range(99) %}{{ 'a' * 999999 }}{% endfor %}",
        "{% set x = 'a'.center(99999999) %}",
        "{% set x = 'a' | center(999999999999999) %}",
        "{% set x = '%99999999d' % 1 %}",
        "{% set x = '%*d' % (99999999, 1) %}",
        "{% set x = '%999999999999999d' | format(1) %}",
        "{% set x = '%(a)99999999d' % {'a': 1} %}",
        "{% set x = '{:99999999}'.format(1) %}",
        "{% set x = '{a:>99999999}'.format_map({'a': 1}) %}",
        "{% set x = '{:{w}}'.format(1, w=99999999) %}",
    ],
)
def test_template_that_builds_too_much(template: str) -> None:
    says(error_of(template), "more than a chat needs")


@pytest.mark.parametrize(
    "template",
    [
        "{% set r = range(9999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(40) }}",
        "{% set x = 'a' * 10000000 %}{% for i in range(99) %}{% set y = x | length %}{% endfor %}",
        "{% set n = namespace(x=0) %}{% for a in range(99999) %}{% set n.x = n.x + 1 %}{% endfor %}",
    ],
)
def test_template_that_runs_too_long(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moejax.text.chat.MAX_STEPS", 100_001)  # the real limit takes a second to reach
    says(error_of(template), "100001 steps")


def test_template_that_is_too_long() -> None:
    says(error_of("a" * (MAX_TEMPLATE + 1)), "1048577 characters")


def test_long_chat_is_within_the_bounds() -> None:
    chat = [{"role": ("user", "assistant")[n % 2], "content": "word " * 2000} for n in range(201)]
    assert len(render(INSTRUCT, chat)) > 2_000_000
