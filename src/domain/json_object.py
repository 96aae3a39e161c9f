"""JSON objects as the store keeps them: one canonical form, in every adapter.

PostgreSQL's jsonb does not give back what went in: 1e16 returns as an integer, -0.0 as 0.0, keys
in another order (https://www.postgresql.org/docs/current/datatype-json.html). The domain brings
values to that form at entry, so that what is read equals what was returned when it was stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring as _quote
from typing import Any, Final, TypeAlias, cast

from .errors import InvalidInput
from .text import check_text, is_storable, storable_text

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object in canonical form."""

_Mapping: TypeAlias = Mapping[Any, object]

MAX_JSON_BYTES: Final = 1_000_000
"""Largest JSON object, in bytes of UTF-8 when written without white space."""
MAX_JSON_DEPTH: Final = 64
"""Deepest nesting of a JSON object, itself included."""
MAX_INTEGER: Final = 10**300
"""Integers are smaller than this, on both sides of zero."""

_WHOLE_FLOATS_BECOME_INTEGERS: Final = 1e16  # where repr() turns to exponents, as jsonb's input
_MOST_BYTES_A_CHARACTER: Final = 4  # in UTF-8

_DECODER: Final = json.JSONDecoder()
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def dump_json(value: object) -> str:
    """Write `value` as the store does: no white space, no escapes that UTF-8 does not need."""
    return _ENCODER.encode(value)


def dump_optional(value: object) -> str | None:
    """Write an optional value as JSON; None is None."""
    return None if value is None else dump_json(value)


def load_optional(text: str | None) -> JsonObject | None:
    """Read an optional JSON object that the store wrote; None is None."""
    if text is None:
        return None
    loaded: JsonObject = _DECODER.raw_decode(text)[0]  # nothing stands before it, nor after
    return loaded


def dump_plain(value: object) -> str | None:
    """Write a JSON object that is acceptable beyond doubt; return None where it is not.

    Whatever `check_json_object` would refuse or change is not, but for the order of keys.
    """
    if type(value) is not dict:
        return None
    plain: dict[Any, Any] = value  # pyright: ignore[reportUnknownVariableType]
    try:  # most hold texts, or lists of them, and nothing else
        members = [
            f"{_quote(key)}:[{','.join(map(_quote, item))}]"  # pyright: ignore[reportUnknownArgumentType]
            if type(item) is list
            else f"{_quote(key)}:{_quote(item)}"
            for key, item in plain.items()
        ]
        text = f"{{{','.join(members)}}}"
    except TypeError:
        try:
            text = _write_object(plain, MAX_JSON_DEPTH)
        except TypeError:
            return None
    is_small = len(text) * _MOST_BYTES_A_CHARACTER <= MAX_JSON_BYTES
    return text if is_small and is_storable(text) and r"\u0000" not in text else None


def _write_object(value: dict[Any, Any], levels: int) -> str:
    """Write an object of a plain value; raise TypeError where there is anything else in it."""
    members = [f"{_quote(key)}:{_write(item, levels - 1)}" for key, item in value.items()]
    return f"{{{','.join(members)}}}"


def _write(value: Any, levels: int) -> str:
    kind = type(cast("object", value))
    if kind is str:
        return _quote(value)
    if kind is list and levels:
        return f"[{','.join([_write(item, levels - 1) for item in value])}]"
    if kind is dict and levels:
        return _write_object(value, levels)
    if kind is int and -MAX_INTEGER < value < MAX_INTEGER:
        return int.__repr__(value)
    if kind is float and 0 < abs(value) < _WHOLE_FLOATS_BECOME_INTEGERS:
        return float.__repr__(value)
    if value is None or kind is bool:
        return dump_json(value)
    raise TypeError


def check_json_object(value: object, field: str, error: type[InvalidInput]) -> JsonObject:
    """Return a canonical copy of the JSON object `value`; raise `error` if it is not one.

    Tuples become lists, whole floats from 1e16 on become integers, -0.0 becomes 0.0, keys are
    ordered by length, then bytes. Refused: keys that are not texts, unstorable texts, numbers
    that are not finite or not below 10**300, more than 64 levels, more than 1 MB.
    """
    if not isinstance(value, Mapping):
        raise error(field=field, reason=f"must be a JSON object, not {type(value).__name__}")
    copy = _canonical_object(cast("_Mapping", value), field, error, MAX_JSON_DEPTH)
    size = len(dump_json(copy).encode())
    if size > MAX_JSON_BYTES:
        reason = f"must be at most {MAX_JSON_BYTES} bytes as JSON, not {size}"
        raise error(field=field, reason=reason)
    return copy


def check_optional_json(value: object, field: str, error: type[InvalidInput]) -> JsonObject | None:
    """Return None for None, else what `check_json_object` returns."""
    return None if value is None else check_json_object(value, field, error)


def _canonical_object(
    value: _Mapping, field: str, error: type[InvalidInput], levels: int
) -> JsonObject:
    if levels == 0:
        raise error(field=field, reason=f"nests deeper than {MAX_JSON_DEPTH} levels")
    copy: JsonObject = {}
    for key, item in value.items():
        if not isinstance(key, str):
            reason = f"has a key that is not a text but {type(key).__name__}"
            raise error(field=field, reason=reason)
        check_text(key, f"{field} (a key)", error)
        copy[str.__str__(key)] = _canonical(item, f"{field}.{key[:64]}", error, levels)
    if len(copy) > 1:
        return {key: copy[key] for key in sorted(copy, key=_jsonb_order)}
    return copy


def _jsonb_order(key: str) -> tuple[int, bytes]:
    encoded = key.encode()
    return len(encoded), encoded


def _canonical(value: object, field: str, error: type[InvalidInput], levels: int) -> Any:
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return str.__str__(check_text(value, field, error))
    if isinstance(value, int):
        if not -MAX_INTEGER < value < MAX_INTEGER:
            raise error(field=field, reason="is an integer that is not below 10**300")
        return int.__int__(value)
    if isinstance(value, float):
        return _canonical_float(value, field, error)
    if isinstance(value, Mapping):
        return _canonical_object(cast("_Mapping", value), field, error, levels - 1)
    if isinstance(value, list | tuple):
        if levels == 1:
            raise error(field=field, reason=f"nests deeper than {MAX_JSON_DEPTH} levels")
        return [
            _canonical(item, f"{field}[{index}]", error, levels - 1)
            for index, item in enumerate(cast("Sequence[object]", value))
        ]
    raise error(field=field, reason=f"is a {type(value).__name__}, which JSON does not have")


def _canonical_float(value: float, field: str, error: type[InvalidInput]) -> float | int:
    if not math.isfinite(value):
        raise error(field=field, reason=f"is {value}, and JSON knows finite numbers only")
    if abs(value) < _WHOLE_FLOATS_BECOME_INTEGERS:
        return float.__float__(value) or 0.0
    whole = int(Decimal(float.__repr__(value)))
    if not -MAX_INTEGER < whole < MAX_INTEGER:
        raise error(field=field, reason="is a number that is not below 10**300")
    return whole


def copy_json(value: JsonObject | None) -> JsonObject | None:
    """Return a deep copy of a JSON object."""
    return None if value is None else {key: _copy(item) for key, item in value.items()}


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return copy_json(cast("JsonObject", value))
    if isinstance(value, list):
        return [_copy(item) for item in cast("Sequence[Any]", value)]
    return value


def storable_json(value: Mapping[str, object]) -> JsonObject:
    """Return a copy of a JSON object with what cannot be stored replaced.

    NUL and lone surrogates in texts and keys become U+FFFD, numbers that are not finite become
    null, integers of 10**300 and more become their decimal text, and so do keys that are not
    texts. Keys that become equal by that keep the last value. What is too large or too deep
    stays so and is refused by the store.
    """
    return {storable_text(str(key)): _storable(item) for key, item in value.items()}


def _storable(value: object) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, Mapping):
        return storable_json(cast("_Mapping", value))
    if isinstance(value, list | tuple):
        return [_storable(item) for item in cast("Sequence[object]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, int | float) and not -MAX_INTEGER < value < MAX_INTEGER:
        return str(Decimal(value))
    return value
