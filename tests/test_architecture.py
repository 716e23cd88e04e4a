"""The dependency rule, proved from the syntax tree, and what follows from it: a command answers at once."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = sorted((ROOT / "core").rglob("*.py"))
DOMAINS = sorted((ROOT / "domains").rglob("*.py"))
FIELDS = {
    "transformers",
    "timm",
    "monai",
    "esm",
    "torchaudio",
    "torchvision",
    "peft",
    "biotite",
    "sklearn",
    "soundfile",
    "nibabel",
}
HEAVY = {"torch", "lightning", "torchmetrics", "numpy", "scipy", "matplotlib", "pandas", "safetensors"} | FIELDS
# Modules that a command loads before it knows what to do.
LIGHT = ["core", "core.cli", "core.config", "core.catalog", "core.errors", "core.paths", "core.source", "core.compat"]
LIGHT += ["core.compose", "core.main", "core.job"]
LIGHT += [f"domains.{path.parent.name}.train" for path in (ROOT / "domains").glob("*/train.py")]


def module(file: Path) -> str:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(file: Path, *, everywhere: bool = True) -> Iterator[tuple[str, int]]:
    """(module, line) of every import statement; `everywhere=False`: of those that run when the file is imported."""
    stack: list[ast.AST] = list(ast.parse(file.read_text(encoding="utf-8")).body)
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module(file).split(".")
                anchor = anchor[: len(anchor) - node.level + (file.name == "__init__.py")]
                base = ".".join([*anchor, *filter(None, [node.module])])
            yield base, node.lineno
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif everywhere or not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            if not everywhere and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                continue
            stack += ast.iter_child_nodes(node)


def top(name: str) -> str:
    return name.split(".")[0]


def found(files: list[Path], forbidden) -> list[str]:
    return [f"{f.relative_to(ROOT)}:{line} imports {n}" for f in files for n, line in imports(f) if forbidden(f, n)]


def test_core_knows_no_field():
    assert found(CORE, lambda _, name: top(name) in FIELDS | {"domains"}) == []


def test_core_names_no_field():
    """Not in a comment, a message or a page either; `text` is left out, being a word of its own."""
    fields = {path.parent.name for path in (ROOT / "domains").glob("*/train.py")} - {"text"}
    pages = [path for path in (ROOT / "core").rglob("*") if path.suffix in (".py", ".html", ".css", ".yaml")]
    lines = [(path, n, line) for path in pages for n, line in enumerate(path.read_text().splitlines(), 1)]
    assert [f"{p.relative_to(ROOT)}:{n} {line}" for p, n, line in lines for f in fields if f in line.lower()] == []


def test_fields_do_not_know_each_other():
    def other(file: Path, name: str) -> bool:
        parts = name.split(".")
        return parts[0] == "domains" and len(parts) > 1 and parts[1] != file.relative_to(ROOT / "domains").parts[0]

    assert found([f for f in DOMAINS if f.parent != ROOT / "domains"], other) == []


def test_adapters_need_torch_alone():
    allowed = sys.stdlib_module_names | {"torch", "safetensors"}
    ours = ("core.adapters", "core.errors", "core.contracts")

    def forbidden(_: Path, name: str) -> bool:
        return not (top(name) in allowed or name == "core" or name.startswith(ours))

    assert found([f for f in CORE if "adapters" in f.parts], forbidden) == []


def test_lightning_has_one_name():
    assert found(CORE + DOMAINS, lambda _, name: top(name) == "pytorch_lightning") == []


def reached(name: str) -> dict[str, str]:
    """Every module that importing `name` imports, and through which of ours."""
    seen, stack = {}, [(name, "")]
    while stack:
        current, through = stack.pop()
        if current in seen:
            continue
        seen[current] = through
        file = ROOT.joinpath(*current.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        if top(current) in {"core", "domains"} and file.exists():
            packages = current.split(".")
            stack += [(".".join(packages[:i]), current) for i in range(1, len(packages))]
            stack += [(imported, current) for imported, _ in imports(file, everywhere=False)]
    return seen


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_nothing_heavy(name):
    heavy = {module: through for module, through in reached(name).items() if top(module) in HEAVY}
    assert heavy == {}


@pytest.mark.parametrize(
    "code",
    ["import core", "import core.cli, core.job", "import domains.protein.train"],
)
def test_imports_leave_torch_out(code):
    """The same rule, from a running interpreter."""
    probe = f"import sys; {code}; print(sorted({{'torch', 'numpy', 'lightning'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("file", CORE + DOMAINS + sorted((ROOT / "tests").rglob("*.py")), ids=module)
def test_a_file_is_one_idea(file):
    lines = len(file.read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{lines} lines: two ideas"
    assert file.stem not in {"utils", "helpers", "common", "misc"}


def test_constructors_that_a_config_names_say_what_they_take():
    """**kwargs in a constructor would switch the check of its keys off."""
    from core import catalog, source

    targets = {catalog.method(name).definition.target for name in catalog.methods()}
    for domain in catalog.domains():
        for group in ("backbone", "data", "task"):
            for file in catalog.groups(domain).get(group, {}).values():
                target = catalog.preset(file)[1].get("_target_", "")
                targets.add(target) if target.startswith("domains.") else None
    read = {target: source.read(target) for target in targets}
    assert [target for target, definition in read.items() if definition is None] == []
    assert [target for target, definition in read.items() if definition.open] == []
