"""Encoding of decoded pieces into a latent cache. [`latent_cache`] describes its layout."""

import torch

from .cache_files import PartWriter, distinct_texts, save_facts
from .cache_pieces import Piece, SoundPiece, VideoPiece
from .decoding import Pictures
from .encoding import RecordEncoder


@torch.no_grad()
def write_piece(piece: Piece, writer: PartWriter, encoder: RecordEncoder) -> None:
    """Encode a piece of a row, and add it to the row's part."""
    kind, content = piece.kind, piece.content
    if kind == "row":
        writer.start(facts=None if content is None else save_facts(content), broken={})
        for text in () if content is None else distinct_texts(content.captions):
            writer.add("text", _without_padding(encoder.texts([text])[0]))
    elif kind == "error":
        writer.fail(content)
    elif kind == "broken":
        name, reason = content
        writer.entries[-1]["broken"][name] = reason
    elif kind == "sound":
        _write_sound(content, writer, encoder)
    elif kind == "video":
        _write_video(content, writer, encoder)
    elif kind == "image":
        _write_image(content, writer, encoder)
    elif kind == "audio_prompt":
        prompt = content if encoder.reads_waveforms else torch.cat(encoder.prompt_latents(content))
        writer.add("audio_prompt", prompt.T)


def _without_padding(embeds: torch.Tensor) -> torch.Tensor:
    """Leave out the rows of zeros at the end."""
    used = embeds.any(1).nonzero()
    return embeds[: int(used[-1]) + 1 if len(used) else 1]


def _write_sound(piece: SoundPiece, writer: PartWriter, encoder: RecordEncoder) -> None:
    hop = encoder.spec.hop_length
    latents = torch.cat(encoder.posterior(piece.samples[None]), dim=1)[0]
    writer.add("latents", latents[:, piece.first : piece.stop].T)
    own = piece.samples[:, piece.first * hop : piece.stop * hop]
    writer.add("peaks", own.unflatten(1, (-1, hop)).abs().amax((0, 2)))
    if encoder.reads_waveforms:
        writer.add("waveform", piece.samples[:, piece.first * hop : piece.end].T)


def _write_video(piece: VideoPiece, writer: PartWriter, encoder: RecordEncoder) -> None:
    spec, frames = encoder.spec, piece.pictures.frames
    embeds = [encoder.frames(Pictures(batch, None))[: len(batch)] for batch in frames.split(encoder.spec.num_frames)]
    writer.add("frames", torch.cat(embeds))
    writer.add("lit", frames.flatten(1).any(1))
    frames = piece.pictures.sync_frames
    if frames is None:
        return
    # As many frames as whole windows of segments have.
    windows = -(-piece.num_segments // spec.num_sync_segments)
    stride = spec.num_sync_segments * spec.sync_stride
    missing = (windows - 1) * stride + spec.num_sync_frames - len(frames)
    frames = torch.cat((frames, frames[-1:].expand(max(0, missing), -1, -1, -1)))
    segments = [
        encoder.sync_frames(Pictures(frames, frames[first : first + spec.num_sync_frames]))
        for first in range(0, windows * stride, stride)
    ]
    segments = torch.cat(segments).unflatten(0, (windows * spec.num_sync_segments, -1))
    writer.add("sync", segments[: piece.num_segments])


def _write_image(pictures: Pictures, writer: PartWriter, encoder: RecordEncoder) -> None:
    """Write the first of the equal frames and segments."""
    writer.add("image", encoder.frames(pictures)[:1])
    sync = encoder.sync_frames(pictures)
    if sync is not None:
        writer.add("image_sync", sync[: len(sync) // encoder.spec.num_sync_segments])
