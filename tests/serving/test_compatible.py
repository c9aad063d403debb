"""Clients of other servers work by changing their URL."""

import io
import wave
from base64 import b64decode, b64encode

import openai
import pytest
from huggingface_hub import InferenceClient
from live_server import live_server

TOKEN = "secret-token"
QUICK = {"audio_length": 0.5, "num_inference_steps": 2, "seed": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with live_server(tmp_path_factory.mktemp("server"), token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def expected(server) -> bytes:
    return server.client.post("/v1/audio/generate", json={"input": "rain", **QUICK}).content


def seconds(data: bytes) -> float:
    with wave.open(io.BytesIO(data)) as file:
        return file.getnframes() / file.getframerate()


def test_openai_speech(client, expected):
    response = client.audio.speech.create(
        model="audiox-tiny", voice="alloy", input="rain", response_format="wav", instructions="loud", extra_body=QUICK
    )
    assert response.content == expected


def test_openai_speech_defaults_to_mp3(client):
    response = client.audio.speech.create(model="audiox-tiny", voice="alloy", input="rain", extra_body=QUICK)
    assert response.response.headers["content-type"] == "audio/mpeg"


def test_openai_speech_as_a_stream(client, expected, tmp_path):
    with client.audio.speech.with_streaming_response.create(
        model="audiox-tiny", voice="alloy", input="rain", response_format="wav", extra_body=QUICK
    ) as response:
        response.stream_to_file(tmp_path / "rain.wav")
    assert (tmp_path / "rain.wav").read_bytes() == expected


def test_openai_models(client):
    assert [model.id for model in client.models.list()] == ["audiox-tiny"]
    assert client.models.retrieve("audiox-tiny").object == "model"


@pytest.mark.parametrize("place", ["top level", "extra_body"])
def test_openai_chat_with_the_parameters_of_vllm_omni(client, expected, place):
    options = {"num_inference_steps": 2, "seed": 3, "seconds_total": 0.5, "seconds_start": 0, "audiox_task": "t2a"}
    completion = client.chat.completions.create(
        model="audiox-tiny",
        messages=[{"role": "user", "content": [{"type": "text", "text": "rain"}]}],
        modalities=["audio"],
        extra_body=options if place == "top level" else {"extra_body": options},
    )
    (choice,) = completion.choices
    assert choice.finish_reason == "stop" and choice.message.audio.transcript == ""
    assert b64decode(choice.message.audio.data) == expected


@pytest.mark.parametrize("task", ["v2a", "tv2a"])
def test_chat_with_a_video(server, client, media, task):
    video = f"data:video/mp4;base64,{b64encode(media['video']).decode()}"
    content = [{"type": "text", "text": "rain"}, {"type": "video_url", "video_url": {"url": video}}]
    completion = client.chat.completions.create(
        model="audiox-tiny",
        messages=[{"role": "user", "content": content}],
        extra_body={"num_inference_steps": 2, "seed": 3, "seconds_total": 0.5, "audiox_task": task},
    )
    body = {**QUICK, "video": video, **({"input": "rain"} if task == "tv2a" else {})}
    expected = server.client.post("/v1/audio/generate", json=body).content
    assert b64decode(completion.choices[0].message.audio.data) == expected


@pytest.mark.parametrize(
    "change, param",
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "/etc/passwd"}}]}]},
            "video",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "http://x/a"}}]}]},
            "audio",
        ),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"video_path": "clip.mp4"}, "video_path"),
        ({"audiox_task": "v2a"}, "messages"),
        ({"audiox_task": "x2a"}, "audiox_task"),
        ({"seconds_start": 2}, "seconds_start"),
        ({"num_outputs_per_prompt": 2}, "num_outputs_per_prompt"),
        ({"audio": {"format": "exe"}}, "audio.format"),
        ({"extra_body": 5}, "extra_body"),
    ],
)
def test_chat_errors_name_the_field(client, change, param):
    body = {"messages": [{"role": "user", "content": "rain"}], **change}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="audiox-tiny", messages=body.pop("messages"), extra_body=body)
    assert caught.value.param == param and caught.value.code


def test_openai_errors(server, client):
    with pytest.raises(openai.BadRequestError, match="num_inference_steps") as caught:
        client.audio.speech.create(
            model="audiox-tiny", voice="alloy", input="rain", extra_body={"num_inference_steps": 0}
        )
    assert caught.value.param == "num_inference_steps"
    with pytest.raises(openai.NotFoundError, match="'tts-1' is not served here, use one of audiox-tiny"):
        client.audio.speech.create(model="tts-1", voice="alloy", input="rain")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError, match="Authorization: Bearer TOKEN"):
            stranger.models.list()


@pytest.mark.parametrize(
    "body",
    [
        {"input": "rain"},
        {"input": "rain", "model": "audiox-tiny", "response_format": "wav", "speed": 1.0, "stream_format": "audio"},
        {"input": "rain", "audio_length": 0.5, "audio_start": 0.0, "negative_prompt": "low quality", "guidance_scale": 7.0,
         "num_inference_steps": 2, "seed": 42, "response_format": "wav"},
        {"input": "rain", "audio_length": None, "negative_prompt": None, "guidance_scale": None, "seed": None,
         "num_inference_steps": None, "audio_start": None},
    ],
    ids=["smallest", "usual", "all fields", "nulls"],
)  # fmt: skip
def test_bodies_of_vllm_omni(server, body):
    response = server.client.post("/v1/audio/generate", json=body)
    assert response.status_code == 200 and response.headers["content-type"] == "audio/wav"
    assert seconds(response.content) == (body.get("audio_length") or 4)


@pytest.mark.parametrize("change", [{"stream_format": "sse"}, {"audio_start": 2.0}, {"speed": 2.0}])
def test_what_vllm_omni_refuses_or_this_server_cannot_do(server, change):
    response = server.client.post("/v1/audio/generate", json={"input": "rain", **change})
    (name,) = change
    assert response.status_code == 400 and response.json()["error"]["param"] == name


def test_huggingface_client(server, expected, monkeypatch):
    # Its client reaches for no address while the Hub is offline.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    client = InferenceClient(model=f"{server.url}/hf", token=TOKEN)
    parameters = {"duration": 0.5, "num_inference_steps": 2, "seed": 3}
    assert client.text_to_speech("rain", extra_body=parameters) == expected
