import pytest
from live_server import LiveServer, live_server


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> LiveServer:
    with live_server(tmp_path_factory.mktemp("server")) as running:
        yield running
