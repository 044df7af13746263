"""Tokens of the kind that a Kafka takes for tests, unsigned. As a command it prints one: ``unsigned_token.py USER SECONDS``."""

from __future__ import annotations

import base64
import json
import sys
import time


def token(user: str, life: float = 3600.0) -> str:
    """A token that says it is *user*, for *life* seconds."""

    def part(what: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(what).encode()).decode().rstrip("=")

    now = time.time()
    return f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': now, 'exp': now + life})}."


if __name__ == "__main__":
    sys.stdout.write(token(sys.argv[1], float(sys.argv[2])))
