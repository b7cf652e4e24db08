"""Is the service on this machine well? For a container's HEALTHCHECK: exit code 0 or 1, and one line.

python -m pipeline.service.healthcheck [URL]
"""

from __future__ import annotations

import http.client
import sys
from collections.abc import Sequence
from urllib.parse import urlsplit

DEFAULT = "http://127.0.0.1:8750/healthz"
TIMEOUT_S = 5.0
_SHOWN = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Asks and prints what is answered."""
    url = [*(sys.argv[1:] if arguments is None else arguments), DEFAULT][0]
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", parts.path or "/")
        response = connection.getresponse()
        status, body = response.status, response.read(_SHOWN).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        print(f"{url}: {error}")
        return 1
    finally:
        connection.close()
    print(body)
    return 0 if status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
