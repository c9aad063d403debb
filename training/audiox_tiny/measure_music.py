"""
Measure how well a model follows captions of music.

    python training/audiox_tiny/measure_music.py --model audiox-tiny --count 200

The captions are of phrases that no training data has. A classifier, trained here on real renders of other phrases, hears
the instrument family of a sound and whether its register is low or high. The tempo is the highest peak of the
autocorrelation of the onset strength between 60 and 200 beats per minute. The key is the one of 24 whose profile
(Krumhansl, "Cognitive foundations of musical pitch", 1990) fits the pitch classes best.

The columns are the share that is right: for the model, for the phrases' own renders, for those after the model's VAE, and
by chance. Tempos count as right within 8 %; `tempo or its multiple` also accepts half and twice the tempo.
"""

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from music import FAMILIES, Phrase, Player, random_phrase
from sampling import generate
from torch import nn

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.codec import reconstruct
from audiox_diffusers.bench.features import HOP, RATE, band_levels, preprocess
from audiox_diffusers.tables import markdown_table

TEST_SEED, TRAIN_SEED = 50_000_000, 60_000_000
REGISTERS = ("low", "high")
FLOOR = -50.0  # dB, of the levels that the classifier hears
TOLERANCE = 0.08
PEAKS = 0.03  # of the spectrum's maximum, below which peaks are ignored
MULTIPLES = (0.5, 1, 2)
MAJOR = np.array([6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88])
MINOR = np.array([6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17])


def features(sound: np.ndarray) -> torch.Tensor:
    """Return means, deviations and mean rises of the levels of bands, relative to the loudest, `[192]`."""
    levels = band_levels(sound)
    levels = (levels - levels.max()).clamp(min=FLOOR) / 10
    loud = levels[:, levels.max(0).values > FLOOR / 20]
    rises = levels.diff(dim=1).clamp(min=0).mean(1) * 5
    return torch.cat((loud.mean(1), loud.std(1, correction=0), rises))


class Listener(nn.Module):
    """Classifier of instrument families and registers."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(192, 192), nn.GELU(), nn.Dropout(0.3), nn.Linear(192, 96), nn.GELU())
        self.family = nn.Linear(96, len(FAMILIES))
        self.register_head = nn.Linear(96, len(REGISTERS))

    def forward(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.hidden(values)
        return self.family(hidden), self.register_head(hidden)


def targets_of(phrase: Phrase) -> tuple[int, int]:
    register = REGISTERS.index(phrase.register) if phrase.register else -100
    return FAMILIES.index(phrase.instruments[0].family), register


def train_listener(player: Player, count: int, steps: int = 1500) -> Listener:
    phrases = [random_phrase(TRAIN_SEED + index, held_out=index % 5 == 0) for index in range(count)]
    heard = torch.stack([features(player.play(phrase)[0]) for phrase in phrases])
    families, registers = torch.tensor([targets_of(phrase) for phrase in phrases]).T
    listener = Listener()
    optimizer = torch.optim.AdamW(listener.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(count, (128,))
        family, register = listener(heard[chosen])
        loss = F.cross_entropy(family, families[chosen])
        loss = loss + F.cross_entropy(register, registers[chosen], ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return listener.eval()


def find_tempo(sound: np.ndarray) -> float:
    """Return the tempo in beats per minute, 60 to 200."""
    levels = band_levels(sound).clamp(min=-60)
    rises = levels.diff(dim=1).clamp(min=0).mean(0).numpy()
    rises = rises - rises.mean()
    spectrum = np.abs(np.fft.rfft(rises, 8 * len(rises))) ** 2
    correlation = np.fft.irfft(spectrum)
    tempos = np.arange(60, 200, 0.5)
    lags = 60 / tempos / HOP
    # The mean over the first three multiples of a lag, weighed towards moderate tempos as listeners do.
    values = sum(np.interp(number * lags, np.arange(len(correlation)), correlation) for number in (1, 2, 3))
    weights = np.exp(-0.5 * (np.log2(tempos / 115) / 0.6) ** 2)
    return float(tempos[(values * weights).argmax()])


def find_key(sound: np.ndarray) -> tuple[int, str]:
    """Return tonic and mode."""
    window = np.hanning(4096)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(sound, 2048), 4096)[::1024]
    spectrum = np.abs(np.fft.rfft(frames * window, 8192))
    inner = spectrum[:, 1:-1]
    peaks = (inner > spectrum[:, :-2]) & (inner >= spectrum[:, 2:]) & (inner > PEAKS * spectrum.max())
    levels = np.where(peaks, inner, 0).sum(0)
    frequencies = np.fft.rfftfreq(8192, 1 / RATE)[1:-1]
    used = (frequencies > 60) & (frequencies < 1000)
    classes = np.round(12 * np.log2(frequencies[used] / 440) + 9).astype(int) % 12
    chroma = np.bincount(classes, levels[used], 12)
    profiles = {"major": MAJOR, "minor": MINOR}
    keys = [(tonic, mode) for mode in profiles for tonic in range(12)]
    if not chroma.any():
        return keys[0]
    fits = [np.corrcoef(chroma, np.roll(profiles[mode], tonic))[0, 1] for tonic, mode in keys]
    return keys[int(np.argmax(fits))]


def score(listener: Listener, phrases: list[Phrase], sounds: list[np.ndarray]) -> dict[str, tuple[float, int]]:
    """Return the share of right answers and their number, by question."""
    right: dict[str, list[bool]] = {
        name: [] for name in ("family", "register", "tempo", "tempo or its multiple", "key")
    }
    for phrase, sound in zip(phrases, sounds, strict=True):
        with torch.no_grad():
            family, register = listener(features(sound)[None])
        wanted = targets_of(phrase)
        right["family"].append(int(family.argmax()) == wanted[0])
        if phrase.register:
            right["register"].append(int(register.argmax()) == wanted[1])
        if phrase.tempo:
            ratio = find_tempo(sound) / phrase.tempo
            right["tempo"].append(abs(ratio - 1) <= TOLERANCE)
            right["tempo or its multiple"].append(any(abs(ratio / k - 1) <= TOLERANCE for k in MULTIPLES))
        if phrase.key:
            right["key"].append(find_key(sound) == phrase.key)
    return {name: (float(np.mean(values)), len(values)) for name, values in right.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="audiox-tiny")
    parser.add_argument("--count", type=int, default=200, help="number of captions (default: 200)")
    parser.add_argument("--renders", type=int, default=3000, help="sounds to train the classifier on (default: 3000)")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args()
    torch.manual_seed(0)
    player = Player(RATE)
    listener = train_listener(player, args.renders)
    phrases = [random_phrase(TEST_SEED + index) for index in range(args.count)]
    renders = [player.play(phrase) for phrase in phrases]
    unseen = [random_phrase(TEST_SEED + index, held_out=True) for index in range(args.count)]
    unseen_score = score(listener, unseen, [player.play(phrase)[0] for phrase in unseen])

    pipe = AudioXPipeline.from_pretrained(args.model)
    rate = pipe.vae.config.sampling_rate
    generated = generate(pipe, [phrase.caption for phrase in phrases], phrases[0].seconds, args.batch_size)
    sounds = [preprocess(sound, rate) for sound in generated]
    decoded = [preprocess(reconstruct(pipe.vae.float(), render), rate) for render in renders]
    model, true, through = (
        score(listener, phrases, each) for each in (sounds, [render[0] for render in renders], decoded)
    )
    shuffled = score(listener, phrases, [sounds[(index + 37) % len(sounds)] for index in range(len(sounds))])
    rows = [
        (name, *(f"{column[name][0]:.3f}" for column in (model, true, through, shuffled)), str(model[name][1]))
        for name in model
    ]
    print(markdown_table(("music", "model", "renders", "through the VAE", "other captions", "captions"), rows))
    print(f"instruments that the classifier has not heard: {unseen_score['family'][0]:.3f} of the families")


if __name__ == "__main__":
    main()
