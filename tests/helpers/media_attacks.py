"""Paths and files that make naive readers open other files, start programs or reach the network."""

import re
from collections.abc import Callable
from pathlib import Path

from media_samples import write_sample

# Paths that FFmpeg would take for one of its protocols. SECRET stands for another media file, PORT for a local server.
NAMES = (
    "http://127.0.0.1:PORT/clip.mp4",
    "http:127.0.0.1:PORT.mp4",
    "https://127.0.0.1:PORT/clip.mp4",
    "ftp://127.0.0.1:PORT/clip.mp4",
    "tcp://127.0.0.1:PORT",
    "udp://127.0.0.1:PORT",
    "rtmp://127.0.0.1:PORT/live",
    "rtsp://127.0.0.1:PORT/live",
    "hls+http://127.0.0.1:PORT/list.m3u8",
    "file:SECRET",
    "concat:SECRET|SECRET",
    "concatf:list.txt",
    "subfile,,start,0,end,0,,:SECRET",
    "cache:SECRET",
    "async:SECRET",
    "crypto:SECRET",
    "data:audio/wav;base64,UklGRg==",
    "pipe:0",
    "fd:0",
    "lavfi:sine",
    "tee:SECRET",
)

# file name: contents, in which SECRET and PORT are replaced.
FILES = {
    "clip.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://SECRET\n#EXT-X-ENDLIST\n",
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:PORT/a.ts\n#EXT-X-ENDLIST\n",
    "list.m3u": "#EXTM3U\nSECRET\n",
    "list.txt": "file 'SECRET'\n",
    "concat.mp4": "ffconcat version 1.0\nfile SECRET\n",
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video PORT RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "manifest.mpd": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
    'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>file://SECRET</BaseURL></Representation>'
    "</AdaptationSet></Period></MPD>\n",
    "list.pls": "[playlist]\nFile1=SECRET\nNumberOfEntries=1\n",
    "list.xspf": '<?xml version="1.0"?>\n<playlist><trackList><track><location>file://SECRET</location></track></trackList>'
    "</playlist>\n",
    "list.asx": '<asx version="3.0"><entry><ref href="http://127.0.0.1:PORT/a.asf"/></entry></asx>\n',
    "list.ram": "http://127.0.0.1:PORT/a.rm\n",
    "script.avs": 'DirectShowSource("SECRET")\n',
    "script.vpy": "import os\nos.system('touch started')\n",
    "graph.lavfi": "movie=SECRET\n",
    "subtitles.idx": "# VobSub index file, v7 (do not modify this line!)\nsize: 64x48\nid: en, index: 0\n",
    "subtitles.srt": "1\n00:00:00,000 --> 00:00:01,000\nSECRET\n",
    "meta.txt": ";FFMETADATA1\ntitle=SECRET\n",
    "words.txt": "words\n" * 200,
    "page.html": '<html><video src="SECRET"></video></html>\n',
    "drawing.svg": '<svg xmlns="http://www.w3.org/2000/svg"><image href="SECRET" width="9" height="9"/></svg>\n',
    "drawing.eps": "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{ } loop\n%%EOF\n",
    "page.pdf": "%PDF-1.4\n1 0 obj\n<< /Type /Catalog >>\nendobj\n%%EOF\n",
    "cue.cue": 'FILE "SECRET" WAVE\n  TRACK 01 AUDIO\n    INDEX 01 00:00:00\n',
}


def write_attacks(folder: Path, port: int) -> tuple[Path, dict[str, str], dict[str, Path]]:
    """
    Write everything into a folder.

    Returns:
        `(secret, names, files)`: a media file that must not be opened, the paths of `NAMES`, and the files of `FILES`.
    """
    secret = write_sample(folder / "secret.mp4")

    def fill(text: str) -> str:
        return text.replace("SECRET", str(secret)).replace("PORT", str(port))

    files = {}
    for name, contents in FILES.items():
        files[name] = folder / name
        files[name].write_text(fill(contents))
    files["reference.mov"] = folder / "reference.mov"
    files["reference.mov"].write_bytes(with_external_data(write_sample(folder / "plain.mov").read_bytes(), secret))
    (folder / "plain.mov").unlink()
    return secret, {name: fill(name) for name in NAMES}, files


def with_external_data(movie: bytes, target: Path) -> bytes:
    """Return a QuickTime movie whose tracks say that their data is in another file."""
    entry = b"url " + bytes(4) + f"file://{target}".encode() + b"\0"
    entry = (len(entry) + 4).to_bytes(4, "big") + entry
    return _rewrite(movie, lambda kind, body: body[:8] + entry if kind == b"dref" else None)


def _rewrite(data: bytes, change: Callable[[bytes, bytes], bytes | None]) -> bytes:
    """Copy boxes of a QuickTime file, with the bodies that `change` returns."""
    result, at = b"", 0
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + size]
        if re.fullmatch(rb"moov|trak|mdia|minf|dinf", kind):
            body = _rewrite(body, change)
        changed = change(kind, body)
        body = body if changed is None else changed
        result += (len(body) + 8).to_bytes(4, "big") + kind + body
        at += size
    return result + data[at:]
