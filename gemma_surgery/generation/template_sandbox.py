"""The environment that chat templates run in: a checkpoint is data, so its template must not do harm.

Jinja's sandbox keeps a template away from Python's internals, but lets it run for hours or fill the memory.
This one adds the limits of `template_limits`, and the tags, filters and globals that templates count on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import wraps
from typing import Any, cast

from jinja2 import ext, nodes, pass_context
from jinja2.environment import Environment
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from gemma_surgery.generation.template_limits import (
    Budget,
    check_braces_format,
    check_call,
    check_operator,
    check_size,
    printed_size,
)

# Jinja adds these to calls made inside loops and blocks.
_JINJA_KEYWORDS = ("_loop_vars", "_block_vars", "caller")
# Filters that ask for one get it as their first argument.
_JINJA_OBJECTS = (Environment, Context, nodes.EvalContext)


class TemplateRefusal(TemplateError):
    """What a template says with `raise_exception`."""


class GenerationTag(ext.Extension):
    """`{% generation %}` marks answers for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the nodes between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as chat templates are written for it, with limits; one environment serves one rendering."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, GenerationTag])
        self._budget = Budget()
        filters: dict[str, Callable[..., Any]] = {**self.filters, "tojson": _to_json}
        self.filters = {name: self._limited(name, function) for name, function in filters.items()}
        tests = cast("dict[str, Callable[..., Any]]", self.tests)
        self.tests = {name: self._limited(f"is {name}", test) for name, test in tests.items()}
        self.finalize = self._finalizer()
        given = self.globals
        self.globals = {name: given[name] for name in ("range", "cycler", "joiner")}
        self.globals |= {
            "dict": _new_dict,
            "namespace": PlainNamespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = Parser(self, source, name, filename).parse()
        repeated: list[nodes.For | nodes.Macro | nodes.CallBlock] = [
            *template.find_all(nodes.For),
            *template.find_all(nodes.Macro),
            *template.find_all(nodes.CallBlock),
        ]
        for node in repeated:
            own_text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            step = _method("count_step", [nodes.Const(own_text)], node.lineno)
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))
        _limit_operators(template)
        template.set_environment(self)
        return template

    def count_step(self, size: int) -> None:
        """Count one round of a loop or one call of a macro."""
        self._budget.step(size)

    def joined(self, *values: Any) -> str:
        """Concatenate as `~` does."""
        check_size(sum(map(printed_size, values)))
        return str(self._budget.result("".join(map(str, values))))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls, unless the result would be too large."""
        owner = getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)
        __self._budget.step()
        given = [owner] if isinstance(owner, (str, bytes, int, list, tuple, dict)) else []
        given += [*args, *(value for key, value in kwargs.items() if key not in _JINJA_KEYWORDS)]
        check_call(getattr(__obj, "__name__", ""), given)
        return __self._budget.result(super().call(__context, __obj, *args, **kwargs))

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Look up what a template asks for, unless hashing it would take long."""
        printed_size(argument)
        return super().getitem(obj, argument)

    def measured(self, value: Any) -> Any:
        """Return a value that can be compared and hashed in bearable time."""
        printed_size(value)
        return value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator, unless the result would be too large."""
        check_operator(operator, left, right)
        return self._budget.result(super().call_binop(context, operator, left, right))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Wrap `str.format`, unless it would print something too wide."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None:
            check_braces_format(value.__self__)
        return wrapped

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self._budget.step()
            given = [
                value for value in args if not isinstance(value, (Environment, Context, nodes.EvalContext))
            ]
            check_call(name, [*given, *kwargs.values()])
            return self._budget.result(function(*args, **kwargs))

        return limited

    def _finalizer(self) -> Callable[..., Any]:
        # A finalizer that wants the context is never run ahead of time, when the template is compiled.
        @pass_context
        def finalize(context: Context, value: Any) -> Any:
            return self._budget.printed(value)

        return finalize


class PlainNamespace(Namespace):
    """Jinja's namespace without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        # Like the original, so that `namespace(self=...)` works.
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            _refuse_private(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _limit_operators(node: nodes.Node) -> None:
    """Make the operators that the sandbox does not intercept check their operands first."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            value[:] = [_limited_node(child) if isinstance(child, nodes.Node) else child for child in value]
        elif isinstance(value, nodes.Node):
            setattr(node, field, _limited_node(value))
    if isinstance(node, (nodes.Compare, nodes.Operand)):
        node.expr = _measured(node.expr)
    elif isinstance(node, nodes.Pair):
        node.key = _measured(node.key)


def _limited_node(node: nodes.Node) -> nodes.Node:
    _limit_operators(node)
    return _method("joined", node.nodes, node.lineno) if isinstance(node, nodes.Concat) else node


def _measured(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _method("measured", [node], node.lineno)


def _method(name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    """A call of the environment's own method, out of reach of the template's names."""
    return nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None, lineno=lineno)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML cannot hold."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _new_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateRefusal(str(message))


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"the name {name!r}, which starts with an underscore")
