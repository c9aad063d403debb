"""
Front ends: from waveforms to the spectrograms that each network was trained on.

Networks differ in sampling rate, window, mel scale and logarithm, and a wrong front end changes every figure. The
functions take mono waveforms `[samples]`, which [`prepare`] returns.
"""

import torch
import torch.nn.functional as F
from torchaudio.compliance.kaldi import fbank, get_mel_banks
from torchaudio.functional import melscale_fbanks, resample

SYNCHFORMER_SEGMENT = 10_240
SYNCHFORMER_HOP = 5_120


def prepare(waveform: torch.Tensor, sampling_rate: int, new_rate: int, remove_mean: bool = True) -> torch.Tensor:
    """
    Mix to mono, remove the mean and resample, as av-benchmark and audioldm_eval do before every network.

    Args:
        waveform: float32 `[channels, samples]`.
        sampling_rate: Rate of the waveform in Hz.
        new_rate: Rate of the network in Hz.
        remove_mean: Whether to subtract the mean (at the file's own rate).

    Returns:
        float32 `[samples]`.
    """
    mono = waveform.mean(dim=0)
    if remove_mean:
        mono = mono - mono.mean()
    return mono if sampling_rate == new_rate else resample(mono, sampling_rate, new_rate)


def vggish_mel(waveform: torch.Tensor) -> torch.Tensor:
    """
    Return patches `[patches, 96, 64]` of 0.96 s of a waveform at 16 kHz: `ln(magnitude mel + 0.01)`, without centring and
    overlap. An incomplete last patch is dropped.
    """
    frames = waveform.unfold(0, 400, 160) * torch.hann_window(400, device=waveform.device)
    magnitudes = torch.fft.rfft(frames, n=512).abs()
    banks, _ = get_mel_banks(64, 512, 16_000.0, 125.0, 7500.0, 100.0, -500.0, 1.0)
    mel = magnitudes @ F.pad(banks, (0, 1)).T.to(magnitudes)
    mel = (mel + 0.01).log()
    return mel[: len(mel) // 96 * 96].unflatten(0, (-1, 96))


def cnn14_mel(waveform: torch.Tensor, sampling_rate: int) -> torch.Tensor:
    """Return the mel spectrogram `[frames, 64]` in dB (floor -100) of a waveform at 16 or 32 kHz."""
    n_fft = 512 if sampling_rate == 16_000 else 1024
    f_max = 8000.0 if sampling_rate == 16_000 else 14_000.0
    power = _power_spectrogram(waveform, n_fft, sampling_rate // 100)
    banks = melscale_fbanks(n_fft // 2 + 1, 50.0, f_max, 64, sampling_rate, norm="slaney", mel_scale="slaney")
    return 10 * (power.T @ banks.to(power)).clamp(min=1e-10).log10()


def passt_mel(waveform: torch.Tensor) -> torch.Tensor:
    """
    Return the log-mel spectrogram `[128, frames]` of a waveform at 32 kHz, scaled to about unit variance. The network was
    trained with mel bands up to 15 kHz.
    """
    emphasised = waveform[1:] - 0.97 * waveform[:-1]
    power = _power_spectrogram(emphasised, 1024, 320, torch.hann_window(800, periodic=False, device=waveform.device))
    banks, _ = get_mel_banks(128, 1024, 32_000.0, 0.0, 15_000.0, 100.0, -500.0, 1.0)
    mel = F.pad(banks, (0, 1)).to(power) @ power
    return ((mel + 1e-5).log() + 4.5) / 5


def synchformer_mel(waveform: torch.Tensor) -> torch.Tensor:
    """
    Return mel spectrograms `[segments, 128, 66]` of a waveform at 16 kHz whose mean was not removed. Segments last 0.64 s
    and start every 0.32 s.
    """
    segments = waveform.unfold(0, SYNCHFORMER_SEGMENT, SYNCHFORMER_HOP)
    power = _power_spectrogram(segments, 1024, 160, torch.hann_window(400, device=waveform.device))
    banks = melscale_fbanks(513, 0.0, 8000.0, 128, 16_000, norm=None, mel_scale="htk")
    mel = (banks.T.to(power) @ power + 1e-6).log()
    return (F.pad(mel, (0, 66 - mel.shape[-1])) + 4.2677393) / (2 * 4.5689974)


def imagebind_mel(waveform: torch.Tensor) -> torch.Tensor:
    """Return the normalised Kaldi filter bank `[128, 204]` of a clip of 2 s at 16 kHz. Short clips are padded."""
    bank = fbank(
        waveform[None] - waveform.mean(),
        htk_compat=True,
        sample_frequency=16_000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=128,
        dither=0.0,
        frame_length=25,
        frame_shift=10,
    )
    return (F.pad(bank.T, (0, 204 - len(bank)))[:, :204] + 4.268) / 9.138


def _power_spectrogram(
    waveform: torch.Tensor, n_fft: int, hop_length: int, window: torch.Tensor | None = None
) -> torch.Tensor:
    """`[..., n_fft // 2 + 1, frames]`, centred, with reflection at the ends."""
    if window is None:
        window = torch.hann_window(n_fft, device=waveform.device)
    spectrum = torch.stft(
        waveform, n_fft, hop_length, win_length=len(window), window=window, center=True, return_complex=True
    )
    return spectrum.real**2 + spectrum.imag**2
