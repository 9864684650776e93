"""Results as strict JSON, one line each, so that people can read it and git can compare it."""

import json
import math
from typing import Any


def compact_json(found: dict[str, Any]) -> str:
    """Write an entry a line, and each item of a list of dictionaries on a line of its own.

    So too in an entry that is the report of a command.

    Infinity and NaN, which strict JSON does not have, become strings.
    """
    return _report(found, "") + "\n"


def _report(found: dict[str, Any], indent: str) -> str:
    entries = (
        f"{indent} {json.dumps(key)}: {_value(each, indent + ' ')}" for key, each in found.items()
    )
    return "{\n" + ",\n".join(entries) + f"\n{indent}}}"


def _value(value: Any, indent: str) -> str:
    if isinstance(value, dict) and "command" in value:
        return _report(value, indent)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"{indent} {_line(each)}" for each in value) + f"\n{indent}]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(_strict(value), allow_nan=False, ensure_ascii=False)


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
