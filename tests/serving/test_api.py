"""Requests to `audiox serve`, on loopback."""

import io
import json
import wave
from base64 import b64encode

import numpy as np
import pytest
from helpers import tone
from live_server import wait_until

from audiox_diffusers.cli import main
from audiox_diffusers.media import MediaBytes, load_audio, load_video, save_audio

QUICK = {"audio_length": 0.5, "num_inference_steps": 2, "seed": 3}


def samples(response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return samples_of(response.content)


def samples_of(data: bytes) -> np.ndarray:
    """Return the samples of a WAV file, whatever its metadata, which has the names of the files that were given."""
    with wave.open(io.BytesIO(data)) as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32768


def data_uri(data: bytes, kind: str = "application/octet-stream") -> str:
    return f"data:{kind};base64,{b64encode(data).decode()}"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> bytes:
    """A second of a tone in the model's own format, which an edit keeps to the bit."""
    path = tmp_path_factory.mktemp("sound") / "tone.wav"
    save_audio(path, tone(1.0, rate=16000), 16000)
    return path.read_bytes()


def generate(server, **body):
    return server.client.post("/v1/audio/generate", json={"input": "rain", **QUICK, **body})


@pytest.mark.parametrize(
    "body, options",
    [
        ({"input": "rain"}, ["--prompt", "rain"]),
        (
            {"prompt": "rain", "negative_prompt": "bell", "guidance_scale": 3},
            ["--prompt", "rain", "--negative-prompt", "bell", "--guidance", "3"],
        ),
        ({"input": "a bell", "seconds": 6, "audio_length": None}, ["--prompt", "a bell", "--length", "6"]),
        (
            {"input": "rain", "guidance_scale": {"text": 4}, "guidance_interval": [0.2, 0.9]},
            ["--prompt", "rain", "--guidance", "text=4", "--guidance-interval", "0.2-0.9"],
        ),
        (
            {"input": "rain", "guider": "apg:eta=0.5", "guidance_scale": 4},
            ["--prompt", "rain", "--guider", "apg:eta=0.5", "--guidance", "4"],
        ),
    ],
    ids=["text", "negative prompt", "several windows", "weights", "guider"],
)
def test_a_sound_is_equal_to_that_of_the_command(server, tmp_path, body, options):
    body = {**QUICK, **body}
    body = {name: value for name, value in body.items() if not ("seconds" in body and name == "audio_length")}
    command = ["generate", "--precise", "--seed", "3", "--steps", "2", "--length", "0.5", *options, "--output"]
    assert main([*command, str(tmp_path / "sound.wav")]) == 0
    response = server.client.post("/v1/audio/generate", json=body)
    assert response.content == (tmp_path / "sound.wav").read_bytes()
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["x-seed"] == "3" and response.headers["x-sample-rate"] == "16000"


@pytest.mark.parametrize("field", ["video", "image", "audio", "negative_video", "negative_audio"])
def test_uploads_and_data_uris_give_the_sound_of_the_command(server, media, tmp_path, field):
    data = media[field.removeprefix("negative_")]
    (tmp_path / "input").write_bytes(data)
    option = f"--{field.replace('_', '-')}"
    command = f"generate --precise --prompt rain --seed 3 --steps 2 --length 0.5 {option} {tmp_path}/input --output"
    assert main([*command.split(), str(tmp_path / "sound.wav")]) == 0
    form = {"input": "rain", **{name: str(value) for name, value in QUICK.items()}}
    upload = server.client.post("/v1/audio/generate", data=form, files={field: ("../../x", data)})
    inline = generate(server, **{field: data_uri(data)})
    assert upload.content == inline.content
    assert np.array_equal(samples(upload), samples_of((tmp_path / "sound.wav").read_bytes()))


def test_a_film_gets_its_new_sound(server, media, tmp_path):
    response = generate(server, video=data_uri(media["video"]), response_format="mp4", audio_length=None)
    assert response.headers["content-type"] == "video/mp4"
    film = MediaBytes(response.content, "film.mp4")
    assert len(load_video(film)) == len(load_video(MediaBytes(media["video"], "clip.mp4")))
    assert load_audio(film)[1] == 16000


@pytest.mark.parametrize(
    "edit, option, kept",
    [
        ({"inpaint_spans": [[0.4, 0.6]]}, ["--inpaint", "0.4-0.6"], slice(0, 6000)),
        ({"inpaint_spans": "0.4-0.6", "strength": 0.5}, ["--inpaint", "0.4-0.6", "--strength", "0.5"], slice(0, 6000)),
        ({"extend_by": 0.5}, ["--extend", "0.5"], slice(0, 15000)),
        ({"extend_by": -0.5}, ["--extend", "-0.5"], slice(9000, 24000)),
        ({"strength": 0.5}, ["--strength", "0.5"], None),
    ],
    ids=["inpainting", "soft inpainting", "extension", "extension before", "variation"],
)
def test_edits_are_equal_to_those_of_the_command(server, sound, tmp_path, edit, option, kept):
    (tmp_path / "tone.wav").write_bytes(sound)
    paths = ["--audio", str(tmp_path / "tone.wav"), "--output", str(tmp_path / "edited.wav")]
    assert main(["edit", "--precise", "--prompt", "rain", "--seed", "3", "--steps", "2", *option, *paths]) == 0
    body = {"audio_length": None, "audio": data_uri(sound, "audio/wav"), **edit}
    response = generate(server, **body)
    assert np.array_equal(samples(response), samples_of((tmp_path / "edited.wav").read_bytes()))
    if kept is not None:
        old = load_audio(MediaBytes(sound, "tone.wav"))[0][0].numpy()
        shift = 8000 if edit.get("extend_by", 0) < 0 else 0
        kept_samples = samples(response)[kept]
        assert np.array_equal(kept_samples, old[kept.start - shift if shift else 0 :][: len(kept_samples)])


@pytest.mark.parametrize(
    "name, kind, start",
    [
        ("wav", "audio/wav", b"RIFF"),
        ("flac", "audio/flac", b"fLaC"),
        ("mp3", "audio/mpeg", b"ID3"),
        ("opus", "audio/ogg", b"OggS"),
        ("aac", "audio/aac", b"\0\0\0"),
    ],
)
def test_formats(server, name, kind, start):
    response = generate(server, response_format=name)
    assert response.headers["content-type"] == kind
    assert response.content.startswith(start)
    assert load_audio(MediaBytes(response.content, f"sound.{name}"))[0].shape[1] > 0


def test_pcm_is_a_wav_file_without_its_header(server):
    pcm = generate(server, response_format="pcm")
    assert pcm.headers["content-type"] == "audio/pcm"
    assert np.array_equal(np.frombuffer(pcm.content, "<i2") / 32768, samples(generate(server)))


@pytest.mark.parametrize("name", ["wav", "pcm"])
def test_long_sounds_are_streamed_while_they_are_decoded(server, name):
    body = {"audio_length": 20, "response_format": name}
    whole = generate(server, **body)
    with server.client.stream(
        "POST", "/v1/audio/generate", json={"input": "rain", **QUICK, **body, "stream": True}
    ) as response:
        pieces = response.iter_raw(2**14)
        first = next(pieces)
        # The job is still running when its first samples arrive.
        unfinished = server.engine.get(response.headers["x-job-id"]).status == "running"
        streamed = first + b"".join(pieces)
    assert unfinished
    assert int(response.headers["content-length"]) == len(streamed)
    if name == "wav":
        with wave.open(io.BytesIO(streamed)) as file:
            streamed = file.readframes(file.getnframes())
        with wave.open(io.BytesIO(whole.content)) as file:
            assert streamed == file.readframes(file.getnframes())
    else:
        assert streamed == whole.content


def test_a_job_from_its_start_to_its_end(server):
    body = {"input": "rain", **QUICK, "num_inference_steps": 8, "n": 2, "preview_every": 3}
    created = server.client.post("/v1/jobs", json=body)
    assert created.status_code == 202
    job = created.json()
    assert created.headers["location"] == f"/v1/jobs/{job['id']}" and job["status"] in ("queued", "running")
    events = []
    with server.client.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            name, _, value = line.partition(": ")
            if name == "data":
                events.append(json.loads(value))
            elif name:
                assert (name, value) in (("event", "progress"), ("event", "succeeded"))
    last = events[-1]
    assert last["status"] == "succeeded" and last["progress"] == 1 and last["step"] == last["steps"] == 8
    assert last["num_sounds"] == 2 and last["seed"] == 3 and last["error"] is None
    steps = [event["step"] for event in events]
    assert steps == sorted(steps) and len(set(steps)) > 1
    assert server.client.get(f"/v1/jobs/{job['id']}").json() == last
    assert load_audio(MediaBytes(server.client.get(f"/v1/jobs/{job['id']}/preview").content))[1] == 16000

    contents = [server.client.get(f"/v1/jobs/{job['id']}/content?index={index}") for index in (0, 1)]
    for seed, content in enumerate(contents, 3):
        assert content.headers["x-seed"] == str(seed)
        alone = generate(server, num_inference_steps=8, seed=seed)
        assert np.abs(samples(content) - samples(alone)).max() <= 1e-4
    missing = server.client.get(f"/v1/jobs/{job['id']}/content?index=2")
    assert missing.status_code == 400 and missing.json()["error"]["param"] == "index"

    assert server.client.delete(f"/v1/jobs/{job['id']}").json()["deleted"] is True
    assert server.client.get(f"/v1/jobs/{job['id']}").status_code == 404
    assert list(server.folder.iterdir()) == []


def test_the_content_of_an_unfinished_job_is_a_conflict(server):
    job = server.client.post("/v1/jobs", json={"input": "rain", "num_inference_steps": 900}).json()
    content = server.client.get(f"/v1/jobs/{job['id']}/content")
    assert content.status_code == 409 and content.json()["error"]["code"] in ("job_running", "job_queued")
    no_preview = server.client.get(f"/v1/jobs/{job['id']}/preview")
    assert no_preview.status_code == 404 and no_preview.json()["error"]["code"] == "no_preview"
    server.client.delete(f"/v1/jobs/{job['id']}")
    wait_until(lambda: not list(server.folder.iterdir()))


def test_jobs_are_not_streamed(server):
    response = server.client.post("/v1/jobs", json={"input": "rain", "stream": True})
    assert response.status_code == 400 and response.json()["error"]["param"] == "stream"


def test_previews_do_not_change_the_sound(server):
    body = {"input": "rain", **QUICK, "num_inference_steps": 6}
    job = server.engine.submit({**body, "preview_every": 2})
    assert job.wait(20) and job.preview_step == 4
    preview = load_audio(job.preview)[0]
    assert preview.abs().max() > 0
    assert job.results[0].read_bytes() == generate(server, num_inference_steps=6).content
    server.engine.remove(job)


def test_models_and_documentation(server):
    listed = server.client.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["audiox-tiny"]
    model = server.client.get("/v1/models/audiox-tiny").json()
    assert model == listed["data"][0] and model["license"] == "cc-by-sa-4.0" and model["loaded"]
    assert server.client.get("/docs").status_code == 200
    paths = server.client.get("/openapi.json").json()["paths"]
    schema = paths["/v1/audio/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert {"input", "audio_length", "inpaint_spans", "lora"} <= set(schema["properties"])
    assert all(field.get("description") for field in schema["properties"].values())


def test_health_and_metrics(server):
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.get("/ready").json() == {"status": "ready"}
    generate(server)
    lines = server.client.get("/metrics").text.splitlines()
    metrics = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert float(metrics['audiox_requests_total{route="/v1/audio/generate",status="200"}']) >= 1
    assert float(metrics["audiox_batch_sounds_count"]) >= 1 and float(metrics["audiox_steps_total"]) >= 2
    assert float(metrics["audiox_memory_bytes"]) > 1e7 and float(metrics["audiox_results_bytes"]) == 0


def test_the_recipe_is_in_the_file_unless_refused(server):
    assert b"rain" in generate(server).content
    without = generate(server, metadata=False)
    assert b"rain" not in without.content and np.array_equal(samples(without), samples(generate(server)))


def test_a_drawn_seed_gives_the_sound_again(server):
    first = generate(server, seed=None)
    assert generate(server, seed=int(first.headers["x-seed"])).content == first.content
    assert generate(server, seed=None).headers["x-seed"] != first.headers["x-seed"]
