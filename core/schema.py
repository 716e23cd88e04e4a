"""Sections of a config that no constructor of ours describes: their keys and types."""

from __future__ import annotations

from core.source import Parameter, simple_type


def schema(text: str) -> tuple[Parameter, ...]:
    """Parameters from lines `name: annotation`."""
    rows = [line.strip().split(": ", 1) for line in text.strip().splitlines()]
    return tuple(Parameter(name, kind, simple_type(kind), None, True) for name, kind in rows)


TOP = schema("""
    seed: int
    domain: str
    backbone: dict
    data: dict
    task: dict
    adapter: dict
    optim: dict
    loader: dict
    trainer: dict
    run: dict
    choices: dict
    threads: int | None
    quantise: dict | None
    metric: dict | None
    sweep: dict | None
    tuning: dict | None
""")
RUN = schema("""
    fit: bool
    test: bool
    resume: Literal['auto', 'never', 'weights']
    limit: int | None
    calibrate: int
    audit: Literal['gate', 'warn']
""")
METRIC = schema("""
    name: str
    mode: Literal['max', 'min']
""")
SWEEP = schema("""
    methods: list[str]
    lr: list[float]
    seeds: list[int]
    tune_seeds: int
""")
# Written by a comparison into the configs of its cells.
TUNING = schema("""
    group: str
    budget: int
""")
# What `attach` takes beside the method's own options.
ATTACH = schema("""
    targets: list[str] | None
    name: str
    path: Literal['auto', 'call', 'hook', 'weight']
    budget: int | float | str | None
    thin: bool
    verify: bool
""")
# What a combination takes beside its parts, and each part beside its method's options.
COMBINATION = schema("""
    parts: list | dict
    name: str
    path: Literal['auto', 'call', 'hook', 'weight']
    thin: bool
    verify: bool
""")
PART = ("targets", "path", "budget")
PRECISIONS = "'32-true', 'bf16-mixed', '16-mixed', 'bf16-true', '16-true', '64-true', '32', '16', 'bf16', 32, 16, 64"
# Arguments of lightning 2.6's Trainer that a YAML can hold; a test compares the names with the installed class.
TRAINER = schema(f"""
    accelerator: Literal['auto', 'cpu', 'gpu', 'cuda', 'mps', 'tpu']
    strategy: str
    devices: int | str | list[int]
    num_nodes: int
    precision: Literal[{PRECISIONS}] | None
    logger: bool | None
    callbacks: list | None
    fast_dev_run: int | bool
    max_epochs: int | None
    min_epochs: int | None
    max_steps: int
    min_steps: int | None
    max_time: str | dict | None
    limit_train_batches: int | float | None
    limit_val_batches: int | float | None
    limit_test_batches: int | float | None
    limit_predict_batches: int | float | None
    overfit_batches: int | float
    val_check_interval: int | float | str | None
    check_val_every_n_epoch: int | None
    num_sanity_val_steps: int | None
    log_every_n_steps: int | None
    enable_checkpointing: bool | None
    enable_progress_bar: bool | None
    enable_model_summary: bool | None
    accumulate_grad_batches: int
    gradient_clip_val: int | float | None
    gradient_clip_algorithm: Literal['norm', 'value'] | None
    deterministic: bool | Literal['warn'] | None
    benchmark: bool | None
    inference_mode: bool
    use_distributed_sampler: bool
    profiler: str | None
    detect_anomaly: bool
    barebones: bool
    plugins: Any
    sync_batchnorm: bool
    reload_dataloaders_every_n_epochs: int
    default_root_dir: str | None
    enable_autolog_hparams: bool
    model_registry: str | None
""")
