"""The networks of the metrics, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import torch.nn as nn
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoTokenizer, ClapModel

from ..loaders import convert_synchformer_state_dict
from ..messages import first_line
from .features import file_digest
from .networks.aesthetics import Aesthetics
from .networks.base import AudioNetwork
from .networks.clap import Clap
from .networks.cnn14 import Cnn14
from .networks.onsets import OnsetDetector
from .networks.passt import Passt
from .networks.synchformer import Synchformer
from .networks.vggish import VGGish
from .weights import Weights, read_checkpoint

VGGISH = Weights(
    "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth",
    "sha256:10086976245803799d9194e9a73d9b6c1549c71d1b80106f5cade5608a561f4b",
    "Apache-2.0",
    275,
)
CNN14_16K = Weights(
    "https://zenodo.org/records/3987831/files/Cnn14_16k_mAP=0.438.pth",
    "sha256:e2ee543a27919542c2ea03eabaa70b24dcd4e6c8e05621de6b67a94e4c5058e6",
    "CC-BY-4.0",
    327,
)
CNN14_32K = Weights(
    "https://zenodo.org/records/3987831/files/Cnn14_mAP=0.431.pth",
    "sha256:0dc499e40e9761ef5ea061ffc77697697f277f6a960894903df3ada000e34b31",
    "CC-BY-4.0",
    327,
)
PASST = Weights(
    "https://github.com/kkoutini/PaSST/releases/download/v0.0.1-audioset/passt-s-f128-p16-s10-ap.476-swa.pt",
    "sha256:302903fa8c4aee817b11dc982da0b29aaf8d11a3e722420476d0a12c9db70c2c",
    "Apache-2.0",
    345,
)
SYNCHFORMER = Weights(
    "https://github.com/hkchengrex/MMAudio/releases/download/v0.1/synchformer_state_dict.pth",
    "md5:5b2f5594b0730f70e41e549b7c94390c",
    "MIT",
    907,
)
WEIGHTS_NAMES = ("model.safetensors", "pytorch_model.bin")
CLAP_REPO, CLAP_REVISION = "laion/clap-htsat-unfused", "8fa0f1c6d0433df6e97c127f64b2a1d6c0dcda8a"

# Parts of the audio spectrogram transformer that transformers has renamed.
_AST_NAMES = (
    ("encoder.layer.", "layers."),
    ("attention.attention.query", "attention.q_proj"),
    ("attention.attention.key", "attention.k_proj"),
    ("attention.attention.value", "attention.v_proj"),
    ("attention.output.dense", "attention.o_proj"),
    ("intermediate.dense", "mlp.fc1"),
    ("output.dense", "mlp.fc2"),
)


def vggish_state_dict(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return the weights of [`VGGish`] from the released file."""
    return {name: tensor for name, tensor in checkpoint.items() if name.startswith(("features.", "embeddings."))}


def cnn14_state_dict(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return the weights of [`Cnn14`] from a released file, without its filter bank."""
    weights = checkpoint.get("model", checkpoint)
    return {name: tensor for name, tensor in weights.items() if not name.startswith(("spectrogram_", "logmel_"))}


def passt_state_dict(checkpoint: dict) -> dict[str, torch.Tensor]:
    """Return the weights of [`Passt`] from the released file, without the head for distillation."""
    return {name: tensor for name, tensor in checkpoint.items() if not name.startswith("head_dist.")}


def synchformer_state_dict(checkpoint: dict, visual: bool = True) -> dict[str, torch.Tensor]:
    """
    Return the weights of [`Synchformer`] from the released file, under the names of this package and of transformers.
    Without `visual`, the visual tower is left out.
    """
    weights = {}
    if visual:
        converted = convert_synchformer_state_dict(checkpoint)
        weights = {f"vfeat_extractor.{name}": tensor for name, tensor in converted.items()}
    for name, tensor in checkpoint.items():
        if name.startswith("afeat_extractor."):
            for old, new in _AST_NAMES:
                name = name.replace(old, new)
        if not name.startswith("vfeat_extractor."):
            weights[name] = tensor
    return weights


@dataclass(frozen=True)
class NetworkInput:
    """
    What a network sees of a clip.

    Attributes:
        window: Parts of the clip that it sees.
        sampling_rate: Rate in Hz that clips are resampled to; `None` for their own.
        width: Numbers in an embedding; `None` if it has none.
        removes_mean: Whether the mean is subtracted first.
    """

    window: str
    sampling_rate: int | None
    width: int | None = None
    removes_mean: bool = True


@dataclass(frozen=True)
class Network:
    """
    A network of the catalog.

    Attributes:
        build: Creates the module with random weights.
        weights: The checkpoint file.
        state_dict: Converts the content of the file to weights of the module.
        input: What it sees of a clip.
    """

    build: Callable[[], nn.Module]
    weights: Weights
    state_dict: Callable[[dict], dict[str, torch.Tensor]]
    input: NetworkInput

    @property
    def licence(self) -> str:
        """Licence of the weights."""
        return self.weights.licence

    def identity(self, folder: Path | None) -> str:
        """Return what tells these weights from others, for cache keys and reports: the hash of their file."""
        return self.weights.digest

    def load(self, folder: Path | None, device: torch.device) -> nn.Module:
        """Load the network for inference. For errors see [`Weights.find`] and [`read_checkpoint`]."""
        path = self.weights.find(folder)
        network = self.build()
        try:
            network.load_state_dict(self.state_dict(read_checkpoint(path)))
        except (RuntimeError, AttributeError, KeyError) as error:
            raise ValueError(f"{path.name}: does not fit its network ({first_line(error)})") from None
        return network.eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class ClapNetwork:
    """LAION-CLAP from the Hub, at a fixed revision."""

    repo: str = CLAP_REPO
    revision: str = CLAP_REVISION
    licence: str = "Apache-2.0"
    input: NetworkInput = NetworkInput("first 10 s, shorter clips are repeated", 48_000, 512)

    def identity(self, folder: Path | None) -> str:
        """Return repository and revision, or the hash of the weights in a folder. For errors see [`load`]."""
        return (
            f"{self.repo}@{self.revision}" if folder is None else folder_identity(folder / _name(self.repo), self.repo)
        )

    def load(self, folder: Path | None, device: torch.device) -> AudioNetwork:
        """
        Load the network for inference, from the Hub or from `folder/clap-htsat-unfused`.

        Raises:
            FileNotFoundError: It is not there and cannot be downloaded.
        """
        if folder is None:
            source, options = self.repo, {"revision": self.revision}
        else:
            source, options = folder / _name(self.repo), {}
            folder_identity(source, self.repo)
        try:
            model = ClapModel.from_pretrained(source, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
        except OSError as error:
            raise _unavailable(source, error) from None
        return Clap(model, tokenizer).eval().requires_grad_(False).to(device)


@dataclass(frozen=True)
class AestheticsNetwork:
    """Audiobox Aesthetics from the Hub, through its package."""

    repo: str = "facebook/audiobox-aesthetics"
    licence: str = "CC-BY-4.0"
    input: NetworkInput = NetworkInput("windows of 10 s, weighted by length", 16_000, removes_mean=False)

    def identity(self, folder: Path | None) -> str:
        """Return repository and revision, or the hash of the weights in a folder. For errors see [`load`]."""
        if folder is None:
            return f"{self.repo}@{self._downloaded().name}"
        return folder_identity(folder / _name(self.repo), self.repo)

    def load(self, folder: Path | None, device: torch.device) -> Aesthetics:
        """
        Load the network for inference, from the Hub or from `folder/audiobox-aesthetics`.

        Raises:
            FileNotFoundError: It is not there and cannot be downloaded.
            ValueError: The package is not installed.
        """
        try:
            from audiobox_aesthetics.model.aes import AesMultiOutput
        except ImportError:
            raise ValueError("needs audiobox-aesthetics: pip install audiox-diffusers[evaluate]") from None
        source = self._downloaded() if folder is None else folder / _name(self.repo)
        try:
            model = AesMultiOutput.from_pretrained(str(source))
        except (OSError, HfHubHTTPError) as error:
            raise _unavailable(source, error) from None
        return Aesthetics(model).eval().requires_grad_(False).to(device)

    def _downloaded(self) -> Path:
        """Return the folder of the newest revision, or without a network of the one in the cache."""
        return _download(self.repo)


@cache
def _download(repo: str) -> Path:
    try:
        hf_hub_download(repo, "config.json")
        return Path(hf_hub_download(repo, WEIGHTS_NAMES[0])).parent
    except (OSError, HfHubHTTPError) as error:
        raise _unavailable(repo, error) from None


def folder_identity(folder: Path, repo: str) -> str:
    """Return the name of a folder and the hash of the weights in it; raise `FileNotFoundError` if it has none."""
    path = next((folder / name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder}: has no {WEIGHTS_NAMES[0]}; download {repo} from the Hub into it")
    return f"{folder.name} sha256:{_digest(path)}"


@cache
def _digest(path: Path) -> str:
    return file_digest(path)


def _name(repo: str) -> str:
    return repo.split("/")[1]


def _unavailable(source: str | Path, error: Exception) -> FileNotFoundError:
    if constants.is_offline_mode() and isinstance(source, str):
        return FileNotFoundError(f"{source} is not in the cache and HF_HUB_OFFLINE is set")
    return FileNotFoundError(f"{source} cannot be loaded: {first_line(error)}")


@dataclass(frozen=True)
class Detector:
    """The bench's onset detector, which needs no weights."""

    licence: str = "Apache-2.0"
    input: NetworkInput = NetworkInput("whole clip", None, removes_mean=False)

    def identity(self, folder: Path | None) -> str:
        """Return the version of the detector, which has no weights."""
        return "of the bench, version 1"

    def load(self, folder: Path | None, device: torch.device) -> OnsetDetector:
        """Return the detector."""
        return OnsetDetector()


CNN14_WINDOW = "whole clip, padded with silence to 2 s"

NETWORKS: dict[str, Network | ClapNetwork | AestheticsNetwork | Detector] = {
    "vggish": Network(
        VGGish,
        VGGISH,
        vggish_state_dict,
        NetworkInput("patches of 0.96 s without the incomplete last one", 16_000, 128),
    ),
    "cnn14-16k": Network(lambda: Cnn14(16_000), CNN14_16K, cnn14_state_dict, NetworkInput(CNN14_WINDOW, 16_000, 2048)),
    "cnn14-32k": Network(lambda: Cnn14(32_000), CNN14_32K, cnn14_state_dict, NetworkInput(CNN14_WINDOW, 32_000, 2048)),
    "passt": Network(
        Passt, PASST, passt_state_dict, NetworkInput("first 10 s, shorter clips are padded with silence", 32_000, 768)
    ),
    "clap": ClapNetwork(),
    "aesthetics": AestheticsNetwork(),
    "synchformer": Network(
        Synchformer,
        SYNCHFORMER,
        synchformer_state_dict,
        NetworkInput("first and last 4.8 s, with the video at 25 frames a second", 16_000, removes_mean=False),
    ),
    "onsets": Detector(),
}
