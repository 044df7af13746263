"""The JSON Schema of queues.yaml, for editors. It is made from the shape alone."""

from __future__ import annotations

from typing import Any

from handrail import duration
from handrail.config.model import DEFAULT_BROKER_URL, QueueSettings, Settings
from handrail.config.shape import Root

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_SHOWN_AS_DURATIONS = frozenset({"timeout", "expires", "drain_timeout", "send_timeout"})


def make() -> dict[str, Any]:
    """A JSON Schema of draft 2020-12."""
    found = Root.model_json_schema()
    for schema in (found, *found["$defs"].values()):
        for name, key in schema.get("properties", {}).items():
            # None stands for "not written" in the shape; what that means is told by the settings
            key.pop("default", None)
            key.pop("title", None)
            owner = (
                Settings
                if schema is found
                else QueueSettings
                if "Queue" in schema["title"] or "Common" in schema["title"]
                else None
            )
            default = _default(owner, name)
            if default is not None:
                key["default"] = default
        schema.pop("title", None)
    # where anchors are kept
    found["patternProperties"] = {"^x-": {}}
    found["properties"]["queues"]["propertyNames"] = {"pattern": "^[A-Za-z0-9_.-]{1,128}$"}
    found["properties"]["queues"]["minProperties"] = 1
    return {"$schema": DIALECT, "title": "queues.yaml of handrail", **found}


def _default(owner: type[Any] | None, name: str) -> Any:
    if owner is Settings and name == "broker":
        return DEFAULT_BROKER_URL
    if owner is None or name not in owner.__struct_fields__:
        return None
    fields, defaults = owner.__struct_fields__, owner.__struct_defaults__
    index = fields.index(name) - (len(fields) - len(defaults))
    value = defaults[index] if index >= 0 else None
    if name in _SHOWN_AS_DURATIONS and value is not None:
        return duration.text(value)
    return value if isinstance(value, str | int) else None
