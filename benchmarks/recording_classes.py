"""
Measure whether sounds generated from captions of recordings belong to the right class.

    pip install --no-deps aisfx==0.1.2
    python benchmarks/recording_classes.py sounds --model audiox-tiny

`sounds` is the folder that `training/free_sounds/make_sounds.py` writes. The captions are those of one recording of ten, as
the training of VAEs holds out recordings. A sound belongs to the class of the nearest of the other recordings, by the cosine
of their embeddings. The embeddings are of aiSFX (Ma and Lerch, "Representation learning for the automatic indexing of sound
effects libraries", 2022), less the mean of the other recordings.

The columns are the share that is right: for generated sounds, for generated sounds of other captions, for the recordings with
these captions, and for these recordings after the model's VAE.
"""

import json
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchaudio
from common import create_parser, quiet, seeded

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.media import load_audio
from audiox_diffusers.tables import markdown_table
from audiox_diffusers.training.vae.segments import HELD_OUT

RATE, WINDOW, HOP, BANDS = 44100, 2048, 1024, 96
BLOCK = 100  # spectrogram frames of an embedding
HIGHEST = 9.457798957824707  # value of the spectrograms that the network was trained on
SECONDS = 4.0
# The first pattern that a caption matches is its class.
CLASSES = {
    "kick drum": "kick drum|bass drum",
    "snare drum": "snare",
    "tom drum": "tom drum",
    "cymbal": "cymbal|hi-hat",
    "tabla": "tabla stroke",
    "rhythm": "drum|beat|percussion|shaker|techno",
    "robot": "robot",
    "synthesizer bass": "synthesizer",
    "electronic sound": "electr|glitch|laser|computer|phone|tones|tone spirals",
    "footstep": "footstep|walk",
    "door": "door|gate|chest",
    "person": r"\bsings|choir|\bman\b|woman|baby|burp|slurp|people|voice",
    "animal": r"bird|cat\b|kitten|cricket|crow|dog|duck|goose|horse|sea lion|rooster|wolf|owl",
    "water": "water|bubbles|sauna",
    "fire": "fire|flame|furnace|fuse|gunpowder|burn|lava",
    "stone and wood": "block|axe|shovel|twig|gravel|tool|breaks",
    "bell": r"bell|chime|triangle|gong|xylophone|piano|glass hums|\brings",
    "strings": "guitar|string|tambura|chord",
    "music": "music|pads|drone|trumpet|didgeridoo",
    "machine": r"\bcar\b|motorcycle|cart|printer|sewing|record|whoosh|swoosh|swash",
}


def class_of(caption: str) -> str | None:
    return next((name for name, pattern in CLASSES.items() if re.search(pattern, caption)), None)


class Embedder:
    """Compute embeddings of sounds, `[512]`."""

    def __init__(self):
        try:
            import aisfx
            from aisfx.models.cnn2d import EmbeddingNet
        except ImportError as error:
            raise SystemExit("This benchmark needs aiSFX: pip install --no-deps aisfx==0.1.2") from error
        file = Path(aisfx.__file__).with_name("models") / "checkpoint.pth"
        # The file also holds a NumPy number, which the weights-only unpickler refuses by default.
        scalar = np.float64(0).__reduce__()[0]
        safe = [(scalar, "numpy.core.multiarray.scalar"), np.dtype, type(np.dtype("int64")), type(np.dtype("float64"))]
        with torch.serialization.safe_globals(safe):
            weights, _ = torch.load(file, weights_only=True, map_location="cpu")
        prefix = "embedding_net."
        weights = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        self.network = EmbeddingNet("max", 3, 1, 64).eval()
        self.network.load_state_dict(weights)
        filters = torchaudio.functional.melscale_fbanks(WINDOW // 2 + 1, 0.0, RATE / 2, BANDS, RATE, mel_scale="htk")
        self.filters = filters / filters.sum(0).clamp(min=1e-8)

    @torch.no_grad()
    def __call__(self, sound: np.ndarray, sampling_rate: int) -> torch.Tensor:
        waveform = torchaudio.functional.resample(torch.from_numpy(sound).float().mean(0), sampling_rate, RATE)
        waveform = waveform / waveform.abs().max().clamp(min=1e-6)
        waveform = F.pad(waveform, (0, max(0, BLOCK * HOP - len(waveform))))
        spectrum = torch.stft(waveform, WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
        levels = (spectrum.abs().square().T @ self.filters * 10000 + 1).log10() / HIGHEST
        blocks = levels.unfold(0, BLOCK, BLOCK // 2).transpose(1, 2)
        return self.network(blocks).mean(0)


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("sounds", type=Path, help="folder that make_sounds.py wrote")
    parser.add_argument("--model", nargs="+", default=["audiox-tiny"])
    parser.add_argument("--seeds", type=int, default=1, help="sounds to generate for each caption (default: 1)")
    args = parser.parse_args()
    embed = Embedder()
    rows = [json.loads(line) for line in (args.sounds / "metadata.jsonl").read_text("utf-8").splitlines()]
    known: dict[str, list[torch.Tensor]] = {name: [] for name in CLASSES}
    held_out = []
    for index, row in enumerate(rows):
        name = class_of(row["caption"])
        if name is None:
            continue
        if index % HELD_OUT:
            sound, rate = load_audio(args.sounds / row["file_name"], duration=SECONDS)
            known[name].append(embed(sound.numpy(), rate))
        else:
            held_out.append((name, row))
    mean = torch.stack([each for group in known.values() for each in group]).mean(0)
    centred = {name: F.normalize(torch.stack(group) - mean, dim=1) for name, group in known.items()}

    def heard(sound: np.ndarray, rate: int) -> str:
        direction = F.normalize(embed(sound, rate) - mean, dim=0)
        return max(centred, key=lambda name: float((centred[name] @ direction).max()))

    names = [name for name, _ in held_out]
    files = [load_audio(args.sounds / row["file_name"], duration=SECONDS) for _, row in held_out]
    true = np.mean([heard(sound.numpy(), rate) == name for name, (sound, rate) in zip(names, files, strict=True)])
    table = []
    for model in args.model:
        pipe = quiet(AudioXPipeline.from_pretrained(model))
        rate = pipe.vae.config.sampling_rate
        answers = []
        for seed in range(args.seeds):
            for _, row in held_out:
                result = pipe(row["caption"], audio_length_in_s=SECONDS, generator=seeded([seed]))
                answers.append(heard(result.audios[0], rate))
        wanted = names * args.seeds
        pipe.vae.float()
        coded = []
        for name, row in held_out:
            sound, _ = load_audio(args.sounds / row["file_name"], rate, channels=1, duration=SECONDS)
            coded.append(heard(reconstruct(pipe.vae, sound.numpy()), rate) == name)
        scores = [
            np.mean([answer == name for answer, name in zip(answers, wanted, strict=True)]),
            np.mean([answers[index - 5] == name for index, name in enumerate(wanted)]),
            true,
            np.mean(coded),
        ]
        table.append((model, *(f"{score:.3f}" for score in scores), str(len(wanted))))
    print(
        markdown_table(("recordings", "generated", "other captions", "recordings", "through the VAE", "sounds"), table)
    )
    print(f"{len(CLASSES)} classes, {sum(map(len, known.values()))} recordings to compare with")


if __name__ == "__main__":
    main()
