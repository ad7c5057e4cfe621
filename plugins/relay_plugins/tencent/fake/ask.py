"""What is asked: the parameters of TextModeration, checked as the service checks them."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from relay_plugins.tencent.fake.refusal import Refusal

ACTION: Final = "TextModeration"
VERSION: Final = "2020-12-29"
TYPES: Final = ("TEXT", "TEXT_AIGC")
LANGUAGES: Final = ("zh", "en")
DEFAULT_BIZ_TYPE: Final = "TencentCloudDefault"
_OTHER_ACTIONS: Final = frozenset({"CreateFinancialLLMTask", "GetFinancialLLMTaskResult"})
_REGION: Final = re.compile(r"[a-z]{2}-[a-z]+(-[a-z0-9]+)*")
_DATA_ID: Final = re.compile(r"[A-Za-z0-9_@#-]{0,64}")
_BIZ_TYPE: Final = re.compile(r"[A-Za-z0-9_]{3,32}")

# The parameters there are, and their types. Nested ones by the name of the structure.
_TOP: Final[Mapping[str, type]] = {
    "Content": str,
    "BizType": str,
    "DataId": str,
    "User": dict,
    "Device": dict,
    "SourceLanguage": str,
    "Type": str,
    "SessionId": str,
    "BizTag": str,
}
_USER: Final[Mapping[str, type]] = {
    **dict.fromkeys(("UserId", "Nickname", "Phone", "HeadUrl", "Desc", "RoomId", "ReceiverId"), str),
    **dict.fromkeys(("AccountType", "Gender", "Age", "Level", "SendTime"), int),
}
_DEVICE: Final[Mapping[str, type]] = dict.fromkeys(("IP", "Mac", "TokenId", "DeviceId", "IMEI", "IDFA", "IDFV"), str)


@dataclass(frozen=True, slots=True)
class Ask:
    """One call, read. `parameters` are as they came; the rest is what a verdict needs of them."""

    text: str
    biz_type: str
    data_id: str
    session_id: str
    user_id: str
    ip: str
    type: str
    parameters: Mapping[str, object]


def check_head(method: str, headers: Mapping[str, str]) -> None:
    """Action, version and region. Raises Refusal."""
    for name in ("Action", "Version", "Region"):
        if not headers.get(f"X-TC-{name}"):
            raise Refusal("MissingParameter", f"The request is missing a required parameter `{name}`.")
    action, version, region = (headers[f"X-TC-{name}"] for name in ("Action", "Version", "Region"))
    if method != "POST":
        raise Refusal("UnsupportedProtocol", "This fake reads POST requests with a JSON body only.")
    if action in _OTHER_ACTIONS:
        raise Refusal("UnsupportedOperation", f"This fake does not play the action `{action}`.")
    if action != ACTION:
        raise Refusal("InvalidAction", f"The request action=`{action}` is invalid or not found.")
    if version != VERSION:
        raise Refusal("NoSuchVersion", f"The API version `{version}` does not exist.")
    if not _REGION.fullmatch(region):
        raise Refusal("UnsupportedRegion", f"The region `{region}` is not supported.")
    if headers.get("Content-Type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal("InvalidParameter", "The Content-Type has to be application/json.")


def read(body: bytes, max_chars: int) -> Ask:
    """The call in a request's body. Raises Refusal."""
    try:
        parameters = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refusal("InvalidParameter", "The request body is not valid JSON.") from None
    if not isinstance(parameters, dict):
        raise Refusal("InvalidParameter", "The request body is not a JSON object.")
    given = _checked(parameters, _TOP, "")
    user = _checked(given.get("User", {}), _USER, "User.")
    device = _checked(given.get("Device", {}), _DEVICE, "Device.")
    if "Content" not in given:
        raise Refusal("MissingParameter", "The request is missing a required parameter `Content`.")
    if not _DATA_ID.fullmatch(given.get("DataId", "")):
        raise Refusal("InvalidParameterValue", "`DataId` holds at most 64 letters, digits and _-@#.")
    if (biz_type := given.get("BizType", "")) and not _BIZ_TYPE.fullmatch(biz_type):
        raise Refusal("InvalidParameterValue.InvalidBizType", "BizType参数错误")
    kind = given.get("Type", "") or TYPES[0]
    if kind not in TYPES:
        raise Refusal("InvalidParameterValue.ErrType", "Type参数值不支持")
    if given.get("SourceLanguage", "") not in ("", *LANGUAGES):
        raise Refusal("InvalidParameterValue", "`SourceLanguage` is zh or en.")
    if (ip := device.get("IP", "")) and not _is_ipv4(ip):
        raise Refusal("InvalidParameter.ParameterError", "`Device.IP` is not an IPv4 address.")
    return Ask(
        text=_text(given["Content"], max_chars),
        biz_type=biz_type or DEFAULT_BIZ_TYPE,
        data_id=given.get("DataId", ""),
        session_id=given.get("SessionId", ""),
        user_id=user.get("UserId", ""),
        ip=ip,
        type=kind,
        parameters=parameters,
    )


def _checked(given: Mapping[str, object], known: Mapping[str, type], where: str) -> dict[str, Any]:
    """The parameters that are set, all of the right type. Those that are null count as left out."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            raise Refusal("UnknownParameter", f"The parameter `{where}{name}` is not recognized.")
        if value is None:
            continue
        # A bool is an int to Python only.
        if not isinstance(value, known[name]) or isinstance(value, bool):
            raise Refusal("InvalidParameter", f"The value type of parameter `{where}{name}` is not valid.")
        found[name] = value
    return found


def _text(content: str, max_chars: int) -> str:
    try:
        text = base64.b64decode(content, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Refusal(
            "InvalidParameterValue.ErrTextContentType", "请求的文本格式错误（需要base64编码格式的文本）。"
        ) from None
    if not text:
        raise Refusal("InvalidParameterValue.InvalidContent", "InvalidParameterValue.InvalidContent")
    if len(text) > max_chars:
        raise Refusal("InvalidParameterValue.ErrTextContentLen", "请求的文本长度超过限制。")
    return text


def _is_ipv4(address: str) -> bool:
    try:
        ipaddress.IPv4Address(address)
    except ValueError:
        return False
    return True
