"""docs/methods.md is written from the methods' own files, and says no more than they do."""

from core import catalog, methods_page
from core.paths import conf_dir


def test_the_page_is_current():
    written = (methods_page.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == methods_page.page(), f"run `{methods_page.COMMAND}`"


def test_every_method_and_preset_is_on_it():
    page = methods_page.page()
    methods = [m.name for m in methods_page.own()]
    presets = [file.stem for file in (conf_dir() / "adapter").glob("*.yaml")]
    assert set(methods) == set(catalog.methods())
    assert [name for name in methods if f"### {name}\n" not in page] == []
    assert [name for name in presets if f"`adapter={name}`" not in page] == []
