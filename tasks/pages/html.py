"""Pages that need no server: text is escaped, and a content security policy forbids the rest."""

import base64
import hashlib
import html
import io
from pathlib import Path
from typing import Any

from PIL import Image

PAGE_CSS = Path(__file__).with_name("page.css").read_text("utf-8")  # of every page


def escaped(value: Any) -> str:
    """A value as text in HTML or in a quoted attribute, whatever it contains."""
    return html.escape(str(value), quote=True)


def source_hash(source: str) -> str:
    """What allows this very style sheet or script in a content security policy."""
    digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def page(title: str, body: str, policy: str, css: str) -> str:
    """A whole page. `body` and `policy` are HTML, the title is text."""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{escaped(title)}</title><style>{css}</style></head>
<body>{body}</body></html>
"""


def data_uri(picture: Image.Image) -> str:
    """A picture as WebP inside an address."""
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode()}"


def duration(seconds: float) -> str:
    """Such as 4.2 s, 3 min 20 s, 16 min or 5 h 12 min."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if seconds < 600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    if seconds < 6000:
        return f"{minutes} min"
    return f"{minutes // 60:,} h {minutes % 60} min"
