"""The JSON Schema that editors use agrees with what is loaded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from handrail import config
from handrail.config import nodes

SCHEMA = config.schema()

KEYWORDS = {
    "$schema", "$defs", "$ref", "title", "description", "examples", "default", "type", "enum", "pattern", "minimum", "maximum",
    "anyOf", "oneOf", "properties", "patternProperties", "additionalProperties", "propertyNames", "required", "items",
    "minItems", "maxItems", "minProperties",
}  # fmt: skip
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def _fits(value: Any, schema: Any) -> bool:
    """As much of JSON Schema as ours uses; a keyword that this does not know fails a test of its own."""
    if "$ref" in schema:
        return _fits(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    checks = [
        "type" not in schema
        or (isinstance(value, TYPES[schema["type"]]) and (schema["type"] == "boolean" or not isinstance(value, bool))),
        "enum" not in schema or value in schema["enum"],
        not isinstance(value, str) or re.search(schema.get("pattern", ""), value) is not None,
        "anyOf" not in schema or any(_fits(value, each) for each in schema["anyOf"]),
        "oneOf" not in schema or sum(_fits(value, each) for each in schema["oneOf"]) == 1,
    ]
    if isinstance(value, int | float) and not isinstance(value, bool):
        checks += [value >= schema.get("minimum", value), value <= schema.get("maximum", value)]
    if isinstance(value, list):
        checks += [schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", 10**6)]
        checks += [_fits(item, schema.get("items", {})) for item in value]
    if isinstance(value, dict):
        checks += [key in value for key in schema.get("required", [])]
        checks += [len(value) >= schema.get("minProperties", 0)]
        for key, item in value.items():
            checks.append(_fits(key, schema.get("propertyNames", {})))
            patterns = [
                each for pattern, each in schema.get("patternProperties", {}).items() if re.search(pattern, key)
            ]
            known = [schema["properties"][key]] if key in schema.get("properties", {}) else []
            rest = schema.get("additionalProperties", True)
            if known or patterns:
                checks += [_fits(item, each) for each in known + patterns]
            else:
                checks.append(rest if isinstance(rest, bool) else _fits(item, rest))
    return all(checks)


def _walk(schema: Any):
    yield schema
    for key in ("$defs", "properties", "patternProperties"):
        for inner in schema.get(key, {}).values():
            yield from _walk(inner)
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(key), dict):
            yield from _walk(schema[key])
    for key in ("anyOf", "oneOf"):
        for inner in schema.get(key, []):
            yield from _walk(inner)


def _read(text: str) -> Any:
    """*text* as an editor reads it: YAML 1.2, variables as they stand."""
    return nodes.read(text, lambda written, _quoted, _place: written, []).value


GOOD = """
x-anchors: [1]
broker: ${BROKER:-sqlite:a}
brokers: {other: {url: "sqlite:b", busy: 5}, more: sqlite:c}
prefix: staging.
drain_timeout: PT1M
send_timeout: 5
send_buffer: 10
max_message_bytes: ${BYTES:-1000}
ledger: off
defaults: {timeout: none, priority: 4, errors: [{when: KeyError, then: reject}], dead_letter: false}
queues:
  taskQueue: taskHandler
  only: {}
  a:
    handler: billing.invoices.create
    broker: other
    concurrency: auto
    attempts: "${N:-3}"
    backoff: {type: exponential, delay: 2s, factor: 2, max: 5m, jitter: 0.2}
    expires: 1h 30m
    max_starts: none
    order: ${ORDER:-lifo}
    isolation: process
    content: bytes
    errors: [{when: a.B, backoff: [5s, 1m]}, {when: C, backoff: 5s}]
    middleware: [mail.session]
    dead_letter: a.failed
    options: {x: [1]}
  b: {handler: taskHandler, backoff: [0s, 1s, 30], timeout: 250ms}
  c: {handler: taskHandler, backoff: "${B:-5s}"}
"""


def test_what_loads_fits_the_schema(project):
    """An editor underlines nothing in a file that loads."""
    project.load(GOOD)

    assert _fits(_read(GOOD), SCHEMA)


@pytest.mark.parametrize(
    ("written", "wrong"),
    [
        ("order: ${ORDER:-lifo}", "order: newest"),
        ('attempts: "${N:-3}"', "attempts: 0"),
        ("concurrency: auto", "concurrency: many"),
        ("type: exponential", "type: quick"),
        ("jitter: 0.2", "jitter: 2"),
        ("expires: 1h 30m", "expires: soon"),
        ("handler: billing.invoices.create", "handlr: billing.invoices.create"),
        ("only: {}", "only: []"),
        ("only: {}", "a b: {}"),
        ("prefix: staging.", "prefix: a/b"),
        ("when: C", "then: retry"),
        ("send_buffer: 10", "send_bufer: 10"),
        ("ledger: off", "ledger: foo.db"),
    ],
)
def test_what_does_not_load_does_not_fit_the_schema(project, written, wrong):
    """An editor underlines the common mistakes, since the loader refuses them."""
    text = GOOD.replace(written, wrong, 1)
    assert text != GOOD
    project.problems(text)

    assert not _fits(_read(text), SCHEMA)


def test_every_key_is_described_for_completion():
    """Each key that an editor offers says what it is, and its examples fit."""
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    for schema in (SCHEMA, *SCHEMA["$defs"].values()):
        assert schema["description"]
        for name, key in schema["properties"].items():
            assert key.get("description"), name
            for example in key.get("examples", []):
                assert _fits(example, key), (name, example)
            if "default" in key:
                assert _fits(key["default"], key), name


def test_the_schema_uses_only_what_the_tests_understand():
    """No keyword of the schema goes untested."""
    for schema in _walk(SCHEMA):
        assert set(schema) <= KEYWORDS


def test_the_schema_is_json_and_is_the_same_every_time():
    """It can be printed to a file and compared."""
    assert json.loads(json.dumps(config.schema())) == SCHEMA


def test_the_defaults_in_the_schema_are_those_of_the_settings(project):
    """What an editor shows as the default is what a file without the key gets."""
    found = project.load("queues: {a: taskHandler}\n")
    queue = SCHEMA["$defs"]["QueueShape"]["properties"]

    assert SCHEMA["properties"]["broker"]["default"] == found.brokers["default"].url
    assert SCHEMA["properties"]["drain_timeout"]["default"] == "30s"
    assert queue["attempts"]["default"] == found.queues["a"].attempts
    assert queue["timeout"]["default"] == "15m"


def test_this_repository_s_own_queues_yaml_fits_the_schema():
    """The sample application is an example of the schema."""
    path = Path(__file__).parents[3] / "queues.yaml"

    assert _fits(yaml.safe_load(path.read_text()), SCHEMA)
