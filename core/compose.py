"""A run's config from presets and overrides, by Hydra, with its errors as ours.

Hydra stops at the first unknown key. Here every plain override `key=value` goes in as `++key=value`, so that composing
succeeds and the check (core.config) can list all problems of a command line together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from core import catalog
from core.errors import ConfigError, Problem, did_you_mean
from core.paths import conf_dir


class SharedPresets(SearchPathPlugin):
    """Puts conf/ behind conf/<field> on Hydra's search path: adapter, optim, trainer and sweep are shared."""

    def manipulate_search_path(self, search_path) -> None:
        search_path.append("peft_atlas", f"file://{conf_dir()}")


def register() -> None:
    """Make Hydra find the shared presets; once or often, the result is the same."""
    Plugins.instance().register(SharedPresets)


def compose(domain: str, overrides: Iterable[str] = (), *, name: str = "train") -> DictConfig:
    """The config of a run of `domain`, as `python -m domains.<domain>.train <overrides>` sees it, resolved.

    ConfigError   unknown group, option or syntax (keys and values are core.config.check's business)
    """
    check_domain(domain)
    typed = prepare(domain, list(overrides))
    register()
    outer = GlobalHydra.instance().hydra  # a comparison composes its cells inside a running job
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir() / domain), version_base="1.3", job_name="train"):
            cfg = hydra_compose(name, typed, return_hydra_config=True)
        chosen = {str(group): option for group, option in cfg.hydra.runtime.choices.items()}
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        # `${hydra:...}` reads the process's own job, which is another one here (or none).
        if isinstance(OmegaConf.select(cfg, "choices"), DictConfig):
            for group in cfg.choices:
                cfg.choices[group] = chosen.get(group)
        OmegaConf.resolve(cfg)
        return cfg
    except (HydraException, OmegaConfBaseException) as error:
        raise translate(error) from error
    finally:
        GlobalHydra.instance().hydra = outer


def check_domain(domain: str) -> None:
    """ConfigError with a near miss unless the field exists."""
    if domain not in catalog.domains():
        raise ConfigError("DOMAIN", repr(domain), catalog.domains(), did_you_mean(domain, catalog.domains()))


def prepare(domain: str, overrides: Sequence[str], extra: Iterable[Path] = ()) -> list[str]:
    """Overrides as Hydra shall get them; ConfigError names every unknown option of a group, and syntax errors.

    extra   folders given by --config-dir
    """
    groups = catalog.groups(domain, extra)
    parser = OverridesParser.create()
    typed, problems = [], []
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            problems.append(_syntax(text, error))
            continue
        if override.key_or_group in groups:
            problems += _unknown_options(override, groups)
        typed.append(_forgiving(text, override, groups))
    if problems:
        raise ConfigError(problems=problems)
    return typed


def _forgiving(text: str, override: Override, groups: dict) -> str:
    """`key=value` and `+key=value` as `++key=value`; groups, deletions and Hydra's own keys as they are."""
    key = override.key_or_group
    plain = override.type in (OverrideType.CHANGE, OverrideType.ADD)
    if not plain or override.package is not None or key in groups or "/" in key or key.split(".")[0] == "hydra":
        return text
    return "++" + text.lstrip("+")


def _unknown_options(override: Override, groups: dict[str, dict[str, Path]]) -> list[Problem]:
    group, options = override.key_or_group, groups[override.key_or_group]
    if group == "experiment" and override.type is OverrideType.CHANGE:
        return [Problem("experiment", override.input_line, "+experiment=NAME", f"type `+{override.input_line}`")]
    if override.type is OverrideType.DEL:
        return []
    if override.is_sweep_override():
        values = [str(v).strip("'\"") for v in override.sweep_string_iterator()]
    else:
        value = override.value()
        values = value if isinstance(value, list) else [value]
    allowed = ", ".join(options)
    without = f"{group}=none" if "none" in options else f"~{group}"
    found = [Problem(group, "null", allowed, f"type `{without}` to go without") for v in values if v is None]
    unknown = [str(v) for v in values if v is not None and str(v) not in options]
    return found + [Problem(group, v, allowed, did_you_mean(v, options)) for v in unknown]


def _syntax(text: str, error: Exception) -> Problem:
    if "=" not in text and not text.startswith("~"):
        return Problem("command line", text, "group=option or key=value", f"give it a value: `{text}=...`")
    return Problem("command line", f"{text}   ({_first_line(error)})", "group=option or key=value")


def translate(error: Exception) -> ConfigError:
    """Hydra's or OmegaConf's exception as a ConfigError with place, options and a near miss."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = str(error.missing_cfg_file).lstrip("/").rpartition("/")
        options = list(error.options or ())
        if not group:
            return ConfigError("--config-name", name, "train, or config with --config-dir RUN")
        fix = "pip install 'peft-atlas[launchers]'" if group == "hydra/launcher" else did_you_mean(name, options)
        return ConfigError(group, name, options, fix)
    if isinstance(error, OverrideParseException):
        return ConfigError(problems=[_syntax(error.override, error)])
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    place = getattr(cause, "full_key", None) or "command line"
    return ConfigError(str(place), _first_line(error), fix=_advice(error))


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _advice(error: Exception) -> str:
    """What to type where Hydra's message itself has no near miss."""
    text = str(error)
    if "No match in the defaults list" in text:
        return "a config.yaml is whole: change keys (`adapter.rank=4`), or start from presets to change a group"
    if "Ambiguous value" in text:
        return "several values need -m"
    return ""
