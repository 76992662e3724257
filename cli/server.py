"""What a running server tells its operators, as JSON."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.error import HTTPError

from deployments.direct import OWN_KEY, open_url
from protocol.errors import ConfigError

TIMEOUT_S = 30.0


def ask(url: str, path: str) -> dict[str, Any]:
    """Raises ConfigError if no DraftPool server answers."""
    try:
        with open_url(f"{url.rstrip('/')}{path}", TIMEOUT_S) as reply:
            told: dict[str, Any] = json.load(reply)
            return told
    except HTTPError as error:
        if error.code == 401:
            raise ConfigError(f"{url} lets operators in only with an admin key; set {OWN_KEY} to one") from None
        raise ConfigError(f"{url} answers {error}; give the URL that serve printed") from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ConfigError(f"no DraftPool server answers at {url}: {error}; give the URL that serve printed") from None
