"""
Write the pipeline that audiox-tiny is trained from:

    python training/audiox_tiny/make_model.py base --data data.parquet --vae vae/both/vae

It has a trained VAE, a tokenizer, a T5 and a CLIP trained here, and a conditioner and a transformer with random weights,
except for the position code of `positions.py`.

T5 is trained to predict for each token of a caption the class of its phrase, the number of events in the phrase, the
index of the first of them in the scene, and the number of events in the scene. CLIP is trained to predict the shapes in a
picture and the brightness of an impact's flash. The heads are discarded.
"""

import argparse
import math
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn as nn
import torch.nn.functional as F
from positions import HERE, READING_BLOCKS, WAVES, build_in_positions, waves
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from audiox_diffusers import AudioXPipeline
from audiox_diffusers.bench.classifier import CLASSES
from audiox_diffusers.media import resize_frames
from audiox_diffusers.models import AudioXAutoencoderOobleck, AudioXConditioner, AudioXTransformer2DModel
from audiox_diffusers.pipelines.prompts import VIDEO_PROMPT
from audiox_diffusers.scenes import IMPACTS, Scene, random_scene, scene_seed
from audiox_diffusers.scenes.pictures import flash
from audiox_diffusers.schedulers import AudioXDPMSolverSDEScheduler
from audiox_diffusers.training.objective import objective_for

SECONDS = 4.0
SEED = 1_000_000  # of the scenes that the encoders are trained on

VIDEO_FPS = 20.0
NUM_VIDEO_FRAMES = 80
NUM_TEXT_TOKENS = 40
VOCABULARY = 1024
# Equal to the number of frame tokens, so that the conditioner's reshapes do not mix tokens.
WIDTH = 2 * NUM_VIDEO_FRAMES
PICTURE = 32


def train_tokenizer(captions: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level, lowercasing BPE on captions. Texts end with `</s>`, as in T5."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        captions,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<pad>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", model_max_length=NUM_TEXT_TOKENS
    )


def phrases(scene: Scene) -> list[tuple[int, int, int, int]]:
    """Return class, number of events, index of the first event and total number of events for each phrase."""
    rows: list[list[int]] = []
    for index, event in enumerate(scene.events):
        name = CLASSES.index(event.sound)
        if rows and rows[-1][0] == name:
            rows[-1][1] += 1
        else:
            rows.append([name, 1, index, len(scene.events)])
    return [tuple(row) for row in rows]


def token_targets(tokenizer: PreTrainedTokenizerFast, scenes: list[Scene]) -> tuple[torch.Tensor, ...]:
    """Return tokens and mask `[B, N]`, and the [`phrases`] of each token as targets `[B, N, 4]`, -100 for padding."""
    captions = [scene.caption() for scene in scenes]
    batch = tokenizer(
        captions,
        padding="max_length",
        max_length=NUM_TEXT_TOKENS,
        truncation=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    targets = torch.full((*batch.input_ids.shape, 4), -100)
    for row, (scene, caption) in enumerate(zip(scenes, captions, strict=True)):
        answers = phrases(scene)
        for position in range(int(batch.attention_mask[row].sum())):
            phrase = caption[: int(batch.offset_mapping[row, position, 1])].count(", then ")
            targets[row, position] = torch.tensor(answers[min(phrase, len(answers) - 1)])
    return batch.input_ids, batch.attention_mask, targets


def train_text_encoder(tokenizer: PreTrainedTokenizerFast, steps: int) -> T5EncoderModel:
    encoder = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=40, d_ff=2 * WIDTH, num_layers=2, num_heads=4)
    )
    heads = nn.Linear(WIDTH, 4 * 9)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *heads.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        scenes = [random_scene(scene_seed(SEED, 64 * step + index), SECONDS, max_events=8) for index in range(64)]
        tokens, mask, targets = token_targets(tokenizer, scenes)
        logits = heads(encoder(tokens, attention_mask=mask).last_hidden_state).unflatten(-1, (4, 9))
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            known = targets != -100
            right = (logits.argmax(-1) == targets)[known].float().mean()
            print(f"text encoder: step {step + 1}, loss {loss.item():.4f}, accuracy {right:.4f}", flush=True)
    return encoder


def draw_pictures(count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Return frames and stills of scenes, uint8 `[N, 3, 32, 32]`, their shapes as 0 or 1, `[N, 8]`, and the opacity of
    impacts from 0 to 1, `[N]`.
    """
    pictures, shapes, flashes = [], [], []
    for index in range(count):
        scene = random_scene(scene_seed(SEED + 1, index), SECONDS)
        frames = scene.frames(VIDEO_FPS)
        shown, bright = torch.zeros(len(frames) + 1, len(CLASSES)), torch.zeros(len(frames) + 1)
        for event in scene.events:
            first = math.ceil(event.start * VIDEO_FPS - 1e-6)
            last = min(math.ceil((event.start + event.duration) * VIDEO_FPS - 1e-6), len(frames))
            shown[first:last, CLASSES.index(event.sound)] = 1
            shown[-1, CLASSES.index(event.sound)] = 1
            if event.sound in IMPACTS:
                opacities = [flash(max(0, frame / VIDEO_FPS - event.start)) for frame in range(first, last)]
                bright[first:last] = torch.tensor(opacities)
        stack = torch.from_numpy(frames).permute(0, 3, 1, 2)
        still = torch.from_numpy(scene.picture()).permute(2, 0, 1)[None]
        pictures.append((resize_frames(torch.cat((stack, still)), (PICTURE, PICTURE)) * 255).byte())
        shapes.append(shown)
        flashes.append(bright)
    return torch.cat(pictures), torch.cat(shapes), torch.cat(flashes)


def train_image_encoder(scenes: int, steps: int) -> CLIPVisionModelWithProjection:
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=PICTURE,
            patch_size=PICTURE,
            projection_dim=WIDTH,
        )
    )
    pictures, shapes, flashes = draw_pictures(scenes)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    # The transformer sees the tokens after a layer norm. Both tokens of a frame should hold all information.
    head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(CLASSES) + 1))
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    for step in range(steps):
        chosen = torch.randint(len(pictures), (256,))
        pixels = pictures[chosen].float() / 255
        # Video codecs blur and shift colours slightly.
        pixels = (pixels + 0.02 * torch.randn(len(chosen), 3, 1, 1) + 0.01 * torch.randn_like(pixels)).clamp(0, 1)
        output = head(encoder((pixels - mean) / std).last_hidden_state)
        targets = shapes[chosen, None].expand(-1, 2, -1)
        loss = F.binary_cross_entropy_with_logits(output[..., :-1], targets)
        loss = loss + F.mse_loss(output[..., -1], flashes[chosen, None].expand(-1, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            right = ((output[..., :-1] > 0) == (targets > 0)).all(-1).float().mean()
            print(f"image encoder: step {step + 1}, loss {loss.item():.4f}, accuracy {right:.4f}", flush=True)
    return encoder


def create_transformer(sample_size: int, in_channels: int) -> AudioXTransformer2DModel:
    """Create a transformer with random weights for `sample_size` latent frames."""
    return AudioXTransformer2DModel(
        sample_size=sample_size,
        in_channels=in_channels,
        num_layers=6,
        attention_head_dim=48,
        num_attention_heads=4,
        num_key_value_attention_heads=2,
        cross_attention_input_dim=WIDTH,
        cross_attention_dim=WIDTH,
        time_proj_dim=128,
        ff_mult=2,
    )


@torch.no_grad()
def strengthen_context(transformer: AudioXTransformer2DModel) -> None:
    """
    Scale up the path of the context.

    With PyTorch's initialization only a twentieth of the context passes the layers. A caption fills about five of its 300
    tokens, and attention to them is almost uniform.
    """
    transformer.context_embed.linear_1.weight *= 2
    transformer.context_embed.linear_2.weight *= 4
    for block in transformer.transformer_blocks:
        block.attn2.to_q.weight *= 2
        block.attn2.to_k.weight *= 3


def fit(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the least-squares linear map `[D, W]` from inputs `[B, N, D]` to outputs `[N, W]`."""
    inputs, outputs = inputs.flatten(0, 1), outputs.repeat(len(inputs), 1)
    return torch.linalg.solve(inputs.T @ inputs + torch.eye(inputs.shape[1]), inputs.T @ outputs)


@torch.no_grad()
def attend_to_own_frames(pipe: AudioXPipeline, scenes: int = 48) -> None:
    """
    Initialize the first head of cross-attention in the middle blocks so that each latent frame attends to the video
    frames of its time. Queries are the waves of `positions`; keys are the same waves, predicted from the context of
    videos by least squares.
    """
    transformer, vae = pipe.transformer, pipe.vae
    chosen = [random_scene(scene_seed(SEED + 2, index), SECONDS) for index in range(scenes)]
    videos = [torch.from_numpy(scene.frames(VIDEO_FPS)).permute(0, 3, 1, 2) for scene in chosen]
    embeds = torch.stack([pipe.embed_frames(resize_frames(video, (PICTURE, PICTURE))) for video in videos])
    sounds = torch.stack([torch.from_numpy(scene.audio(vae.config.sampling_rate)) for scene in chosen])
    latents = vae.encode(sounds).latent_dist.mean
    latent_rate = vae.config.sampling_rate / vae.hop_length

    normed: list[torch.Tensor] = []
    blocks = transformer.transformer_blocks[READING_BLOCKS]
    hooks = [block.norm2.register_forward_hook(lambda _, __, output: normed.append(output[:, 1:])) for block in blocks]
    time = torch.linspace(0.3, 1, scenes)
    noised = objective_for(pipe.scheduler).add_noise(latents, torch.randn_like(latents), time)
    context = pipe.conditioner(video_embeds=embeds).condition_embeds
    transformer(noised, time, context)
    for hook in hooks:
        hook.remove()

    latent_waves = waves((torch.arange(latents.shape[2]) + 0.5) / latent_rate, latent_rate, transformer.rotary_dim)
    frame_waves = waves(torch.arange(NUM_VIDEO_FRAMES) / VIDEO_FPS, latent_rate, transformer.rotary_dim)
    frame_waves = frame_waves.repeat_interleave(2, dim=0)
    keys = fit(transformer.context_embed(context)[:, : len(frame_waves)], frame_waves)
    for block, hidden_states in zip(blocks, normed, strict=True):
        attn = block.attn2
        # Each pair of matching waves adds 15 to the logits.
        strength = math.sqrt(15 * math.sqrt(attn.head_dim))
        attn.to_q.weight[: attn.head_dim] = 0
        attn.to_q.weight[:WAVES, HERE:] = strength * fit(hidden_states[..., HERE:], latent_waves).T
        attn.to_k.weight[:WAVES] = strength * keys.T


@torch.no_grad()
def assemble(
    vae: AudioXAutoencoderOobleck,
    text_encoder: T5EncoderModel,
    tokenizer: PreTrainedTokenizerFast,
    image_encoder: CLIPVisionModelWithProjection,
) -> AudioXPipeline:
    """Create the pipeline, with an untrained conditioner and transformer."""
    latents = round(SECONDS * vae.config.sampling_rate / vae.hop_length)
    conditioner = AudioXConditioner(
        condition_dim=WIDTH,
        num_text_tokens=NUM_TEXT_TOKENS,
        num_video_frames=NUM_VIDEO_FRAMES,
        num_frame_tokens=2,
        num_video_tokens=2 * NUM_VIDEO_FRAMES,
        num_temporal_layers=1,
        num_temporal_heads=2,
        video_fps=VIDEO_FPS,
        latent_channels=vae.config.decoder_input_channels,
        num_audio_latents=latents,
        audio_prompt_samples=latents * vae.hop_length,
    )
    # Frame positions are easier to learn from sinusoids of all lengths.
    frame, wave = torch.arange(NUM_VIDEO_FRAMES)[:, None], torch.arange(WIDTH // 2)
    angles = frame * math.pi / NUM_VIDEO_FRAMES ** (wave / (WIDTH // 2))
    conditioner.video_proj.temporal_embedding.copy_(torch.cat((angles.sin(), angles.cos()), dim=1)[None])
    transformer = create_transformer(latents, vae.config.decoder_input_channels)
    build_in_positions(transformer)
    strengthen_context(transformer)
    pipe = AudioXPipeline(
        transformer=transformer,
        conditioner=conditioner,
        vae=vae,
        scheduler=AudioXDPMSolverSDEScheduler(sigma_min=0.03, sigma_max=100.0, eta=0.0),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        image_encoder=image_encoder,
        default_num_inference_steps=25,
        default_guidance_scale=3.0,
    )
    attend_to_own_frames(pipe)
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Write the pipeline that audiox-tiny is trained from.", allow_abbrev=False
    )
    parser.add_argument("output", type=Path, help="folder to write the pipeline to")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="file that make_data.py wrote; the tokenizer is trained on its captions",
    )
    parser.add_argument("--vae", type=Path, required=True, help="folder of the trained VAE")
    parser.add_argument("--text_steps", type=int, default=1500)
    parser.add_argument("--image_scenes", type=int, default=1000)
    parser.add_argument("--image_steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    started = time.perf_counter()
    vae = AudioXAutoencoderOobleck.from_pretrained(args.vae)
    captions = [text for text in pq.read_table(args.data, columns=["caption"])["caption"].to_pylist() if text]
    tokenizer = train_tokenizer([*captions, VIDEO_PROMPT])
    text_encoder = train_text_encoder(tokenizer, args.text_steps)
    image_encoder = train_image_encoder(args.image_scenes, args.image_steps)
    pipe = assemble(vae, text_encoder, tokenizer, image_encoder)
    pipe.save_pretrained(args.output)
    print(f"wrote {args.output} after {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
