"""`audiox bench`."""

from argparse import Namespace
from pathlib import Path

from ..atomic import replacing
from ..bench import run_bench, run_sweep
from ..generation.loading import check_model, load_pipeline, read_placement
from .quiet import quiet_libraries
from .terminal import log, say

SWEEP_TASKS, SWEEP_SEEDS, SWEEP_COUNT = ["text", "video"], 1, 8
SEEDS, COUNT = 3, 40


def run(args: Namespace) -> int:
    """Run `audiox bench` and return the exit code."""
    tasks = args.tasks or (SWEEP_TASKS if args.sweep else None)
    seeds = args.seeds or (SWEEP_SEEDS if args.sweep else SEEDS)
    count = args.count or (SWEEP_COUNT if args.sweep else COUNT)
    # Scores are compared between machines.
    placement = read_placement(args, precise_on_cpu=True)
    check_model(args.model)

    options = {"seeds": seeds, "count": count, "batch_size": args.batch_size, "sounds": args.sounds, "log": log}
    with quiet_libraries():
        pipe, _ = load_pipeline(args.model, placement)
        pipe.set_progress_bar_config(disable=True)
        if args.sweep:
            report = run_sweep(pipe, tasks, **options)
        else:
            report = run_bench(
                pipe,
                tasks,
                num_inference_steps=args.steps,
                guidance_scale=args.guidance,
                guidance_interval=args.guidance_interval,
                guider=args.guider,
                eta=args.eta,
                clips=args.clips,
                **options,
            )
    print(report.table())
    if args.output is not None:
        output = Path(args.output) / "bench.json"
        output.parent.mkdir(exist_ok=True)
        with replacing(output) as temporary:
            temporary.write_text(report.to_json(), encoding="utf-8")
        say("")
        say(f"wrote {output}")
    return 0
