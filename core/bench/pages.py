"""Pages from `templates/`: one file, no request to anywhere, everything escaped."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(template: str, **view: Any) -> str:
    """A page from `templates/`, everything escaped, the style sheet inlined."""
    import jinja2
    from markupsafe import Markup

    folder = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((folder / "style.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **view)
