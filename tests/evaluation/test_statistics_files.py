"""Statistics of a set in .npz files, our own and those of other tools."""

import json

import numpy as np
import pytest
import torch
from helpers import tone
from small_networks import SmallNetwork

from audiox_diffusers.cli import main
from audiox_diffusers.evaluation import catalog
from audiox_diffusers.evaluation.statistics import GaussianStatistics, frechet_distance
from audiox_diffusers.evaluation.statistics_files import (
    Origin,
    known_count,
    load_origin,
    load_statistics,
    save_statistics,
)
from audiox_diffusers.media import save_audio

WIDTH = 12


@pytest.fixture
def sounds(tmp_path, monkeypatch):
    """Folders `generated` and `real` in the current directory, and small networks."""
    for name in set(catalog.NETWORKS) - {"onsets"}:
        monkeypatch.setitem(catalog.NETWORKS, name, SmallNetwork(name))
    monkeypatch.chdir(tmp_path)
    for folder, level in (("generated", 0.2), ("real", 0.5)):
        (tmp_path / folder).mkdir()
        for number in range(3):
            save_audio(f"{folder}/{number}.wav", tone(frequency=300.0 * (number + 1), level=level)[None], 16_000)
    return tmp_path


def evaluate(*words: object) -> int:
    return main(["evaluate", "generated", "--cache", "cache", *map(str, words)])


def gaussian(width: int = WIDTH) -> GaussianStatistics:
    return GaussianStatistics.of(np.random.default_rng(0).normal(size=(40, width)))


def report(path: str = "out.json") -> dict:
    return json.loads(open(path).read())


def statistics_of_fadtk(embeddings: np.ndarray) -> GaussianStatistics:
    """Embeddings are stored as float16, eight a file, and the mean of each file is rounded to float16."""
    whole = GaussianStatistics.empty(embeddings.shape[1])
    for file in np.split(embeddings.astype(np.float16), len(embeddings) // 8):
        whole.merge(GaussianStatistics(8, file.mean(axis=0).astype(np.float64), 7 * np.cov(file.astype(float).T)))
    return whole


def test_a_file_of_fadtk_gives_its_distance(golden, values, tmp_path):
    """fadtk computed mean and covariance of the golden, and publishes such files with one pair for each model."""
    path = tmp_path / "fma_pop.npz"
    arrays = {"vggish.mu": golden["fadtk.mu_gen"].numpy(), "vggish.cov": golden["fadtk.cov_gen"].numpy()}
    np.savez(path, **arrays, **{"encodec-emb.mu": np.zeros(3), "encodec-emb.cov": np.eye(3)})
    loaded = load_statistics(path, "vggish")
    reference = statistics_of_fadtk(golden["embeddings.ref"].numpy())
    mine = statistics_of_fadtk(golden["embeddings.gen"].numpy())
    np.testing.assert_allclose(loaded.covariance, mine.covariance, rtol=1e-9, atol=1e-12)
    assert frechet_distance(loaded, reference) == pytest.approx(values["frechet.fadtk_files"]["fadtk"], rel=1e-6)
    assert known_count(loaded) is None and load_origin(path, "vggish") is None


@pytest.mark.parametrize("names", [("vggish.mu", "vggish.cov"), ("mu", "cov"), ("mu_ref", "sigma_ref")])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_files_of_other_tools_are_references(sounds, names, dtype):
    statistics = gaussian()
    np.savez("theirs.npz", **dict(zip(names, (statistics.mean.astype(dtype), statistics.covariance.astype(dtype)))))
    assert evaluate("--reference", "theirs.npz", "--metrics", "fad", "--output", "out.json") == 0
    (figure,) = report()["figures"]
    assert figure["value"] > 0
    assert figure["details"]["reference_embeddings"] is None  # these files do not say


def test_our_files_have_the_names_of_fadtk_and_no_objects(sounds):
    assert evaluate("--save-statistics", "ours.npz", "--metrics", "fad", "fd") == 0
    with np.load("ours.npz", allow_pickle=False) as arrays:
        assert {"vggish.mu", "vggish.cov", "cnn14-16k.mu", "cnn14-16k.cov"} < set(arrays)
        assert arrays["vggish.mu"].shape == (WIDTH,) and arrays["vggish.cov"].shape == (WIDTH, WIDTH)
        assert arrays["vggish.n"] == 6
        assert not [name for name in arrays if arrays[name].dtype.kind == "O"]


def test_without_a_reference_all_networks_are_saved(sounds, capsys):
    assert evaluate("--save-statistics", "ours.npz") == 0
    assert "skipped fad, " in capsys.readouterr().out
    for network in ("vggish", "clap", "cnn14-16k", "cnn14-32k", "passt"):
        assert load_statistics(sounds / "ours.npz", network).count == 6
        assert load_origin(sounds / "ours.npz", network) == Origin(f"{network} small, seed 0", None)


def test_saving_needs_a_metric_with_embeddings(sounds, capsys):
    assert evaluate("--save-statistics", "ours.npz", "--metrics", "pq") == 2
    assert "--save-statistics needs one of --metrics fad" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"passt.mu": np.zeros(3), "passt.cov": np.eye(3)}, "has no statistics of vggish, only of passt"),
        ({"mu": np.zeros(3), "cov": np.eye(3)}, "has embeddings of width 3, but those of vggish have 12"),
        ({"mu": np.zeros(12), "cov": np.eye(11)}, "mean [12] and covariance [11, 11] do not fit each other"),
        ({"mu": np.full(12, np.inf), "cov": np.eye(12)}, "holds NaN or infinite values"),
        ({"mu": np.zeros(12), "cov": -np.eye(12)}, "not symmetric, or has a negative variance"),
        ({"mu": np.zeros(12), "cov": np.triu(np.ones((12, 12)))}, "not symmetric"),
        ({"mu": np.zeros(12, complex), "cov": np.eye(12)}, "mu must hold real numbers, got complex128"),
        ({"mu": np.array(["a"] * 12), "cov": np.eye(12)}, "mu must hold real numbers"),
        ({"mu": np.array([object()]), "cov": np.eye(1)}, "it holds pickled objects"),
        ({"x": np.zeros(3)}, "has no statistics of any network"),
    ],
)
def test_files_that_do_not_fit_are_refused_before_anything_is_computed(sounds, capsys, arrays, message):
    np.savez("bad.npz", **arrays)
    assert evaluate("--reference", "bad.npz", "--metrics", "fad") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "bad.npz" in line and message in line
    assert not (sounds / "cache").exists()


def test_without_metrics_only_those_that_fit_run(sounds, capsys):
    save_statistics(sounds / "passt.npz", {"passt": gaussian()})
    assert evaluate("--reference", "passt.npz") == 0
    output = capsys.readouterr().out
    assert "| fd-passt (FD-PASST)" in output and "| fad (FD-VGG)" not in output
    assert "skipped fad, fad-inf: passt.npz: has no statistics of vggish, only of passt" in output
    assert "skipped kad, kad-clap, kad-panns, kad-passt: needs --reference with a folder" in output


def test_statistics_of_other_weights_are_refused(sounds, capsys, monkeypatch):
    assert evaluate("--save-statistics", "ours.npz", "--metrics", "fad") == 0
    capsys.readouterr()
    monkeypatch.setitem(catalog.NETWORKS, "vggish", SmallNetwork("vggish", seed=1))
    assert evaluate("--reference", "ours.npz", "--metrics", "fad") == 2
    assert "other weights (vggish small, seed 0) than those in use (vggish small, seed 1)" in capsys.readouterr().err


def test_statistics_of_another_length_are_a_warning(sounds, capsys):
    assert evaluate("--save-statistics", "ours.npz", "--metrics", "fad", "--audio-length", "0.5") == 0
    assert evaluate("--reference", "ours.npz", "--metrics", "fad") == 0
    assert "warning: ours.npz was computed with --audio-length 0.5, and the figures with whole files" in (
        capsys.readouterr().out
    )


def test_one_embedding_has_no_statistics(sounds, capsys):
    (sounds / "one").mkdir()
    save_audio("one/a.wav", torch.zeros(1, 8_000) + 0.1, 16_000)
    assert main(["evaluate", "one", "--cache", "cache", "--metrics", "fad", "--save-statistics", "one.npz"]) == 2
    assert "--save-statistics one.npz: no network has two embeddings" in capsys.readouterr().err
    assert not (sounds / "one.npz").exists()
