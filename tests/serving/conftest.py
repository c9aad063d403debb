import pytest
from live_server import LiveServer, live_server
from media_samples import write_sample


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> LiveServer:
    with live_server(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> dict[str, bytes]:
    """A video, a picture and a sound, by the field they go into."""
    folder = tmp_path_factory.mktemp("media")
    names = {"video": "clip.mp4", "image": "picture.png", "audio": "sound.wav"}
    return {field: write_sample(folder / name).read_bytes() for field, name in names.items()}
