"""JSON objects as the store keeps them: one canonical form, in every adapter.

PostgreSQL's jsonb does not give back what went in: 1e16 returns as an integer, -0.0 as 0.0, keys
in another order (https://www.postgresql.org/docs/current/datatype-json.html). The domain brings
values to that form at entry, so that what is read equals what was returned when it was stored.
"""

from __future__ import annotations

import json
import marshal
import math
from collections.abc import Collection, Mapping, Sequence
from decimal import Decimal
from json.encoder import encode_basestring as _quote
from typing import Any, Final, TypeAlias, cast

from .errors import InvalidInput
from .text import check_text, is_storable, shown_name, storable_text

JsonObject: TypeAlias = dict[str, Any]
"""A JSON object in canonical form."""

_Mapping: TypeAlias = Mapping[Any, object]

MAX_JSON_BYTES: Final = 1_000_000
"""Largest JSON object, in bytes of UTF-8 when written without white space."""
MAX_JSON_DEPTH: Final = 64
"""Deepest nesting of a JSON object, itself included."""
MAX_INTEGER: Final = 10**300
"""Integers are smaller than this, on both sides of zero."""

_TOO_LARGE: Final = 10**10_000  # of more digits the decimal text takes seconds to find
_WHOLE_FLOATS_BECOME_INTEGERS: Final = 1e16  # where repr() turns to exponents, as jsonb's input
_MOST_PLAIN: Final = MAX_JSON_BYTES // 4  # characters: each has at most four bytes in UTF-8
_BYTES_OF_A_MEMBER: Final = 4  # quotes, colon and comma

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
        if not _holds_little(plain.values()):
            return None
        members = [
            f"{_quote(key)}:[{','.join(map(_quote, item))}]"  # pyright: ignore[reportUnknownArgumentType]
            if type(item) is list
            else f"{_quote(key)}:{_quote(item)}"
            for key, item in plain.items()
        ]
        text = f"{{{','.join(members)}}}"
    except TypeError:
        try:
            text = _PlainWriter().write_object(plain, MAX_JSON_DEPTH)
        except TypeError:
            return None
    return (
        text if len(text) <= _MOST_PLAIN and is_storable(text) and r"\u0000" not in text else None
    )


def _holds_little(items: Collection[Any]) -> bool:
    """Whether texts, and lists of texts, may be small; raise TypeError for most that is neither."""
    size = _BYTES_OF_A_MEMBER * len(items)
    for item in items:
        is_list = type(item) is list
        size += len(cast("list[object]", item)) if is_list else str.__len__(item)
        if size > _MOST_PLAIN:
            return False
        if is_list:
            size += sum(map(str.__len__, cast("list[str]", item)))
    return size <= _MOST_PLAIN


class _PlainWriter:
    """Writes one plain value, and no more of it than a JSON object may hold.

    A value may hold the same part many times, and so be far larger than the memory that it takes.
    """

    def __init__(self) -> None:
        self._left = _MOST_PLAIN
        """So many characters may follow: what was written has as many as were subtracted."""

    def write_object(self, value: dict[Any, Any], levels: int) -> str:
        """Write an object; raise TypeError where there is anything in it that is not plain."""
        self._left -= _BYTES_OF_A_MEMBER * len(value)
        if self._left < 0:
            raise TypeError
        members = [f"{_quote(key)}:{self._write(item, levels - 1)}" for key, item in value.items()]
        return f"{{{','.join(members)}}}"

    def _write(self, value: Any, levels: int) -> str:
        kind = type(cast("object", value))
        self._left -= len(value) if kind is str else 1
        if self._left < 0:
            raise TypeError
        if kind is str:
            return _quote(value)
        if kind is list and levels:
            return f"[{','.join([self._write(item, levels - 1) for item in value])}]"
        if kind is dict and levels:
            return self.write_object(value, levels)
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
    that are not finite or not below 10**300, more than 64 levels, more than 1 MB, and what raises
    an error of its own when it is read. No more of it is read than 1 MB.
    """
    copy: JsonObject = {}
    failed = ""
    try:
        if not isinstance(value, Mapping):
            raise error(field=field, reason=f"must be a JSON object, not {type(value).__name__}")
        copy = _CanonicalReader(field, error).read(cast("_Mapping", value))
    except (InvalidInput, MemoryError):
        raise
    except Exception as failure:  # noqa: BLE001 - whatever a value of the host raises
        failed = type(failure).__name__  # all else that it says may be a value
    if failed:
        raise error(field=field, reason=f"could not be read: that raised {failed}")
    size = len(dump_json(copy).encode())
    if size > MAX_JSON_BYTES:
        reason = f"must be at most {MAX_JSON_BYTES} bytes as JSON, not {size}"
        raise error(field=field, reason=reason)
    return copy


def check_optional_json(value: object, field: str, error: type[InvalidInput]) -> JsonObject | None:
    """Return None for None, else what `check_json_object` returns."""
    return None if value is None else check_json_object(value, field, error)


def _jsonb_order(key: str) -> tuple[int, bytes]:
    encoded = key.encode()
    return len(encoded), encoded


_Place: TypeAlias = tuple[Any, str | None, int]
"""Where a value stands: the place of what holds it, if anything does, and its name and number."""


class _CanonicalReader:
    """Reads one JSON object, and no more of it than may be stored."""

    def __init__(self, field: str, error: type[InvalidInput]) -> None:
        self._root: _Place = None, field, 0
        self._error = error
        self._left = MAX_JSON_BYTES
        """So many bytes may follow: what was read takes as many as were subtracted, or more."""

    def read(self, value: _Mapping) -> JsonObject:
        """Return a copy of it in canonical form."""
        return self._read_object(value, self._root, MAX_JSON_DEPTH)

    def _read_object(self, value: _Mapping, place: _Place, levels: int) -> JsonObject:
        if levels == 0:
            raise self._refusal(place, f"nests deeper than {MAX_JSON_DEPTH} levels")
        copy: JsonObject = {}
        self._take(1)
        for number, (key, item) in enumerate(value.items(), 1):
            if not isinstance(key, str):
                raise self._refusal(place, f"has a key that is not a text but {type(key).__name__}")
            self._take(str.__len__(key) + _BYTES_OF_A_MEMBER)
            name = self._text(key, place, " (a key)")
            copy[name] = self._read(item, (place, name, number), levels)
        if len(copy) > 1:
            return {key: copy[key] for key in sorted(copy, key=_jsonb_order)}
        return copy

    def _read(self, value: object, place: _Place, levels: int) -> Any:
        if value is None or value is True or value is False:
            self._take(4)
            return value
        if isinstance(value, str):
            self._take(str.__len__(value) + 2)
            return self._text(value, place)
        self._take(1)
        if isinstance(value, int):
            whole = int.__int__(value)
            if not -MAX_INTEGER < whole < MAX_INTEGER:
                raise self._refusal(place, "is an integer that is not below 10**300")
            return whole
        if isinstance(value, float):
            return self._read_float(float.__float__(value), place)
        if isinstance(value, Mapping):
            return self._read_object(cast("_Mapping", value), place, levels - 1)
        if isinstance(value, list | tuple):
            return self._read_list(cast("Sequence[object]", value), place, levels - 1)
        raise self._refusal(place, f"is a {type(value).__name__}, which JSON does not have")

    def _read_list(self, value: Sequence[object], place: _Place, levels: int) -> list[Any]:
        if levels == 0:
            raise self._refusal(place, f"nests deeper than {MAX_JSON_DEPTH} levels")
        copy: list[Any] = []
        for index, item in enumerate(value):
            self._take(1)
            copy.append(self._read(item, (place, None, index), levels))
        return copy

    def _read_float(self, value: float, place: _Place) -> float | int:
        if not math.isfinite(value):
            raise self._refusal(place, f"is {value}, and JSON knows finite numbers only")
        if abs(value) < _WHOLE_FLOATS_BECOME_INTEGERS:
            return value or 0.0
        whole = int(Decimal(float.__repr__(value)))
        if not -MAX_INTEGER < whole < MAX_INTEGER:
            raise self._refusal(place, "is a number that is not below 10**300")
        return whole

    def _text(self, value: str, place: _Place, what: str = "") -> str:
        if type(value) is str and is_storable(value):
            return value
        return check_text(value, f"{_path(place)}{what}", self._error)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            reason = f"must be at most {MAX_JSON_BYTES} bytes as JSON, and is larger"
            raise self._refusal(self._root, reason)

    def _refusal(self, place: _Place, reason: str) -> InvalidInput:
        return self._error(field=_path(place), reason=reason)


def _path(place: _Place) -> str:
    """Return where a value stands, in words."""
    parts: list[str] = []
    holder, name, number = place
    while holder is not None:
        parts.append(f"[{number}]" if name is None else f".{shown_name(name, number)}")
        holder, name, number = holder
    return "".join([str(name), *reversed(parts)])


def weigh(value: Any) -> int:
    """Return about how many bytes a value takes, whatever it is; raise an error if it is no JSON.

    Written as the interpreter does for its own files, which is quick, and in which a part that a
    value holds many times stands once, as in memory.
    """
    try:
        return len(marshal.dumps(value))
    except ValueError:  # of a type that the interpreter does not write
        return len(dump_json(check_json_object(value, "value", InvalidInput)))


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
    texts. Keys that become equal by that keep the last value. What is too deep, or a number of
    more than 10,000 digits, stays so and is refused by the store.

    Raises: InvalidInput for more than 1 MB.
    """
    return _Remedy().apply_to(value, MAX_JSON_DEPTH)


class _Remedy:
    """Replaces what cannot be stored in one JSON object, and reads no more than may be stored."""

    def __init__(self) -> None:
        self._left = MAX_JSON_BYTES

    def apply_to(self, value: _Mapping, levels: int) -> JsonObject:
        """Return a copy without what cannot be stored."""
        return {
            self._storable_text(key if isinstance(key, str) else _key_text(key)): self._storable(
                item, levels - 1
            )
            for key, item in value.items()
        }

    def _storable(self, value: object, levels: int) -> Any:
        self._take(1)
        if isinstance(value, str):
            return self._storable_text(value)
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, int | float) and not -MAX_INTEGER < value < MAX_INTEGER:
            return self._storable_text(_digits(value)) if abs(value) < _TOO_LARGE else value
        if isinstance(value, Mapping) and levels:
            return self.apply_to(cast("_Mapping", value), levels)
        if isinstance(value, list | tuple) and levels:
            return [self._storable(item, levels - 1) for item in cast("Sequence[object]", value)]
        return value  # pyright: ignore[reportUnknownVariableType]

    def _storable_text(self, text: str) -> str:
        self._take(str.__len__(text))
        return storable_text(text)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            reason = f"must be at most {MAX_JSON_BYTES} bytes as JSON, and is larger"
            raise InvalidInput(field="value", reason=reason)


def _key_text(key: object) -> str:
    """Return the text of a key that is none."""
    is_large = isinstance(key, int) and not -MAX_INTEGER < key < MAX_INTEGER
    return _digits(cast("int", key)) if is_large else str(key)


def _digits(value: float) -> str:
    """Return the decimal text of a large number; Python's own way stops at some thousand digits."""
    return str(Decimal(value)) if abs(value) < _TOO_LARGE else "a number of too many digits"
