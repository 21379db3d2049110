"""Keys and passwords that users give in addresses and options must not be written down."""

import re
from typing import Any

_HIDDEN = "***"
_NAMES = r"[\w-]*(?:api[_-]?key|(?:hf|auth|access|bearer)[_-]?token|secret|password|signature)[\w-]*"
_SECRETS = (
    (re.compile(r"(:/{1,2})[^/\s@]+(?=@)"), rf"\1{_HIDDEN}"),  # https://user:password@host, or https:/... as a path
    (
        re.compile(rf"(?i)\b({_NAMES}[\"']?\s*[=:]\s*[\"']?)[^&\s#\"']+"),
        rf"\1{_HIDDEN}",
    ),  # api_key=..., "hf_token": "..."
    (re.compile(r"(?i)([?&](?:key|token|sig)=)[^&\s#]+"), rf"\1{_HIDDEN}"),
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_)[A-Za-z0-9_-]{16,}"), _HIDDEN),
)


def without_secrets(text: str) -> str:
    """The text with *** in place of passwords and keys, as far as they can be told: in addresses, behind names such as
    api_key=, and those that begin as the keys of well-known services do."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def redacted(value: Any) -> Any:
    """Lists and mappings with every text in them `without_secrets`."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        # an entry under such a name is one as a whole
        return {
            key: _HIDDEN if isinstance(one, str) and re.fullmatch(rf"(?i){_NAMES}", str(key)) else redacted(one)
            for key, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(one) for one in value]
    return value
