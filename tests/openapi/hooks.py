"""What schemathesis does besides: it asks for few choices, and counts which answers came.

Loaded by schemathesis itself (SCHEMATHESIS_HOOKS), in an environment of its own.
"""

import json
import os
import re
from collections import Counter
from pathlib import Path

import schemathesis

MAX_CHOICES = 4
SEEN: Counter[str] = Counter()


@schemathesis.hook
def before_call(context, case, kwargs):
    """Fewer choices than the 128 that may be asked for: it is not speed that is tested."""
    body = case.body
    if isinstance(body, dict) and isinstance(body.get("n"), int) and body["n"] > MAX_CHOICES:
        case.body = {**body, "n": MAX_CHOICES}


@schemathesis.hook
def after_call(context, case, response):
    """Counts the errors by operation, status and message without its values."""
    if response.status_code < 400:
        key = f"{case.operation.label} {response.status_code}"
    else:
        try:
            message = json.loads(response.content)["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = repr(response.content[:80])
        key = f"{case.operation.label} {response.status_code} {re.sub(r'[0-9]+', '#', message)[:70]}"
    SEEN[key] += 1
    if path := os.environ.get("DRAFTPOOL_SEEN"):
        Path(path).write_text(json.dumps(SEEN, indent=1, sort_keys=True), encoding="utf-8")
