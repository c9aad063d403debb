"""Which column a media file belongs to, judging by its extension."""

from pathlib import PurePosixPath

EXTENSIONS = {
    "audio": (
        ".aac .aif .aiff .amr .au .caf .flac .m4a .mka .mp2 .mp3 .oga .ogg .opus .rf64 .voc .w64 .wav .weba .wma .wv"
    ),
    "video": (
        ".3g2 .3gp .asf .avi .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogm .ogv .ts .vob .webm .wmv"
    ),
    "image": ".avif .bmp .jpeg .jpg .png .tif .tiff .webp",
}
KINDS = {extension: kind for kind, extensions in EXTENSIONS.items() for extension in extensions.split()}


def kind_of(name: str) -> str:
    """Return the column for a media file. Unknown extensions count as audio."""
    return KINDS.get(PurePosixPath(name).suffix.lower(), "audio")
