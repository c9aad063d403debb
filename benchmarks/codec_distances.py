"""
Distances between sounds and their reconstruction by VAEs, MP3 and Opus.

    python benchmarks/codec_distances.py --vae audiox-tiny FOLDER --sounds NAME=FOLDER [NAME=FOLDER ...]

Each `--sounds` is a folder of sounds that no VAE was trained on. `--every 10` takes one of ten, as VAE training holds out
recordings. Each clip is at most four seconds long. The columns are:

- log-mel: `audiox_diffusers.media.log_mel_distance`, with its floor of -60 dB. Lower is better.
- STFT: the multi-resolution STFT distance of Yamamoto, Song and Kim, "Parallel WaveGAN", 2020, also with a floor of
  -60 dB. Lower is better.
- SI-SDR: the scale-invariant signal-to-distortion ratio of Le Roux et al., "SDR - half-baked or well done?", 2019, in dB.
  Higher is better. It compares waveforms, so sounds with other phases have low values. The median over the clips.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from common import create_parser

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.media import load_audio, log_mel_distance, save_audio
from audiox_diffusers.models import AudioXAutoencoderOobleck
from audiox_diffusers.tables import markdown_table
from audiox_diffusers.training.vae.loss import LONGEST_WINDOW, spectral_loss

SECONDS = 4.0
LOSSY = {
    "MP3, 64 kbit/s": (".mp3", 64_000),
    "MP3, 32 kbit/s": (".mp3", 32_000),
    "Opus, 64 kbit/s": (".opus", 64_000),
    "Opus, 32 kbit/s": (".opus", 32_000),
}
Codec = Callable[[np.ndarray], np.ndarray]


def load_vae(name: str) -> AudioXAutoencoderOobleck:
    """Load the VAE of a pipeline, or a VAE alone, in float32."""
    if (Path(name) / "config.json").is_file():
        return AudioXAutoencoderOobleck.from_pretrained(name, torch_dtype=torch.float32)
    return AudioXPipeline.from_pretrained(name).vae.float()


def lossy(suffix: str, bit_rate: int, sampling_rate: int) -> Codec:
    """Return a function that encodes a mono sound to a file and decodes it."""

    def round_trip(sound: np.ndarray) -> np.ndarray:
        with TemporaryDirectory() as folder:
            file = Path(folder, f"sound{suffix}")
            save_audio(file, sound.clip(-1, 1), sampling_rate, bit_rate=bit_rate)
            decoded = load_audio(file, sampling_rate, channels=1)[0].numpy()[:, : sound.shape[1]]
        return np.pad(decoded, ((0, 0), (0, sound.shape[1] - decoded.shape[1])))

    return round_trip


def si_sdr(reference: np.ndarray, estimate: np.ndarray) -> float:
    """Return the scale-invariant signal-to-distortion ratio of a sound in dB."""
    reference, estimate = reference.ravel(), estimate.ravel()
    signal = (reference @ estimate) / max(reference @ reference, 1e-12) * reference
    noise = estimate - signal
    return 10 * float(np.log10(max(signal @ signal, 1e-12) / max(noise @ noise, 1e-12)))


def distances(codec: Codec, clips: list[np.ndarray], sampling_rate: int) -> list[float]:
    rows = []
    for clip in clips:
        result = codec(clip)
        stft = spectral_loss(torch.from_numpy(result), torch.from_numpy(clip)).item()
        rows.append((log_mel_distance(clip, result, sampling_rate), stft, si_sdr(clip, result)))
    log_mel, stft, sdr = zip(*rows, strict=True)
    return [float(np.mean(log_mel)), float(np.mean(stft)), float(np.median(sdr))]


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--vae", nargs="+", required=True, help="pipelines, or folders of a VAE")
    parser.add_argument("--sounds", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--every", type=int, default=1, help="take one of this many sounds (default: all)")
    parser.add_argument("--count", type=int, default=40, help="maximum number of sounds of each folder (default: 40)")
    args = parser.parse_args()
    vaes = {name: load_vae(name) for name in args.vae}
    (rate,) = {vae.config.sampling_rate for vae in vaes.values()}
    codecs: dict[str, Codec] = {name: lambda clip, vae=vae: reconstruct(vae, clip) for name, vae in vaes.items()}
    codecs |= {name: lossy(*settings, rate) for name, settings in LOSSY.items()}
    rows = []
    for pair in args.sounds:
        kind, folder = pair.split("=", 1)
        files = sorted(file for file in Path(folder).iterdir() if file.suffix in (".wav", ".flac", ".mp4"))
        clips = [load_audio(file, rate, channels=1, duration=SECONDS)[0].numpy() for file in files[:: args.every]]
        clips = [clip for clip in clips if clip.shape[1] > LONGEST_WINDOW][: args.count]
        for name, codec in codecs.items():
            values = distances(codec, clips, rate)
            rows.append((kind, name, *(f"{value:.3f}" for value in values), str(len(clips))))
    print(markdown_table(("sounds", "codec", "log-mel", "STFT", "SI-SDR", "clips"), rows))


if __name__ == "__main__":
    main()
