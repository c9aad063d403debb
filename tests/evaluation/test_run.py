"""An evaluation from files to figures, with small networks instead of the released ones."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import refused, seeded
from small_networks import SmallNetwork

from audiox_diffusers.cli import main
from audiox_diffusers.evaluation import catalog
from audiox_diffusers.evaluation.clips import read_captions, read_set
from audiox_diffusers.evaluation.config import EvaluationConfig
from audiox_diffusers.evaluation.extraction import Extraction
from audiox_diffusers.evaluation.figures import Figures
from audiox_diffusers.evaluation.metrics import METRICS
from audiox_diffusers.evaluation.run import OneProcess, run_evaluation
from audiox_diffusers.media import save_audio, save_video

RATE = 16_000
COUNT = 24


def noise(seed: int, seconds: float = 1.0) -> torch.Tensor:
    """Noise whose band depends on the seed."""
    samples = 0.1 * torch.randn(1, round(seconds * RATE), generator=seeded(seed))
    kernel = torch.cos(torch.arange(33) * (0.2 + 0.1 * (seed % 12))) / 16
    return torch.nn.functional.conv1d(samples[None], kernel[None, None], padding="same")[0]


def write(folder: Path, sounds: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    for name, sound in sounds.items():
        save_audio(folder / f"{name}.wav", sound, RATE)
    return folder


@pytest.fixture
def small_networks(monkeypatch):
    for name in set(catalog.NETWORKS) - {"onsets"}:
        monkeypatch.setitem(catalog.NETWORKS, name, SmallNetwork(name))


@pytest.fixture
def clips(tmp_path):
    reference = {f"clip{i}": noise(i) for i in range(COUNT)}
    captions = tmp_path / "captions.csv"
    captions.write_text("name,caption\n" + "".join(f"clip{i},band {i % 12}\n" for i in range(COUNT)))
    return tmp_path, reference, captions


def evaluate(folder: Path, generated: Path, cache: str = "cache", **settings):
    found = read_set(generated, folder / "reference", folder / "captions.csv")
    return run_evaluation(found, EvaluationConfig(cache=folder / cache, **settings))


def values(report) -> dict[str, float]:
    return {figure.metric: figure.value for figure in report.figures}


def test_figures_get_worse_with_more_noise(clips, small_networks):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    results = []
    for level in (0.0, 0.02, 0.2):
        spoiled = {n: x + level * torch.randn(x.shape, generator=seeded(9)) for n, x in reference.items()}
        results.append(values(evaluate(folder, write(folder / f"noise{level}", spoiled))))
    for name in ("fad", "fd", "kl", "fad-clap"):
        assert abs(results[0][name]) < 1e-6
        assert results[0][name] < results[1][name] < results[2][name], name
    assert results[0]["clap"] > results[1]["clap"] > results[2]["clap"]


def test_shuffled_captions_lower_the_clap_score_alone(clips, small_networks):
    folder, reference, captions = clips
    write(folder / "reference", reference)
    before = values(evaluate(folder, folder / "reference"))
    captions.write_text("name,caption\n" + "".join(f"clip{i},band {(i + 5) % 12}\n" for i in range(COUNT)))
    after = values(evaluate(folder, folder / "reference"))
    assert after.pop("clap") < before.pop("clap")
    assert after == before


def test_a_file_that_changes_under_its_name_gets_new_features(clips, small_networks):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    generated = write(folder / "generated", reference)
    assert values(evaluate(folder, generated))["kl"] == pytest.approx(0, abs=1e-9)
    for i in range(COUNT):
        save_audio(generated / f"clip{i}.wav", noise(i + 1), RATE)
    assert values(evaluate(folder, generated))["kl"] > 1e-4


def test_other_weights_use_no_old_features(clips, small_networks, monkeypatch):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    before = values(evaluate(folder, folder / "reference", metrics=("is",)))
    monkeypatch.setitem(catalog.NETWORKS, "cnn14-16k", SmallNetwork("cnn14-16k", seed=1))
    assert values(evaluate(folder, folder / "reference", metrics=("is",))) != before


def test_cached_features_give_the_same_figures_without_the_networks(clips, small_networks, monkeypatch):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    first = evaluate(folder, folder / "reference")
    monkeypatch.setattr(SmallNetwork, "load", lambda *_: pytest.fail("loaded"))
    assert evaluate(folder, folder / "reference").figures == first.figures


def test_without_weights_the_other_metrics_run(clips, small_networks, monkeypatch):
    folder, reference, _ = clips
    write(folder / "reference", reference)

    class Missing(SmallNetwork):
        def load(self, folder, device):
            raise FileNotFoundError("passt.pt is not in the cache")

    monkeypatch.setitem(catalog.NETWORKS, "passt", Missing("passt"))
    report = evaluate(folder, folder / "reference")
    assert "fad" in values(report) and "fd-passt" not in values(report)
    assert report.skipped["fd-passt"] == "passt.pt is not in the cache"
    with refused("--metrics fd-passt", "not in the cache"):
        evaluate(folder, folder / "reference", metrics=("fd-passt",))


def test_damaged_silent_and_clipping_files_are_named(clips, small_networks):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    generated = write(folder / "generated", {**reference, "silent": torch.zeros(1, RATE)})
    save_audio(generated / "loud.wav", torch.ones(1, RATE), RATE)
    (generated / "damaged.wav").write_bytes(b"RIFF0000WAVEnothing")
    report = evaluate(folder, generated)
    (figure,) = [figure for figure in report.figures if figure.metric == "fd"]
    assert figure.count == COUNT + 2
    assert [Path(path).name for path in report.excluded["cnn14-16k"]] == ["damaged.wav"]
    text = report.table()
    for expected in (
        "1 of 26 generated files is silent",
        "1 of 26 generated files is clipped",
        "3 of 27 generated files have no reference of the same name: damaged, loud, silent",
        "fd-passt",
    ):
        assert expected in text
    assert [line for line in text.splitlines() if line.startswith("left out")] == [
        f"left out: {generated / 'damaged.wav'}: {next(iter(report.excluded['facts'].values())).split(': ', 1)[1]}"
    ]


def test_report_names_what_figures_depend_on(clips, small_networks):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    report = json.loads(evaluate(folder, folder / "reference", audio_length_in_s=0.5).to_json())
    assert report["FD-VGG"] == report["figures"][0]["value"]
    assert report["settings"]["audio_length_in_s"] == 0.5
    assert report["settings"]["pairs"] == COUNT
    assert report["settings"]["sampling_rates"] == [RATE]
    assert report["settings"]["versions"]["torch"] == torch.__version__
    assert report["figures"][0]["network"] == "vggish small, seed 0"
    assert report["figures"][0]["licence"] == "none"


def test_a_report_is_enough_to_compute_its_figures_again(clips, small_networks, monkeypatch):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    write(folder / "generated", {n: 0.5 * x for n, x in reference.items()})
    monkeypatch.chdir(folder)
    files = ["--reference", "reference", "--captions", "captions.csv"]
    settings = ["--audio-length", "0.7", "--metrics", "fad,kad,is", "kl", "clap", "onset-f1", "--output", "a.json"]
    assert main(["evaluate", "generated", *files, *settings, "--cache", "first"]) == 0
    first = json.loads(Path("a.json").read_text())

    given = first["settings"]["arguments"]
    words = [given["command"], given["generated"]]
    for name in ("reference", "captions", "audio_length", "metrics", "batch_size", "device"):
        if name in given:
            value = given[name] if isinstance(given[name], list) else [given[name]]
            words += [f"--{name.replace('_', '-')}", *map(str, value)]
    assert main([*words, "--cache", "second", "--output", "b.json"]) == 0
    second = json.loads(Path("b.json").read_text())
    assert first["figures"] == second["figures"]
    assert first["settings"]["sha256"] == second["settings"]["sha256"]
    for figure in first["figures"]:
        assert figure["input"]["window"] and "sampling_rate" in figure["input"]
        assert figure["error"] is None or figure["details"]["error_method"]


def test_statistics_stand_for_a_reference_folder(clips, small_networks):
    folder, reference, captions = clips
    write(folder / "reference", reference)
    generated = write(folder / "generated", {n: 0.5 * x for n, x in reference.items()})
    expected = values(evaluate(folder, generated))["fad"]
    report = run_evaluation(
        read_set(folder / "reference"), EvaluationConfig(cache=folder / "cache"), statistics=folder / "reference.npz"
    )
    assert "fad" not in values(report)
    config = EvaluationConfig(cache=folder / "cache", reference_statistics=folder / "reference.npz", metrics=("fad",))
    assert values(run_evaluation(read_set(generated), config))["fad"] == pytest.approx(expected)


def test_processes_that_start_late_compute_their_whole_share(clips, small_networks):
    """A process that starts when another has finished must not divide what is left instead of all files."""
    folder, reference, _ = clips
    write(folder / "reference", reference)
    found = read_set(folder / "reference", folder / "reference")
    config = EvaluationConfig(cache=folder / "cache", metrics=("fad", "clap", "kl"))
    for index in (0, 1, 2):
        state = SimpleNamespace(process_index=index, num_processes=3)
        extraction = Extraction(replace(found, captions=dict.fromkeys(reference, "band 3")), config, state, print)
        extraction.compute("clap", [METRICS["clap"]])
        extraction.compute_facts()
    for path in found.generated.values():
        assert extraction.features(path, "clap") and extraction.features(path, "facts")
    assert extraction.caption_features("band 3")
    assert not extraction.excluded


def test_a_file_without_features_is_never_left_out_silently(clips, small_networks):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    found = read_set(folder / "reference", folder / "reference")
    extraction = Extraction(found, EvaluationConfig(cache=folder / "cache"), OneProcess(), lambda *_: None)
    extraction.compute("vggish", [METRICS["fad"]])
    save_audio(folder / "reference" / "clip3.wav", noise(99), RATE)
    extraction._digests.clear()
    figure = Figures(extraction).figure("fad")
    assert figure.count == COUNT - 1
    assert "clip3.wav: changed while it was measured" in extraction.excluded["vggish"][str(found.generated["clip3"])]


def test_two_processes_give_the_report_of_one(clips, small_networks, monkeypatch):
    folder, reference, _ = clips
    write(folder / "reference", reference)
    generated = {n: x + 0.02 * torch.randn(x.shape, generator=seeded(4)) for n, x in reference.items()}
    write(folder / "generated", generated)
    (folder / "generated" / "damaged.wav").write_bytes(b"RIFF0000WAVEnothing")
    monkeypatch.chdir(folder)

    def command(name: str) -> list[str]:
        files = ["--reference", "reference", "--captions", "captions.csv"]
        return ["evaluate", "generated", *files, "--cache", name, "--output", f"{name}.json"]

    assert main(command("one")) == 0
    # On CPUs, `accelerate launch` starts a single process.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(__file__).parents[1] / "helpers" / "small_networks.py")
    result = subprocess.run([*launcher, script, *command("two")], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| fad (FD-VGG)") == 1
    one, two = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert {figure["metric"] for figure in one["figures"]} > {"fad", "kl", "clap", "kad"}
    for mine, other in zip(one.pop("figures"), two.pop("figures"), strict=True):
        assert mine["value"] == pytest.approx(other["value"], rel=1e-5, abs=1e-6)
        assert mine["count"] == other["count"]
    for part in ("excluded", "warnings", "skipped"):
        assert one[part] == two[part]
    assert one["settings"]["sha256"] == two["settings"]["sha256"]
    assert list(one["excluded"]["clap"]) == ["generated/damaged.wav"]


def test_desync_needs_films_and_long_enough_clips(tmp_path, small_networks):
    generated = write(tmp_path / "generated", {"a": noise(0, 6.0), "b": noise(1, 6.0)})
    (tmp_path / "videos").mkdir()
    frames = torch.zeros(150, 3, 32, 32, dtype=torch.uint8)
    save_video(tmp_path / "videos" / "a.mp4", frames, noise(0, 6.0), RATE, fps=25)
    save_video(tmp_path / "videos" / "b.mp4", frames[:25], noise(0, 1.0), RATE, fps=25)
    found = read_set(generated, videos=tmp_path / "videos")
    report = run_evaluation(found, EvaluationConfig(cache=tmp_path / "cache", metrics=("desync",)))
    assert report.figures[0].count == 1
    assert "at least 4.8 s" in report.excluded["synchformer"]["b"]


def test_onsets_are_compared_with_those_of_the_reference(tmp_path):
    """Two clicks of three are in time, and one generated click is not."""

    def clicks(*times: float) -> torch.Tensor:
        sound = torch.zeros(1, 3 * RATE)
        for time in times:
            first = round(time * RATE)
            sound[0, first : first + 800] = 0.5 * torch.randn(800, generator=seeded(0))
        return sound

    write(tmp_path / "reference", {"a": clicks(0.5, 1.5, 2.5), "b": clicks(1.0)})
    generated = write(tmp_path / "generated", {"a": clicks(0.55, 1.5, 2.0), "b": clicks(1.0)})
    found = read_set(generated, tmp_path / "reference")
    report = run_evaluation(found, EvaluationConfig(cache=tmp_path / "cache", metrics=("onset-f1",)))
    (figure,) = report.figures
    assert figure.value == pytest.approx(2 * 3 / 8)
    assert figure.error > 0 and figure.count == 2
    assert "onset-f1 (Onset-F1)" in report.table()


def test_bad_sets_are_refused(tmp_path, small_networks):
    generated = write(tmp_path / "generated", {"a": noise(0)})
    (tmp_path / "empty").mkdir()
    with refused("GENERATED", "empty", "has no .aac"):
        read_set(tmp_path / "empty")
    with refused("--reference", "no such folder", error=OSError):
        read_set(generated, tmp_path / "nowhere")
    write(tmp_path / "generated" / "again", {"a": noise(1)})
    with refused("GENERATED", "two files are called a"):
        read_set(generated)


def test_captions_of_another_set_are_refused(tmp_path):
    generated = write(tmp_path / "generated", {"a": noise(0)})
    captions = tmp_path / "captions.csv"
    captions.write_text("name,caption\nb,rain\n")
    with refused("--captions", "none of its names matches", "for example a"):
        read_set(generated, captions=captions)
    captions.write_text("file,words\na,rain\n")
    with refused("--captions", "it has file, words"):
        read_set(generated, captions=captions)
    captions.write_bytes(b"\xff\xfe\xff")
    with refused("--captions", "cannot be read"):
        read_set(generated, captions=captions)


def test_captions_by_file_name_and_the_first_of_several(tmp_path):
    (tmp_path / "c.jsonl").write_text('{"file_name": "x/a.wav", "text": "rain"}\n{"file_name": "a", "text": "snow"}\n')
    assert read_captions(tmp_path / "c.jsonl") == {"a": "rain"}
    (tmp_path / "c.csv").write_text('youtube_id,start_time,caption\nYab.c,10,"a, b"\n')
    assert read_captions(tmp_path / "c.csv") == {"Yab.c": "a, b"}


@pytest.mark.parametrize(
    "metric, option", [("fad", "--reference"), ("clap", "--captions"), ("desync", "--videos"), ("kl", "same names")]
)
def test_a_metric_without_its_files_is_refused(tmp_path, small_networks, metric, option):
    generated = write(tmp_path / "generated", {"a": noise(0)})
    with refused(f"--metrics {metric} needs", option):
        run_evaluation(read_set(generated), EvaluationConfig(cache=tmp_path / "cache", metrics=(metric,)))


def test_an_unknown_metric_is_refused(tmp_path):
    generated = write(tmp_path / "generated", {"a": noise(0)})
    with refused("--metrics fda: unknown", "fad"):
        run_evaluation(read_set(generated), EvaluationConfig(cache=tmp_path / "cache", metrics=("fda",)))
