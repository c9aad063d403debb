"""Released models by name, from a Hub on this machine that serves small weights in the published layouts."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from loopback_hub import COMMIT, clean_environment, loopback_hub
from small_releases import RELEASES, REPOSITORIES, save, small_release, write_repositories

pytestmark = pytest.mark.slow
SCHEDULERS = {"audiox-turbo": (4, 1.0, True), "audiox-base": (100, 6.0, False)}


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, tokenizer):
    return write_repositories(tmp_path_factory.mktemp("hub"), tokenizer)


@pytest.fixture
def hub(repositories):
    with loopback_hub(dict(repositories)) as hub:
        yield hub


def start(code, home, hub=None, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**clean_environment(home, hub), **environment},
        cwd=home.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code, home, hub=None, **environment):
    """Run Python code with an empty Hugging Face cache; return what it prints, as JSON, and its stderr."""
    process = start(code, home, hub, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1]) if out.strip() else None, err


ALL = """
    import json, sys
    import audiox_diffusers
    from diffusers import DiffusionPipeline

    found = {}
    for name in sys.argv[1:] or NAMES:
        pipe = DiffusionPipeline.from_pretrained(name)
        audio = pipe("rain", num_inference_steps=2).audios
        stochastic = pipe.scheduler.config.get("stochastic_sampling")
        config = pipe.config
        found[name] = [type(pipe).__name__, list(audio.shape), bool(abs(audio).max() > 0),
                       config.default_num_inference_steps, config.default_guidance_scale, stochastic]
    print(json.dumps(found))
"""


def expected(name):
    steps, guidance, stochastic = SCHEDULERS.get(name, (250, 7.0, False))
    return ["AudioXPipeline", [1, 2, 192], True, steps, guidance, stochastic]


def test_every_name_downloads_once_and_then_runs_offline(hub, tmp_path):
    home = tmp_path / "home"
    names = [*RELEASES, *dict.fromkeys(REPOSITORIES.values())]
    found, err = run(ALL.replace("NAMES", repr(names)), home, hub)
    assert found == {name: expected(name) for name in RELEASES} | {
        REPOSITORIES[name]: expected(name) for name in RELEASES[:4]
    }
    for name in RELEASES:
        assert err.count(f"{name}: downloading and converting https://huggingface.co/{REPOSITORIES[name]}") == 1
    assert err.count("CC-BY-NC-4.0, not for commercial use") == len(RELEASES)
    cache = home / "hub"
    assert sorted(path.name for path in cache.glob("models--*")) == sorted(
        f"models--audiox_diffusers--{name}" for name in RELEASES
    )
    assert not list(cache.rglob("*.ckpt")) and not list(cache.rglob("incomplete"))

    hub.requests.clear()
    assert run(ALL.replace("NAMES", repr(names)), home)[0] == found
    assert not hub.requests
    _, err = run(ALL.replace("NAMES", "['audiox']"), home, hub)
    assert not hub.downloads() and "Licence" not in err


def test_the_literal_line(hub, tmp_path):
    """In a fresh interpreter, from the Hub, and with a folder of that name."""
    line = """
        import audiox_diffusers
        from diffusers import DiffusionPipeline
        print(DiffusionPipeline.from_pretrained("audiox").config.default_num_inference_steps)
    """
    assert run(line, tmp_path / "home", hub)[0] == 250
    (model,) = (tmp_path / "home" / "hub" / "models--audiox_diffusers--audiox" / "snapshots").iterdir()
    (tmp_path / "audiox").symlink_to(model)
    index = json.loads((model / "model_index.json").read_text())
    (model / "model_index.json").write_text(json.dumps(index | {"default_num_inference_steps": 7}))
    assert run(line, tmp_path / "empty")[0] == 7
    assert (
        run(
            line.replace("DiffusionPipeline", "AudioXPipeline").replace(
                "diffusers import A", "audiox_diffusers import A"
            ),
            tmp_path / "empty",
        )[0]
        == 7
    )


def test_commands_take_every_name(hub, tmp_path):
    code = f"""
        from audiox_diffusers.cli import main
        for name in {RELEASES!r}:
            assert main(["generate", "--model", name, "--prompt", "rain", "--steps", "2", "-o", name + ".wav"]) == 0
        assert main(["convert", "audiox-turbo", "turbo", "--variant", "teacher"]) == 0
        print("null")
    """
    _, err = run(code, tmp_path / "home", hub)
    assert all((tmp_path / f"{name}.wav").stat().st_size > 700 for name in RELEASES)
    assert err.count("audiox: warning: audiox-maf: downloading and converting") == 1
    assert "base_model: HKUSTAudio/AudioX-Turbo" in (tmp_path / "turbo" / "README.md").read_text()


KILLS = """
    import json, os, signal, sys, time
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars
    from audiox_diffusers.pipelines.release_cache import find_model

    disable_progress_bars()
    constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # so that a part of a small file is on disk when it is killed

    def child():
        pid = os.fork()
        if pid == 0:
            try:
                find_model("audiox-turbo")
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
        return pid

    def code(pid):
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    exec(sys.stdin.read())
"""


def forked(code, home, hub):
    """Run code in a process that has imported everything, and can start children that find `audiox-turbo`."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLS)],
        env=clean_environment(home, hub) | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out, err = process.communicate(textwrap.dedent(code), timeout=300)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.splitlines()[-1]), err


def test_killed_at_ten_moments(hub, tmp_path):
    """The line then works again, downloads only what is missing, and leaves nothing behind."""
    hub.delay = 0.004
    code = """
        import shutil
        from pathlib import Path

        cache = Path(os.environ["HF_HOME"])
        start = time.monotonic()
        assert code(child()) == 0
        whole = time.monotonic() - start

        def files():
            return {str(file.relative_to(cache)): file.stat().st_size for file in cache.rglob("*")
                    if file.is_file() and ".locks" not in file.parts}

        clean, report = files(), []
        for moment in range(10):
            shutil.rmtree(cache)
            pid = child()
            time.sleep(whole * (moment + 0.3) / 12)
            os.kill(pid, signal.SIGKILL)
            killed = code(pid)
            left = sorted(files())
            report.append([killed, left, code(child()), files() == clean])
        print(json.dumps([whole, report]))
    """
    (whole, report), _ = forked(code, tmp_path / "home", hub)
    print(f"\n{whole:.2f} s undisturbed")
    for killed, left, again, same in report:
        print(killed, len(left), any("incomplete" in name for name in left))
        assert (again, same) == (0, True)
    assert sum(killed == -9 for killed, *_ in report) >= 5  # a busy machine makes the later moments too late
    assert any("incomplete" in name for _, left, *_ in report for name in left)


def test_two_processes_convert_once(hub, tmp_path):
    hub.delay = 0.002
    code = """
        print(json.dumps([code(pid) for pid in [child(), child(), child()]]))
    """
    codes, _ = forked(code, tmp_path / "home", hub)
    assert codes == [0, 0, 0]
    assert len(hub.downloads()) == len(set(hub.downloads())) > 0


def test_an_interrupted_download_resumes(hub, repositories, tmp_path):
    hub.delay = 0.02
    code = """
        pid = child()
        time.sleep(1.2)
        os.kill(pid, signal.SIGKILL)
        print(json.dumps([code(pid), code(child())]))
    """
    (killed, again), _ = forked(code, tmp_path / "home", hub)
    assert (killed, again) == (-9, 0)
    spans = [span for path, span in hub.spans if path.endswith(".ckpt")]
    assert any(span for span in spans), spans


def test_options_of_the_hub(hub, tmp_path):
    code = f"""
        import json, os
        from pathlib import Path
        from audiox_diffusers import AudioXPipeline
        from audiox_diffusers.pipelines.release_cache import find_model

        def error(**kwargs):
            try:
                find_model("audiox", **kwargs)
            except Exception as error:
                return f"{{type(error).__name__}}: {{error}}"

        found = {{"before": error(local_files_only=True), "token": error(), "revision": error(revision="none", token="secret")}}
        pipe = AudioXPipeline.from_pretrained("audiox", cache_dir="elsewhere", revision="other", token="secret")
        found["folders"] = sorted(str(path) for path in Path("elsewhere").glob("models--*/refs/*"))
        found["again"] = find_model("audiox", cache_dir="elsewhere", revision="other", local_files_only=True)
        found["commit"] = find_model("audiox", cache_dir="elsewhere", revision="{COMMIT}", local_files_only=True)
        found["main"] = error(cache_dir="elsewhere", local_files_only=True)
        print(json.dumps(found))
    """
    hub.token = "secret"
    found, _ = run(code, tmp_path / "home", hub)
    assert found["before"] == (
        "FileNotFoundError: HKUSTAudio/AudioX: no such file or folder, not in the cache, and `local_files_only` forbids"
        " downloads"
    )
    assert "HKUSTAudio/AudioX: no such file, folder, release or Hub repository" in found["token"]
    assert "no such revision" in found["revision"]
    assert found["folders"] == ["elsewhere/models--audiox_diffusers--audiox/refs/other"]
    assert found["again"] == found["commit"] == f"elsewhere/models--audiox_diffusers--audiox/snapshots/{COMMIT}"
    assert "local_files_only" in found["main"]


def test_downloads_of_the_user_are_used_and_kept(hub, tmp_path):
    code = """
        from huggingface_hub import snapshot_download
        from audiox_diffusers.pipelines.release_cache import find_model
        for repo in ("HKUSTAudio/AudioX", "google-t5/t5-base"):
            snapshot_download(repo)
        find_model("audiox")
    """
    run(code, tmp_path / "home", hub)
    assert len(hub.downloads()) == len(set(hub.downloads()))
    cache = tmp_path / "home" / "hub"
    assert (cache / "models--HKUSTAudio--AudioX" / "snapshots" / COMMIT / "model.ckpt").is_file()
    assert (cache / "models--audiox_diffusers--audiox" / "snapshots" / COMMIT / "model_index.json").is_file()


REFUSED = """
    import sys
    from audiox_diffusers.cli import main
    codes = [main(["generate", "--model", model, "--prompt", "rain", "--steps", "1", "-o", "x.wav"]) for model in MODELS]
    sys.exit(codes != [2] * len(codes))
"""


def refused(models, home, hub, prelude="", **environment):
    """Return the line that a command prints about each model."""
    code = textwrap.dedent(prelude) + textwrap.dedent(REFUSED).replace("MODELS", repr(models))
    process = start(code, home, hub, **environment)
    _, err = process.communicate(timeout=300)
    lines = [line for line in err.splitlines() if line.startswith("audiox: error: ")]
    assert process.returncode == 0 and len(lines) == len(models) and "Traceback" not in err, err
    assert not (home.parent / "x.wav").exists()
    return lines


def test_no_network(hub, tmp_path):
    models = ["audiox", "HKUSTAudio/AudioX-Turbo", "someone/else"]
    for line in refused(models[:2], tmp_path / "home", hub, HF_ENDPOINT="http://127.0.0.1:9"):
        assert "not in the cache, and the Hub cannot be reached" in line
    for model, line in zip(models, refused(models, tmp_path / "home", None)):
        assert "HF_HUB_OFFLINE forbids downloads" in line or model == "someone/else"


def test_no_space(hub, tmp_path):
    prelude = """
        import collections, shutil
        shutil.disk_usage = lambda path: collections.namedtuple("usage", "free")(5_000_000)
    """
    (line,) = refused(["audiox"], tmp_path / "home", hub, prelude)
    assert "needed, 0.0 GB free" in line and "Set HF_HOME or `cache_dir`" in line
    assert not hub.downloads()


@pytest.mark.parametrize("home", ["/proc/audiox", "file/home"])
def test_cache_that_cannot_be_written(hub, tmp_path, home):
    (tmp_path / "file").write_text("")
    (line,) = refused(["audiox"], tmp_path / "home", hub, HF_HOME=home)
    assert f"audiox: cannot be written to the cache {home}/hub" in line and "Set HF_HOME" in line


def test_truncated_download(hub, tmp_path):
    hub.cut = 200_000
    (line,) = refused(["audiox"], tmp_path / "home", hub)
    assert "HKUSTAudio/AudioX: the download failed" in line or "cannot be reached" in line
    hub.cut = 0
    assert run(ALL.replace("NAMES", "['audiox']"), tmp_path / "home", hub)[0]["audiox"] == expected("audiox")


def test_repositories_with_faults(hub, repositories, tmp_path):
    folders = {name: tmp_path / "repositories" / name for name in RELEASES[:3]}
    for folder in folders.values():
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(small_release("audiox")[0]))
    save(small_release("audiox-maf")[1], folders["audiox-maf"] / "model.ckpt")
    content = (repositories["HKUSTAudio/AudioX"] / "model.ckpt").read_bytes()
    (folders["audiox-maf-mmdit"] / "model.ckpt").write_bytes(content[: len(content) // 2])
    hub.repositories |= {REPOSITORIES[name]: folder for name, folder in folders.items()}
    del hub.repositories["HKUSTAudio/AudioX-Turbo"]
    lines = refused(list(RELEASES), tmp_path / "home", hub)
    assert "HKUSTAudio/AudioX: no released checkpoint in this Hub repository. Expected model.safetensors" in lines[0]
    assert "found config.json" in lines[0]
    assert "of another release than `config`: conditioner.conditioners.audio_prompt.empty_audio_feat" in lines[1]
    assert "model.ckpt: not a checkpoint, or damaged" in lines[2]
    assert "HKUSTAudio/AudioX-Turbo: no such file, folder, release or Hub repository" in lines[3]
    assert not list((tmp_path / "home" / "hub").rglob("model_index.json"))


def test_a_mirror_on_the_hub_makes_a_sound(hub, repositories, tmp_path):
    """A repository with a released checkpoint under another name, and a folder of one."""
    hub.repositories = {**repositories, "someone/audiox-mirror": repositories["HKUSTAudio/AudioX-MAF"]}
    code = f"""
        from audiox_diffusers.cli import main
        for model in ("someone/audiox-mirror", {str(repositories["HKUSTAudio/AudioX-Turbo"])!r}):
            assert main(["generate", "--model", model, "--prompt", "rain", "--steps", "1", "-o", "x.wav"]) == 0
        print("null")
    """
    run(code, tmp_path / "home", hub)
    assert Path(tmp_path / "x.wav").stat().st_size > 700


def test_auto_pipeline(hub, tmp_path):
    code = """
        import audiox_diffusers
        from diffusers import AutoPipelineForText2Audio
        pipe = AutoPipelineForText2Audio.from_pretrained("audiox-turbo")
        print(pipe.config.default_num_inference_steps if type(pipe).__name__ == "AudioXPipeline" else None)
    """
    assert run(code, tmp_path / "home", hub)[0] == 4


def test_diffusers_cli(hub, tmp_path):
    code = """
        import sys
        import audiox_diffusers
        from diffusers.commands.diffusers_cli import main
        sys.argv = ["diffusers-cli", "--format", "json", "schema", "--model", "audiox"]
        main()
    """
    process = start(code, tmp_path / "home", hub)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-2000:]
    assert "audio_length_in_s" in out and "guidance_scale" in out
