"""A comparison's order of work: what is tried, what is chosen, what is run again and what is not. The training itself
is replaced by one that scores instantly: which cells run, with which config, is the subject here."""

import pytest

from core import compose
from core.bench import compare, result
from core.bench.cells import find
from core.errors import ConfigError, TrainingError
from tests.core.bench import synthetic

OVERRIDES = ["sweep=compare", "sweep.methods=[none,lora,full]", "sweep.lr=[1e-3,3e-3,1e-2]", "sweep.seeds=[0,1]"]
SMALL = "sweep.methods=[none,lora]"


class Training:
    """`core.training.run.run` without training: the best learning rate of every method is 3e-3. Keeps what it ran."""

    def __init__(self, fail=lambda cfg: None):
        self.ran, self.fail = [], fail

    def __call__(self, cfg, directory):
        self.ran.append((cfg.choices.adapter, cfg.optim.lr, cfg.seed, cfg.run.test))
        self.fail(cfg)
        value = 0.6 - abs(cfg.optim.lr - 3e-3) * 10
        val = result.MetricRecord(value=value, n=16)
        test = synthetic.metric(synthetic.rows(cfg.choices.adapter, cfg.seed))
        split = "test" if cfg.run.test else "val"
        return synthetic.write_run(
            directory, cfg.choices.adapter, cfg.seed, lr=cfg.optim.lr, config_hash=result.config_hash(cfg),
            metrics={"val": {"q3": val}} | ({"test": {"q3": test}} if cfg.run.test else {}),
            primary={"name": "q3", "split": split, "value": test.value if cfg.run.test else value},
            tuning_group=cfg.tuning.group, tuning_budget=cfg.tuning.budget, wall_s=10.0,
        )  # fmt: skip


def start(directory, fit, *more):
    overrides = [*OVERRIDES, *more]
    return compare.run(compose.compose("protein", overrides), directory, overrides=overrides, fit=fit)


def test_equal_trials_then_every_seed_at_the_chosen_rate(tmp_path):
    fit = Training()
    assert start(tmp_path, fit) == 0
    trials = [(m, lr, 0, False) for m in ("none", "lora", "full") for lr in (1e-3, 3e-3, 1e-2)]
    finals = [(m, 3e-3, s, True) for m in ("none", "lora", "full") for s in (0, 1)]
    assert fit.ran == trials + finals  # test is never scored while there is something to choose
    runs, _ = find(tmp_path)
    assert (
        len(runs) == 12 and sum(run.tested for run in runs) == 6
    )  # the chosen trial is gone on with, in its directory
    assert {run.record.tuning_budget for run in runs} == {3} and len({run.record.tuning_group for run in runs}) == 1
    lora = next(run.record for run in runs if run.tested and run.record.method == "lora" and run.record.seed == 0)
    assert lora.command == "python -m domains.protein.train adapter=lora optim.lr=0.003 seed=0"
    assert lora.wall_s == 20.0  # its trial and its scoring
    assert "lora leads" in (tmp_path / "report.md").read_text()
    assert "better than probe" in next(tmp_path.glob("lora_lr0.003_s0_*/card.html")).read_text()


def test_nothing_finished_is_run_again_and_a_killed_sweep_goes_on(tmp_path):
    def killed(cfg):
        if len(first.ran) == 5:
            raise KeyboardInterrupt

    first, second, third = Training(killed), Training(), Training()
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, first, SMALL)
    start(tmp_path, second, SMALL)
    assert second.ran[0] == first.ran[4] and len(second.ran) == 6 + 4 - 4
    start(tmp_path, third, SMALL)
    assert third.ran == []


def test_another_config_is_another_cell(tmp_path):
    start(tmp_path, Training(), SMALL)
    again, more = Training(), Training()
    start(tmp_path, again, SMALL, "trainer.max_steps=7")
    assert len(again.ran) == 6 + 4
    start(tmp_path, more, SMALL, "sweep.seeds=[0,1,2]")
    assert more.ran == [(m, 3e-3, 2, True) for m in ("none", "lora")]


def test_a_failed_cell_stops_no_other_and_is_tried_again(tmp_path):
    def fail(cfg):
        if cfg.choices.adapter == "lora" and cfg.optim.lr == 3e-3 and not cfg.run.test:
            raise TrainingError("step 3", "loss nan")
        if cfg.choices.adapter == "full":
            raise ZeroDivisionError("a bug")

    fit = Training(fail)
    assert start(tmp_path, fit) == 5
    assert [ran for ran in fit.ran if ran[3]] == [
        ("none", 3e-3, 0, True), ("none", 3e-3, 1, True), ("lora", 1e-3, 0, True), ("lora", 1e-3, 1, True)
    ]  # fmt: skip
    text = (tmp_path / "report.md").read_text()
    assert "TrainingError (code 5): step 3: loss nan" in text and "ZeroDivisionError (code 1): a bug" in text
    again = Training()
    assert start(tmp_path, again) == 0
    assert ("lora", 3e-3, 0, False) in again.ran and ("full", 1e-3, 0, False) in again.ran


def test_lower_may_be_better_and_seeds_may_share_the_choice(tmp_path):
    class Errors(Training):
        def __call__(self, cfg, directory):
            record = super().__call__(cfg, directory)
            error = {(1e-3, 0): 0.1, (1e-3, 1): 0.9, (3e-3, 0): 0.4, (3e-3, 1): 0.4, (1e-2, 0): 0.7, (1e-2, 1): 0.2}
            line = record.metrics["val"]["q3"]
            line.value, line.higher_is_better = error[cfg.optim.lr, cfg.seed], False
            result.write(directory, record)
            return record

    fit = Errors()
    start(tmp_path, fit, "sweep.tune_seeds=2", "sweep.methods=[lora]")
    assert [ran for ran in fit.ran if ran[3]] == [
        ("lora", 3e-3, 0, True),
        ("lora", 3e-3, 1, True),
    ]  # mean 0.4 of 0.5, 0.45


def test_every_cell_sees_the_same_rows_and_presets_act(tmp_path):
    """`seed=5` is the seed of the rows; the seeds of the sweep are those of training."""
    seen = {}

    class Look(Training):
        def __call__(self, cfg, directory):
            seen[cfg.choices.adapter, cfg.seed] = (cfg.data.seed, cfg.backbone.pretrained)
            return super().__call__(cfg, directory)

    start(tmp_path, Look(), "sweep.methods=[lora,scratch]", "seed=5")
    rows, all_seeds = {5}, {(m, s) for m in ("lora", "scratch") for s in (0, 1)}
    assert set(seen) == all_seeds and {seed for seed, _ in seen.values()} == rows
    assert seen["scratch", 0][1] is False and seen["lora", 0][1] is True


@pytest.mark.parametrize(
    "more, where",
    [
        (["sweep.lr=[]"], "sweep.lr"),
        (["sweep.seeds=[1,1]"], "sweep.seeds"),
        (["sweep.tune_seeds=3"], "sweep.tune_seeds"),
        (["adapter.rank=4"], "adapter=none: adapter.rank"),
        (["trainer.max_stesp=4"], "adapter=lora: trainer.max_stesp"),
    ],
)
def test_faults_are_found_before_anything_runs(tmp_path, more, where):
    fit = Training()
    with pytest.raises(ConfigError) as caught:
        start(tmp_path / "new", fit, *more)
    assert where in [problem.where for problem in caught.value.problems]
    assert fit.ran == [] and not (tmp_path / "new").exists()
