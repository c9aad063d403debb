"""
Runs of pipelines and of training on the CPU and on the software device.

    python tests/devices/scenarios.py generation|editing|training|distillation|offloading STEPS STEPS

prints, as JSON by scenario, the largest difference between the devices relative to the largest value, and how often the
host waited for the device with each number of steps.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import AdaptiveProjectedGuidance
from peft import LoraConfig
from software_device import DEVICE, waits

from audiox_diffusers import AudioXFlowMatchScheduler, AudioXInpaintPipeline, AudioXPipeline
from audiox_diffusers.scenes import write_scenes
from audiox_diffusers.testing import create_small_pipeline
from audiox_diffusers.training import DistillTraining, FullTraining, LoraTraining, Trainer, parse_args

Scenario = Callable[[torch.device, int], torch.Tensor]
GROUPS: dict[str, dict[str, Scenario]] = {
    "generation": {},
    "editing": {},
    "training": {},
    "distillation": {},
    "offloading": {},
}


def scenario(group: str) -> Callable[[Scenario], Scenario]:
    def add(function: Scenario) -> Scenario:
        GROUPS[group][function.__name__] = function
        return function

    return add


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def open_pipeline(device: torch.device, flow: bool = False) -> AudioXPipeline:
    pipe = create_small_pipeline()
    if flow:
        pipe.register_modules(scheduler=AudioXFlowMatchScheduler())
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def film() -> torch.Tensor:
    return torch.rand(10, 3, 32, 32, generator=seeded(1))


def sound(seconds: float = 2.0) -> tuple[torch.Tensor, int]:
    return torch.randn(1, round(8000 * seconds), generator=seeded(2)) / 5, 8000


def generate(pipe: AudioXPipeline, steps: int, **kwargs) -> torch.Tensor:
    return pipe(num_inference_steps=steps, output_type="pt", generator=seeded(), **kwargs).audios.cpu()


@scenario("generation")
def text(device, steps):
    return generate(open_pipeline(device), steps, prompt="rain", guidance_scale=3.0)


@scenario("generation")
def every_prompt(device, steps):
    pipe = open_pipeline(device, flow=True)
    prompts = {"prompt": "rain", "video": film(), "audio": sound(), "negative_prompt": "wind"}
    return generate(pipe, steps, guidance_scale=3.0, guidance_rescale=0.5, **prompts)


@scenario("generation")
def weights_by_modality(device, steps):
    weights = {"text": 3.0, "video": 5.0}
    return generate(
        open_pipeline(device),
        steps,
        prompt="rain",
        video=film(),
        guidance_scale=weights,
        guidance_interval=(0.1, 0.9),
    )


@scenario("generation")
def guider(device, steps):
    guider = AdaptiveProjectedGuidance(guidance_scale=4.0, adaptive_projected_guidance_momentum=-0.5)
    return generate(open_pipeline(device), steps, prompt="rain", guider=guider)


@scenario("generation")
def windows_and_a_callback(device, steps):
    pipe = open_pipeline(device)

    def change(pipe, step, time, tensors):
        return {"latents": tensors["latents"] * 0.99}

    options = {"audio_length_in_s": 5.0, "window_batch_size": 1, "callback_on_step_end": change}
    return generate(pipe, steps, prompt=[(0, 2, "rain"), (2, 5, "wind")], **options)


@scenario("generation")
def adapter(device, steps):
    pipe = open_pipeline(device)
    with torch.random.fork_rng([]):
        torch.manual_seed(3)
        config = LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v"], init_lora_weights=False)
        pipe.transformer.add_adapter(config)
    pipe.to(device)
    return generate(pipe, steps, prompt="rain", attention_kwargs={"scale": 0.5}, guidance_scale=2.0)


@scenario("generation")
def model_offload(device, steps):
    pipe = create_small_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_model_cpu_offload(device=device)
    return generate(pipe, steps, prompt="rain", guidance_scale=2.0)


def edit(device, steps, **kwargs):
    editor = AudioXInpaintPipeline.from_pipe(open_pipeline(device))
    return generate(editor, steps, prompt="rain", guidance_scale=2.0, audio=sound(), **kwargs)


@scenario("editing")
def inpainting(device, steps):
    return edit(device, steps, inpaint_spans=[(0.5, 1.0)])


@scenario("editing")
def inpainting_with_resampling(device, steps):
    return edit(device, steps, inpaint_spans=[(0.5, 1.0)], num_refinements=2, mask=None)


@scenario("editing")
def extension(device, steps):
    return edit(device, steps, extend_by_s=1.0)


@scenario("editing")
def variation(device, steps):
    return edit(device, steps, strength=0.7)


@scenario("training")
def training(device, steps):
    return train(FullTraining, steps, "--use_ema")


@scenario("training")
def training_with_an_adapter(device, steps):
    return train(LoraTraining, steps, "--validation_steps", "1000")


@scenario("distillation")
def distillation(device, steps):
    return train(DistillTraining, steps, *"--teacher_guidance_scale 3 --num_student_steps 2 --fake_updates 1".split())


@scenario("offloading")
def offloaded_activations_and_averages(device, steps):
    return train(FullTraining, steps, "--activation_offloading", "--use_ema", "--post_hoc_ema", "--ema_device", "cpu")


def train(method: type[FullTraining], steps: int, *options: str) -> torch.Tensor:
    """Return the losses of a run from cached data, on the device that accelerate chooses."""
    folder = Path(tempfile.mkdtemp())
    create_small_pipeline().save_pretrained(folder / "model")
    write_scenes(folder / "scenes", 4, seconds=2.0, fps=10, size=32)
    arguments = {
        "--pretrained_model_name_or_path": folder / "model",
        "--dataset": folder / "scenes",
        "--cache_latents": folder / "cache",
        "--output_dir": folder / "output",
        "--max_train_steps": steps,
        "--train_batch_size": 2,
        "--dataloader_num_workers": 0,
    }
    words = [str(word) for pair in arguments.items() for word in pair]
    trainer = Trainer(parse_args([*words, *options], method), method)
    # The device has no storage that could be written.
    trainer._save_model = lambda: None
    waits.clear()
    trainer.train()
    reports = map(json.loads, (folder / "output" / "log.jsonl").read_text().splitlines())
    shutil.rmtree(folder)
    return torch.tensor([report["loss"] for report in reports])


def main(group: str, steps: list[int]) -> None:
    report = {}
    for name, run in GROUPS[group].items():
        os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
        reset_accelerate()
        expected = run(torch.device("cpu"), steps[-1])
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(DEVICE)
        counts = []
        for count in steps:
            reset_accelerate()
            waits.clear()
            found = run(DEVICE, count)
            counts.append(dict(waits))
        difference = ((found - expected).abs().max() / expected.abs().max()).item()
        report[name] = {"difference": difference, "waits": counts}
    print(json.dumps(report))


def reset_accelerate() -> None:
    for state in (AcceleratorState, PartialState, GradientState):
        state._reset_state()


if __name__ == "__main__":
    main(sys.argv[1], [int(count) for count in sys.argv[2:]])
