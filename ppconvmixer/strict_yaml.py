"""Settings between YAML and dataclasses, strictly: nothing unknown, nothing twice, nothing of another kind."""

from __future__ import annotations

import collections
import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Union

import yaml

from .errors import UserError, brief, said, shown, unknown


class _Loader(yaml.SafeLoader):
    """YAML's plain values, without what lets a short text stand for a long one or for two at once."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise UserError(f"it uses the alias {shown(self.peek_event().anchor)}; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping = super().construct_mapping(node, deep)
        if isinstance(node, yaml.MappingNode) and len(mapping) != len(node.value):
            (twice, _), *_ = collections.Counter(key.value for key, _ in node.value).most_common(1)
            raise UserError(f"the key {shown(twice)} is given twice")
        return mapping


def load(text: str) -> Any:
    """Return what a YAML text says, in plain values.

    Raises:
        UserError: it is no YAML, has an alias, or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a kind of SafeLoader)
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        place = error.problem_mark and f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: "
        raise UserError(f"{place or ''}{brief(str(error.problem or error.context))}") from error
    except Exception as error:  # not all of PyYAML's errors are YAMLErrors: dates and numbers raise what int() does
        raise UserError(said(error)) from error


def dump(value: Any) -> str:
    """Return plain values as YAML; mappings in their order, and short lists on a line."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None)


def make(kind: type, tree: Mapping[str, Any], where: str = "") -> Any:
    """Return the dataclass ``kind`` with the values of a mapping, those of its fields in turn.

    Args:
        where: what stands before the keys where one is named, such as ``train.``.

    Raises:
        UserError: an unknown key (with the nearest name), a missing one, or a value of another kind than declared.
    """
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in tree:
        if key not in fields:
            raise unknown("key", f"{where}{key}", [f"{where}{name}" for name in fields])
    values = {}
    for name, field in fields.items():
        if name in tree:
            values[name] = _value(hints[name], tree[name], f"{where}{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise UserError(f"the key {where}{name} is missing")
    return kind(**values)


def _value(hint: Any, value: Any, key: str) -> Any:
    """Check ``value`` against the declared type, and convert what YAML leaves open."""
    if typing.get_origin(hint) is Union:
        if value is None:
            return None
        (hint,) = (kind for kind in typing.get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        return make(hint, mapping(value, key), f"{key}.")
    if typing.get_origin(hint) is dict:
        return mapping(value, key)
    if typing.get_origin(hint) is tuple:
        kinds = typing.get_args(hint)
        if kinds[-1] is ... and isinstance(value, (list, tuple)):
            return tuple(_value(kinds[0], v, f"{key}[{i}]") for i, v in enumerate(value))
        if not isinstance(value, (list, tuple)) or len(value) != len(kinds):
            count = "" if kinds[-1] is ... else f" of {len(kinds)} numbers"
            raise UserError(f"{key} is {shown(value)}; want a list{count}")
        return tuple(_value(kind, v, key) for kind, v in zip(kinds, value))
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            value = float(value)  # YAML 1.1 takes 1e-3 for text
        except (ValueError, OverflowError):
            pass
    if type(value) is not hint or value != value or (hint is int and value.bit_length() > 63):
        raise UserError(f"{key} is {shown(value)}; want {_WORDS[hint]}")
    return value


_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def mapping(value: Any, key: str) -> dict[str, Any]:
    """Return ``value`` if it is a mapping from text, or raise the UserError that names it by ``key``."""
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise UserError(f"{key} is {shown(value)}; want keys and values")
    return value


def plain(value: Any) -> Any:
    """Return a dataclass as YAML and JSON write it without tags."""
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(v) for name, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def flat(tree: Any, key: str = "") -> dict[str, Any]:
    """Return every value of nested mappings by its full key, such as ``optimizer.lr``."""
    if not isinstance(tree, dict):
        return {key: tree}
    return {k: v for name, sub in tree.items() for k, v in flat(sub, f"{key}.{name}" if key else name).items()}
