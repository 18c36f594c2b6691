"""Keeps secrets out of everything that is written or printed."""

import os
import re

HIDDEN = "***"
_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*(?:::[A-Za-z][A-Za-z0-9+.-]*)*://)(?P<user>[^\s/?#'\"]+)@")
_NAME = (
    r"[\w.-]*(?:password|passwd|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|account[_-]?key|signature"
    r"|credentials?|\bsig)"
)
_VALUE = re.compile(rf"(?P<name>{_NAME})(?P<equals>=|%3D)(?P<value>[^\s&;,'\"#]+)", re.IGNORECASE)
_VARIABLE = re.compile(r"password|passwd|secret|token|api_?key|access_?key|credential", re.IGNORECASE)
# Shorter values of variables stand for too much else.
_SHORTEST = 6


def redact(text: str) -> str:
    """Replaces the secrets in a text.

    It hides the user and the password of a URL, the values of parameters named like a secret (``password=...``,
    ``sig=...``), and the values of environment variables that are named like one (``AWS_SECRET_ACCESS_KEY``).

    Example:
        >>> redact("--storage postgresql://reader:Tr0ub4dor@host/search?sslpassword=abc&sslmode=require")
        '--storage postgresql://***@host/search?sslpassword=***&sslmode=require'
    """
    text = _URL.sub(lambda found: f"{found['scheme']}{HIDDEN}@", text)
    text = _VALUE.sub(lambda found: f"{found['name']}{found['equals']}{HIDDEN}", text)
    for value in _secret_values():
        text = text.replace(value, HIDDEN)
    return text


def _secret_values() -> list[str]:
    """Values of environment variables that are named like a secret; the longest first, as one may contain another."""
    values = {
        value
        for name, value in os.environ.items()
        # A path or a number is where a secret lies, or how long it lives.
        if _VARIABLE.search(name) and len(value) >= _SHORTEST and not value.startswith("/") and not value.isdigit()
    }
    return sorted(values, key=len, reverse=True)
