"""The HTTP API of `audiox serve`, on loopback."""

from audiox_diffusers.cli import main


def test_a_sound_is_equal_to_that_of_the_command_line(server, tmp_path):
    body = {"input": "rain", "seed": 7, "audio_length": 1.5, "num_inference_steps": 3}
    response = server.client.post("/v1/audio/generate", json=body)
    assert response.status_code == 200 and response.headers["content-type"] == "audio/wav"
    output = tmp_path / "rain.wav"
    command = "generate --prompt rain --seed 7 --length 1.5 --steps 3 --output"
    assert main([*command.split(), str(output)]) == 0
    assert response.content == output.read_bytes()
