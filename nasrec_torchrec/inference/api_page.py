"""A page about the server's addresses that needs nothing but the server: no scripts, nothing from other hosts."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from nasrec_torchrec import page_style


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
            address = f"{method.upper()} {path}"
            parts.append(f"<h2><code>{escape(address)}</code></h2>")
            for kind, content in operation.get("requestBody", {}).get("content", {}).items():
                schema = escape(json.dumps(content["schema"], indent=2))
                parts.append(f"<details><summary>body: {escape(kind)}</summary><pre>{schema}</pre></details>")
            answers = [[status, answer["description"]] for status, answer in operation["responses"].items()]
            parts.append(page_style.table(f"Answers to {address}", ["status", "meaning"], answers))
    return page_style.page(info["title"], "\n".join(parts))
