"""
Measure `audiox serve` under load, beside `audiox generate --batch` with the same lines.

    python benchmarks/serving_load.py [--clients 1 4 16 64] [--requests 64] [--length 2] [--steps 10] [--rounds 3]

Each client sends its next request when it has the answer to the last. Every run of the clients follows a run of the command,
without its start, with as large batches as so many clients allow: up to 8 sounds, the server's limit. The table has the medians over the rounds. A ratio above 1 means that
the server is faster, or takes less CPU time, which is more reliable on a machine that is busy otherwise. The sounds of one
client must be equal to the bit to those of the command with a batch size of 1, and those of many clients equal to within
1e-4. Then 1,000 requests of one step and half a second follow, with the server's memory after each 100.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import psutil
from common import create_parser

WORDS = ("rain", "a bell", "a bird singing", "two drum beats", "a siren", "an engine", "three claps", "a beep")
AUDIOX = [sys.executable, "-m", "audiox_diffusers"]
BATCH = 8


def lines_of(args) -> list[dict]:
    """Return the requests, as lines of a batch."""
    return [
        {"prompt": WORDS[number % len(WORDS)], "seed": number, "length": args.length}
        for number in range(args.requests)
    ]


def samples(data: bytes) -> np.ndarray:
    """Return the samples of a WAV file, in -1..1."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        with wave.open(file.name) as sound:
            return np.frombuffer(sound.readframes(2**30), "<i2") / 32768


def run_command(lines: list[dict], steps: int, batch_size: int) -> tuple[float, float, list[bytes]]:
    """Run `audiox generate --batch`. Return the elapsed and the CPU seconds per sound after the first batch, and the files."""
    with tempfile.TemporaryDirectory() as folder:
        file, output = Path(folder, "lines.jsonl"), Path(folder, "sounds")
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        command = ["generate", "--batch", file, "--batch-size", batch_size, "--steps", steps, "--output", output]
        process = subprocess.Popen(
            [*AUDIOX, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        times = [now(process.pid) for line in process.stdout if line.startswith("wrote /")]
        assert process.wait() == 0 and len(times) == len(lines)
        elapsed, used = (times[-1] - times[batch_size - 1]) / (len(lines) - batch_size)
        return elapsed, used, [path.read_bytes() for path in sorted(output.iterdir())]


def now(process: int) -> np.ndarray:
    """Return the time, and the CPU seconds of a process so far."""
    return np.array([time.perf_counter(), sum(psutil.Process(process).cpu_times()[:2])])


@contextmanager
def run_server() -> Iterator[tuple[str, int]]:
    """Run `audiox serve` and yield its address and process."""
    command = [*AUDIOX, "serve", "--port", "0", "--max-queue", "128", "--max-batch", str(BATCH)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        address = urlsplit(re.search(r"http://\S+", server.stdout.readline())[0]).netloc
        while ask(HTTPConnection(address), "GET", "/ready")[0] != 200:
            time.sleep(0.1)
        yield address, server.pid
    finally:
        server.terminate()
        server.wait()


def ask(connection: HTTPConnection, method: str, path: str, body: dict | None = None) -> tuple[int, bytes]:
    """Send a request. Return the status and the body of the response."""
    headers = {} if body is None else {"Content-Type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    response = connection.getresponse()
    return response.status, response.read()


def run_clients(address: str, bodies: list[dict], clients: int) -> tuple[list[float], list[bytes]]:
    """Send all requests. Return the seconds of each, and the sounds."""
    waiting, seconds, sounds = iter(range(len(bodies))), [0.0] * len(bodies), [b""] * len(bodies)
    lock = threading.Lock()

    def run() -> None:
        connection = HTTPConnection(address, timeout=600)
        while True:
            with lock:
                number = next(waiting, None)
            if number is None:
                connection.close()
                return
            start = time.perf_counter()
            status, sounds[number] = ask(connection, "POST", "/v1/audio/generate", bodies[number])
            assert status == 200, sounds[number]
            seconds[number] = time.perf_counter() - start

    threads = [threading.Thread(target=run) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, sounds


def largest_difference(first: list[bytes], second: list[bytes]) -> float:
    return max(float(np.abs(samples(a) - samples(b)).max()) for a, b in zip(first, second, strict=True))


def resident_megabytes(address: str) -> float:
    text = ask(HTTPConnection(address), "GET", "/metrics")[1].decode()
    return float(re.search(r"^audiox_memory_bytes (\S+)", text, re.MULTILINE)[1]) / 1e6


def main() -> None:
    parser = create_parser(__doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--requests", type=int, default=64, help="requests per run, more than 8 (default: 64)")
    parser.add_argument("--length", type=float, default=2.0, help="seconds of each sound (default: 2)")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    parser.add_argument("--memory", type=int, default=1000, metavar="N", help="requests of the memory test")
    args = parser.parse_args()
    lines = lines_of(args)
    bodies = [
        {
            "input": line["prompt"],
            "seed": line["seed"],
            "audio_length": line["length"],
            "num_inference_steps": args.steps,
        }
        for line in lines
    ]

    expected = run_command(lines, args.steps, 1)[2]
    ratios, latencies, sounds = defaultdict(list), defaultdict(list), {}
    with run_server() as (address, server):
        run_clients(address, bodies[: 2 * BATCH], BATCH)  # a warm-up
        for _ in range(args.rounds):
            for count in args.clients:
                command = run_command(lines, args.steps, min(count, BATCH))[:2]
                start = now(server)
                took, sounds[count] = run_clients(address, bodies, count)
                own = (now(server) - start) / len(bodies)
                ratios[count].append((60 / own[0], 60 / command[0], command[0] / own[0], command[1] / own[1]))
                latencies[count] += took
        print(
            f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads, {args.requests} requests of {args.length:g} s,"
            f" {args.steps} steps, {args.rounds} rounds\n"
        )
        print("| clients | requests per minute | command | ratio | CPU ratio | p50 | p95 | difference |")
        print("|---" * 8 + "|")
        for count in args.clients:
            rate, reference, ratio, cpu_ratio = np.median(ratios[count], axis=0)
            p50, p95 = np.percentile(latencies[count], [50, 95])
            same = sounds[count] == expected
            difference = "none" if same else f"{largest_difference(sounds[count], expected):.0e}"
            print(
                f"| {count} | {rate:.0f} | {reference:.0f} | {ratio:.2f} | {cpu_ratio:.2f} | {p50:.2f} s | {p95:.2f} s"
                f" | {difference} |"
            )

        if args.memory:
            body = {"input": "rain", "audio_length": 0.5, "num_inference_steps": 1}
            sizes = []
            for _ in range(args.memory // 100):
                run_clients(address, [body] * 100, 8)
                sizes.append(resident_megabytes(address))
            shown = ", ".join(f"{size:.0f}" for size in sizes)
            growth = statistics.mean(sizes[-3:]) - statistics.mean(sizes[1:4])
            print(f"\nMB of memory after each 100 of {args.memory} requests: {shown}; growth {growth:.0f}")


if __name__ == "__main__":
    main()
