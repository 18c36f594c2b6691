"""A page about the server's addresses that needs nothing but the server: no scripts, nothing from other hosts."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any


def api_page(document: Mapping[str, Any]) -> str:
    """Returns an OpenAPI document as HTML.

    Args:
        document: description of the addresses, in the form of OpenAPI 3.
    """
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>"]
    parts.append('<p>The same for programs: <a href="openapi.json">openapi.json</a></p>')
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(f"<h2><code>{method.upper()} {escape(path)}</code></h2>")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                schema = escape(json.dumps(content["schema"], indent=2))
                parts.append(f"<details><summary>body: {escape(kind)}</summary><pre>{schema}</pre></details>")
            answers = [
                f"<tr><td>{escape(status)}</td><td>{escape(answer['description'])}</td></tr>"
                for status, answer in operation["responses"].items()
            ]
            parts.append(f"<table>{''.join(answers)}</table>")
    style = "body{font:16px sans-serif;max-width:60em;margin:2em auto}td{padding:.2em 1em .2em 0;vertical-align:top}"
    head = f"<meta charset=utf-8><title>{escape(info['title'])}</title><style>{style}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"
