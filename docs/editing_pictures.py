"""
Draw the pictures of docs/editing.md: spectrograms of sounds before and after edits.

    python -m audiox_diffusers.scenes clips --count 300 --seconds 2
    python -c "from audiox_diffusers.testing import create_small_pipeline as create; create().save_pretrained('small')"
    accelerate launch --cpu training/train_audiox.py --pretrained_model_name_or_path small --dataset clips \
      --output_dir trained --train_batch_size 16 --learning_rate 1e-3 --lr_scheduler constant \
      --max_train_steps 2000 --cache_latents cache
    python docs/editing_pictures.py --model trained --output docs/pictures

In a quarter of an hour on two CPU cores the small model learns little about prompts. The pictures show what an edit changes
and what it keeps, not how AudioX sounds.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from audiox_diffusers import AudioXDPMSolverSDEScheduler, AudioXInpaintPipeline, AudioXPipeline
from audiox_diffusers.media import resample_audio, spectrogram_picture
from audiox_diffusers.scenes import Event, Scene

STEPS = 100
GUIDANCE = 4.0
WHITE = (255, 255, 255)


def bells(rate: int) -> tuple[torch.Tensor, int]:
    """Render four seconds of bell strikes and beeps."""
    events = [Event("bell", 0.2, 1.0), Event("beep", 1.4, 0.25), Event("bell", 2.0, 1.0), Event("beep", 3.2, 0.25)]
    scene = torch.from_numpy(Scene(events, seconds=4.0, seed=0).audio(2 * rate))
    return resample_audio(scene, 2 * rate, rate), rate


def row(
    label: str, waveform: torch.Tensor | np.ndarray, rate: int, seconds: float, start: float = 0.0, marks: tuple = ()
) -> Image:
    """Draw a labelled spectrogram on an axis of `seconds`, with dotted lines at some times."""
    scale = 900 / seconds
    picture = spectrogram_picture(waveform, rate)
    picture = picture.resize((round(waveform.shape[-1] / rate * scale), 128), Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (900, 148), WHITE)
    canvas.paste(picture, (round(start * scale), 20))
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 4), label, fill=(0, 0, 0))
    for mark in marks:
        for y in range(20, 148, 8):
            draw.line([(mark * scale, y), (mark * scale, y + 4)], fill=WHITE)
    return canvas


def save(path: Path, *rows: Image.Image) -> None:
    """Save pictures below each other."""
    canvas = Image.new("RGB", (900, sum(row.height + 6 for row in rows) - 6), WHITE)
    top = 0
    for picture in rows:
        canvas.paste(picture, (0, top))
        top += picture.height + 6
    canvas.quantize(64).save(path, optimize=True)
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/editing.md.")
    parser.add_argument("--model", required=True, metavar="FOLDER", help="trained small model")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="where to save the pictures")
    args = parser.parse_args()
    args.output.mkdir(exist_ok=True)
    pipe = AudioXPipeline.from_pretrained(args.model)
    pipe.scheduler = AudioXDPMSolverSDEScheduler.from_config(pipe.scheduler.config, sigma_min=0.03)
    pipe.set_progress_bar_config(disable=True)
    edit = AudioXInpaintPipeline.from_pipe(pipe)
    edit.set_progress_bar_config(disable=True)
    rate = pipe.vae.config.sampling_rate
    sound = bells(rate)
    before = sound[0]

    def run(**kwargs):
        generator = torch.Generator().manual_seed(0)
        return edit(
            audio=sound, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator, **kwargs
        ).audios[0]

    after = run(prompt="a bird singing", inpaint_spans=[(1.2, 2.0)])
    marks = (1.2, 2.0)
    rows = [
        row("before", before, rate, 4, marks=marks),
        row('"a bird singing", 1.2 to 2 s', after, rate, 4, marks=marks),
    ]
    save(args.output / "inpainting.png", *rows)

    after, lead = run(prompt="rain", extend_by_s=3.0), run(prompt="rain", extend_by_s=-3.0)
    rows = [
        row("before", before, rate, 10, 3, marks=(3, 7)),
        row('"rain", 3 s after it', after, rate, 10, 3, marks=(3, 7)),
        row('"rain", 3 s before it', lead, rate, 10, 0, marks=(3, 7)),
    ]
    save(args.output / "completion.png", *rows)

    rows = [row("before", before, rate, 4)]
    for strength in (0.3, 0.6, 0.9):
        after = run(prompt="bell strikes", strength=strength)
        rows.append(row(f'"bell strikes", strength {strength:g}', after, rate, 4))
    save(args.output / "variation.png", *rows)

    timed = [(0, 5, "rain"), (5, 10, "a siren")]
    generator = torch.Generator().manual_seed(0)
    after = pipe(prompt=timed, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator).audios[0]
    save(
        args.output / "length.png",
        row('"rain" to 5 s, "a siren" after it, in windows of 2 s', after, rate, 10, 0, (5,)),
    )


if __name__ == "__main__":
    main()
