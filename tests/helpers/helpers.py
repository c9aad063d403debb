"""Checks and inputs that tests share: `from helpers import assert_equal`."""

import contextlib
import importlib.util
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

# Every check of a real number refuses these.
BAD_VALUES = [float("nan"), float("inf"), float("-inf")]


def assert_equal(actual, expected) -> None:
    """Check that tensors or arrays, or dicts or lists of them, are equal to the bit and of the same dtype."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def load_script(path: Path) -> ModuleType:
    """Import a script that is not part of the package."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def refused(*words: object, error: type | tuple[type, ...] = (ValueError, SystemExit)) -> Iterator[SimpleNamespace]:
    """Expect an error that contains all `words`, here `with refused("--rank", 0) as error:`.

    The message of the error is in `error.message` afterwards. If argparse ends the process, it is the last line that
    argparse prints.
    """
    result = SimpleNamespace(message="")
    printed = io.StringIO()
    with pytest.raises(error) as caught, contextlib.redirect_stderr(printed):
        yield result
    result.message = str(caught.value)
    if caught.type is SystemExit and isinstance(caught.value.code, int):
        assert caught.value.code == 2, f"the process ended with {caught.value.code}: {printed.getvalue()}"
        result.message = printed.getvalue().splitlines()[-1]
    missing = [str(word) for word in words if str(word) not in result.message]
    assert not missing, f"{missing} missing in: {result.message}"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    """Return standard normal numbers, the same for the same seed."""
    return torch.randn(shape, generator=seeded(seed))


def tone(
    seconds: float = 1.0, rate: int = 16000, frequency: float | np.ndarray = 440.0, level: float = 0.5
) -> torch.Tensor:
    """Return a sine, shape `(samples,)`. An array of frequencies in Hz, one for each sample, makes a sweep."""
    steps = np.broadcast_to(2 * np.pi * np.asarray(frequency) / rate, round(seconds * rate))
    return torch.from_numpy(level * np.sin(np.cumsum(steps) - steps[:1])).float()


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with a token for each letter, for the small text encoder, which knows 64 tokens."""
    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {
        c: i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz ,.'", 3)
    }
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
