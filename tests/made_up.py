"""A made-up sweep whose law is known: L = 0.9 + 18 N^-0.25 nats per byte, with noise of known size.

folder = made_up.sweep(tmp_path / "runs")    # runs/toy, as experiments/sweep.py leaves it
"""

import math
import pathlib

import numpy as np

from lm import config, laws, records

FLOOR, SCALE, EXPONENT = 0.9, 18.0, 0.25
SIZES = {
    "30K": 31_000, "60K": 63_000, "120K": 124_000, "300K": 305_000, "700K": 690_000,
    "1.6M": 1_610_000,
}  # fmt: skip
TARGET = "1.6M"  # predicted from the others
BATCH_TOKENS, FLOPS_PER_SECOND = 2048, 6e10


def loss(n_params: float) -> float:
    return FLOOR + SCALE * n_params**-EXPONENT


def sweep(root, name="toy", noise=0.002, status=None, missing=(), predict=True, miss=0.0):
    """Writes the sweep and returns its folder, a pathlib.Path.

    status: {size: (status, reason)} of runs that are not done; missing: sizes that never started;
    miss: share by which the target's loss lies above its law.
    """
    folder = pathlib.Path(root) / name
    for size in SIZES:
        if size not in missing:
            shift = miss if size == TARGET else 0.0
            run(folder, size, *(status or {}).get(size, ("done", "")), noise=noise, shift=shift)
    path = f"configs/sweeps/{name}.py"
    facts = {
        "sweep": path,
        "runs": [f"{name}/{size}" for size in SIZES],
        "command": f"python -m experiments.sweep --sweep={path}",
        "created": "2026-01-02T03:04:05+00:00",
    }
    records.write_json(folder / "sweep.json", facts)
    records.write_json(folder / "plan.json", {"runs": [plan(name, size) for size in SIZES]})
    if predict:
        records.write_json(folder / "prediction.json", prediction(folder))
    return folder


def prediction(folder) -> dict:
    """What is written before the target starts."""
    rows = [row for row in records.rows(folder) if not row["name"].endswith(TARGET)]
    said = {
        "target": f"{folder.name}/{TARGET}",
        "x": "params.non_embedding",
        "y": "eval.loss",
        "params.non_embedding": SIZES[TARGET],
        "runs": [f"{folder.name}/{size}" for size in SIZES if size != TARGET],
        "written": "2026-01-02T04:00:00+00:00",
    }
    try:
        fit = laws.power(rows)
    except ValueError as refusal:
        return said | {"refused": str(refusal)}
    guess = fit.predict(SIZES[TARGET])
    said |= {"value": guess.value, "lo": guess.lo, "hi": guess.hi, "level": guess.level}
    return said | {"fit": fit.to_dict()}


def run(folder, size, status="done", reason="", noise=0.002, shift=0.0):
    """One run directory: config, facts, metrics, and evaluations if it is done."""
    n, where, name = SIZES[size], folder / size, f"{folder.name}/{size}"
    rng, planned = np.random.default_rng(n), plan(folder.name, size)
    final = loss(n) * (1 + noise * rng.standard_normal() + shift)
    steps = planned["tokens"] // BATCH_TOKENS
    knobs = config.Run(name=name, dir=str(folder.parent), steps=steps, predict=size == TARGET)
    knobs.model = model(n)
    records.write_json(where / "config.json", config.to_dict(knobs))
    steps = steps if status == "done" else steps // 2
    for step in np.unique(np.geomspace(1, steps, 120).astype(int)):
        seen = int(step) * BATCH_TOKENS
        left = (1 + seen / 3e3) ** -0.4 * (1 - 0.8 * seen / planned["tokens"])
        line = metrics_line(int(step), n, final + (5.0 - final) * left)
        records.append(where / "metrics.jsonl", line)
    facts = {
        "params.total": planned["params_total"],
        "params.non_embedding": n,
        "params.embedding": planned["params_total"] - n,
        "tokens": planned["tokens"],
        "flops": planned["flops"],
        "corpus.hash": "0123456789abcdef",
        "devices": 2,
        "devices.kind": "cpu",
        "versions.jax": "0.0.1",
        "versions.python": "3.11.7",
    }
    if status == "done":
        facts["seconds"] = took = 6.4 * n * planned["tokens"] / FLOPS_PER_SECOND
        facts |= {"clock.steps": 0.99 * took, "clock.input": 0.01 * took, "clock.compile": 5.0}
        facts |= {"clock.evaluate": 3.0, "clock.save": 1.0, "clock.goodput": took / (took + 9)}
        records.append(where / "evals.jsonl", evals_line(steps, final))
    records.write_facts(where, status=status, reason=reason, **facts)


def metrics_line(step: int, n: int, value: float) -> dict:
    noise = 0.01 * np.random.default_rng((n, step)).standard_normal()
    flops = 6.4 * n * step * BATCH_TOKENS
    return {
        "attempt": 1,
        "step": step,
        "tokens": step * BATCH_TOKENS,
        "flops": flops,
        "loss": value + noise,
        "grad_norm": 1.0,
        "lr": 3e-3,
        "tokens_per_second": FLOPS_PER_SECOND / 6.4 / n,
        "flops_per_second": FLOPS_PER_SECOND,
        "peak_share": 0.4,
        "epoch": step * BATCH_TOKENS / 3e7,
        "seconds": flops / FLOPS_PER_SECOND,
    }


def evals_line(step: int, final: float) -> dict:
    share = 1 / (1 + math.exp(3.2 * (final - 1.6)))
    return {
        "attempt": 1,
        "step": step,
        "loss": final,
        "loss_se": 0.006,
        "loss.code": 0.93 * final,
        "loss_se.code": 0.009,
        "loss.docs": 1.07 * final,
        "loss_se.docs": 0.008,
        "bits_per_byte": final / math.log(2),
        "bits_per_byte_se": 0.006 / math.log(2),
        "completion": share,
        "completion_se": math.sqrt(share * (1 - share) / 1024),
        "completion_n": 1024,
        **task_columns(share),
    }


TASKS = {"copy?length=4": (1.0, 1 / 24), "sort?length=3": (0.6, 1 / 6), "modular": (0.0, 1 / 7)}


def task_columns(share: float) -> dict:
    """What three tasks give: one grows with the share of words completed, one half so, one not."""
    found = {}
    for task, (pull, chance) in TASKS.items():
        accuracy = chance + (1 - chance) * min(1.0, 2.5 * pull * share)
        p = accuracy**0.25
        values = {"accuracy": accuracy, "exact": accuracy, "token_probability": p, "p_right": p**4}
        values["bits_per_byte"] = -math.log2(p)
        found |= {f"task.{task}.{name}": value for name, value in values.items()}
        found |= {f"task.{task}.n": 100, f"task.{task}.chance": chance, f"task.{task}.tokens": 4.0}
        for name in ("accuracy", "exact"):
            found[f"task_se.{task}.{name}"] = math.sqrt(accuracy * (1 - accuracy) / 100)
    return found


def plan(name, size) -> dict:
    """What a plan would have said of a run: a fifth too few seconds."""
    n, tokens = SIZES[size], 20 * SIZES[size] // BATCH_TOKENS * BATCH_TOKENS
    return {
        "name": f"{name}/{size}",
        "params_total": n + 512 * model(n).d_model,
        "params_non_embedding": n,
        "tokens": tokens,
        "flops": 6.4 * n * tokens,
        "seconds": 0.8 * 6.4 * n * tokens / FLOPS_PER_SECOND,
    }


def model(n_params: int) -> config.Model:
    width = int(math.sqrt(n_params / 24)) // 8 * 8
    heads = width // 8
    return config.Model(d_model=width, n_heads=heads, n_kv_heads=heads, d_head=8, d_ff=3 * width)


def tuned(root) -> None:
    """Three sweeps below `root`, whose laws are known.

    transfer: D_E = D_F + 3000, and .4 nats of docs are forgotten. specialists: from scratch it
    takes 3 times the FLOPs of tuning. unseen: (0, .2, .8) of the tasks are right after 0, 2 and 4
    clusters, half as many in the smaller size, a quarter of those of the cluster left out.
    """
    for size in (2_000, 8_000, 32_000):
        parent = config.Run(name=f"transfer/{size}-docs", dir=str(root))
        parent.data.sources = {"docs": 1.0}
        _tuned_run(root, parent, size, {"loss": 1.5, "loss.docs": 1.5})
        for tokens in (8_192, 32_768, 131_072):
            for way, worth in (("scratch", tokens), ("tuned", 1.5 * tokens + 3000)):
                run = config.Run(name=f"transfer/{size}-{tokens}-{way}", dir=str(root))
                run.data.unique_tokens = tokens
                run.start.run = parent.name if way == "tuned" else ""
                final = 1.0 + 20 * size**-0.4 + 60 * worth**-0.4
                _tuned_run(root, run, size, {"loss": final, "loss_se": 0.02, "loss.docs": 1.9})
        for n in (100, 1000):
            for way, step in (("tuned", 10), ("alone", 30)):
                run = config.Run(name=f"specialists/{size}-{n}-{way}", dir=str(root), steps=step)
                run.data.sources, run.data.score = {f"chat:sums.jsonl?cap={n}": 1.0}, "answers"
                run.start.run = "specialists/parent" if way == "tuned" else ""
                row = {f"task.file:sums.{name}": 3.0 / n for name in ("bits_per_byte", "accuracy")}
                _tuned_run(root, run, size, {"loss": 1.0} | row)
    held = {"apply?order=1&spelling=1": True, "apply?order=2&spelling=3": False}
    cluster = "apply?order=3&spelling=1"
    for size in (2_000, 8_000):
        for name, n, share in (("0", 0, 0.0), ("2", 2, 0.2), ("4", 4, 0.8), ("without", 3, 0.2)):
            run = config.Run(name=f"unseen/{size}-{name}", dir=str(root))
            run.start.run = f"unseen/{size}-0" if n else ""
            learned = ["copy?length=2"] * max(n, 1)
            learned[-1] = f"{cluster}&template=chat" if name in "24" else learned[-1]
            run.data.sources = {"tasks:" + "+".join(learned): 1.0}
            run.data.unseen = ",".join(task for task, is_new in held.items() if n or is_new)
            asked = {"without": [cluster], "0": held}.get(name, [*held, cluster])
            row = {"loss": 1.0}
            for task in asked:
                task = f"{task}&template=chat"
                row |= {f"task.{task}.accuracy": share * (1 if size > 2000 else 0.5)}
                row |= {f"task_se.{task}.accuracy": 0.03, f"task.{task}.n": 100}
            _tuned_run(root, run, size, row)


def rates(root) -> pathlib.Path:
    """A sweep of learning rates whose best is 2^-5 at the base shape and where models transfer.

    Under the standard parametrization it halves for twice the width, and falls by a root for depth.
    """
    shapes = {"standard": [(16, 2), (32, 2), (64, 2), (16, 4), (16, 8)]}
    shapes |= {"mup": [(32, 2), (64, 2)], "completep": [(16, 4), (16, 8)]}
    rng = np.random.default_rng(0)
    for rule, width, depth in [(of, *shape) for of, all_of in shapes.items() for shape in all_of]:
        for power in range(3, 9):
            run = config.Run(name=f"lr_transfer/{rule}-{width}x{depth}-{power}", dir=str(root))
            run.model = model(24 * width**2)
            run.model.d_model, run.model.n_layers, run.model.parametrization = width, depth, rule
            run.model.base_width, run.model.base_depth, run.optim.lr = 16, 2, 2.0**-power
            moved = math.log2(width / 16) + math.log2(depth / 2) / 2
            best = -5 - moved * (rule == "standard")
            bend = 0.02 * (-power - best) ** 2 + 0.003 * rng.standard_normal()
            final = 2.5 * (width / 16) ** -0.1 * math.exp(bend)
            row = {"loss": final, "loss_se": 0.006}
            _tuned_run(root, run, 12 * depth * width**2, row, tokens=200_000)
    return pathlib.Path(root) / "lr_transfer"


def isoflop(root) -> pathlib.Path:
    """Six sizes at four budgets, whose best is N = .1 C^.5 exactly but for noise of .002."""
    rng = np.random.default_rng(0)
    for flops in (1e11, 2e11, 4e11, 8e11):
        best = 0.1 * flops**0.5
        for times in (0.25, 0.5, 0.8, 1.25, 2.0, 4.0):
            size = round(best * times)
            run = config.Run(name=f"isoflop/{flops:.0e}-{size}".replace("+", ""), dir=str(root))
            log_loss = 0.03 * math.log(times) ** 2 + 0.002 * rng.standard_normal()
            row = {"loss": 3.0 * (flops / 1e11) ** -0.1 * math.exp(log_loss), "loss_se": 0.006}
            spent = {"flops": flops, "tokens": flops / 6 / size, "params.total": size + 4000}
            _tuned_run(root, run, size, row, **spent)
    return pathlib.Path(root) / "isoflop"


def _tuned_run(root, run: config.Run, size: int, row: dict, **spent: float) -> None:
    where = pathlib.Path(root) / run.name
    records.write_json(where / "config.json", config.to_dict(run))
    facts = {"params.non_embedding": size, "unique_tokens": run.data.unique_tokens}
    facts |= {f"rows.n_documents.{source}": 100 for source in run.data.sources}
    facts |= spent
    records.write_facts(where, status="done", reason="", **facts, **{"flops_per_token.full": 6e4})
    step = run.steps if run.steps < 100 else 10
    records.append(where / "evals.jsonl", {"attempt": 1, "step": step} | row)
