"""Tiny random checkpoints in the real diffusers layouts, for tests."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ConfigMixin,
    DDIMScheduler,
    DDPMScheduler,
    ModelMixin,
    ScoreSdeVeScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.loaders.single_file_utils import LDM_UNET_KEY, convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sjc_engine.priors.families.mvdream import ldm_config
from sjc_engine.priors.loading.expected_weights import LAYOUTS
from sjc_engine.priors.sources import BUILTINS

WIDTH = 16

# A scene for them
SMALL = {
    "steps": 6,
    "grid_size": 8,
    "render_size": 8,
    "ray_step": 0.1,
    "half_length": 0.7,
    "views_per_step": 2,
}


def build_pixel_prior(
    folder: Path, prediction: str = "epsilon", labels: int | None = None, **schedule: object
) -> Path:
    """The toybox's layout: 8 x 8 RGB pixels, unshuffled to 12 x 4 x 4, no VAE.

    With two `labels`, images of 16 x 16 and 8 x 8.
    """
    side = 4 * (labels or 1)
    _build(folder, 12, unet_size=side, prediction=prediction, labels=labels, **schedule)
    _write_index(folder, has_vae=False)
    return folder


def build_latent_prior(folder: Path, prediction: str = "epsilon", **schedule: object) -> Path:
    """Stable Diffusion's layout: 8 x 8 latents of 4 channels, decoded to 16 x 16 RGB."""
    _build(folder, unet_channels=4, unet_size=8, prediction=prediction, **schedule)
    _build_vae(folder)
    _write_index(folder, has_vae=True)
    return folder


def _build_vae(folder: Path) -> None:
    torch.manual_seed(1)
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae", safe_serialization=True)


class CCProjection(ModelMixin, ConfigMixin):
    """As the community pipeline has it: its sizes are not among the settings that it saves."""

    config_name = "config.json"

    def __init__(self, in_channel: int = 772, out_channel: int = 768) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(in_channel, out_channel)


class CLIPCameraProjection(ModelMixin, ConfigMixin):
    """As threestudio's Zero123Pipeline has it."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, embedding_dim: int = 768, additional_embeddings: int = 4) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(embedding_dim + additional_embeddings, embedding_dim)


def save_image_encoder(folder: Path, image_size: int, patch_size: int) -> None:
    """Zero-1-to-3's view of its picture: CLIP's, as wide as the real one and one layer deep."""
    CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=image_size,
            patch_size=patch_size,
            projection_dim=768,
        )
    ).save_pretrained(folder / "image_encoder")


def build_zero123_prior(folder: Path, pipeline: str = "Zero1to3StableDiffusionPipeline") -> Path:
    """The layout of kxic/zero123-*: 8 x 8 latents of 16 x 16 RGB, CLIP's 768 numbers, one token.

    pipeline: "Zero123Pipeline" for the layout of bennyguo/zero123-* and ashawkey/*zero123-*.
    """
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=4,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=768,
        attention_head_dim=4,
        norm_num_groups=4,
    ).save_pretrained(folder / "unet", safe_serialization=True)
    _build_vae(folder)
    save_image_encoder(folder, image_size=12, patch_size=4)
    unified = pipeline == "Zero123Pipeline"
    name = "clip_camera_projection" if unified else "cc_projection"
    projection = CLIPCameraProjection() if unified else CCProjection()
    projection.save_pretrained(folder / name, safe_serialization=True)
    DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ).save_pretrained(folder / "scheduler")
    (folder / "feature_extractor").mkdir()
    settings = {"crop_size": 12, "size": 12, "resample": 3, "do_center_crop": True}
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(json.dumps(settings))
    index = {
        "_class_name": pipeline,
        name: ["zero123" if unified else "pipeline_zero1to3", type(projection).__name__],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# MVDream's network, small. It normalises in 32 groups; groups of one channel would not let any
# embedding through, so that a level has two.
MVDREAM: dict[str, object] = {
    "attention_resolutions": [1],
    "camera_dim": 16,
    "channel_mult": [1, 2],
    "context_dim": WIDTH,
    "image_size": 8,
    "in_channels": 4,
    "model_channels": 32,
    "num_head_channels": 16,
    "num_res_blocks": 1,
    "out_channels": 4,
    "transformer_depth": 1,
}


def mvdream_weights(config: dict[str, object] = MVDREAM) -> dict[str, torch.Tensor]:
    """Random weights of MVDream's network, in LDM's names."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**ldm_config(config))
    ldm = {
        LDM_UNET_KEY + name.replace("camera_embed.", "label_emb.0."): name
        for name in LAYOUTS["MultiViewUNetModel"](config)
    }
    names = convert_ldm_unet_checkpoint(ldm, unet.config)
    return {names[name]: weight.clone() for name, weight in unet.state_dict().items()}


def build_mvdream_prior(
    folder: Path, config: dict[str, object] = MVDREAM, weights: object = None
) -> Path:
    """The layout of ashawkey/mvdream-*: 8 x 8 latents, a network in the published names."""
    build_latent_prior(folder)
    shutil.rmtree(folder / "unet")
    (folder / "unet").mkdir()
    settings = {"_class_name": "MultiViewUNetModel", "_diffusers_version": "0.25.0", **config}
    (folder / "unet" / "config.json").write_text(json.dumps(settings))
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(weights or mvdream_weights(config), path)
    index = {
        "_class_name": "MVDreamPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["mv_unet", "MultiViewUNetModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def build_diffusers_mvdream_prior(folder: Path) -> Path:
    """The same model in the layout of lzq49/mvdream-*: the camera's embedding by itself."""
    build_mvdream_prior(folder)
    weights = mvdream_weights()
    shutil.rmtree(folder / "unet")
    config = ldm_config(MVDREAM)
    del config["class_embed_type"], config["projection_class_embeddings_input_dim"]
    unet = UNet2DConditionModel(**config)
    ldm = {LDM_UNET_KEY + name: weight for name, weight in weights.items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(ldm, unet.config))
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    embedding = {
        f"linear_{number}.{kind}": weights[f"camera_embed.{place}.{kind}"]
        for number, place in ((1, 0), (2, 2))
        for kind in ("weight", "bias")
    }
    (folder / "camera_proj").mkdir()
    save_file(embedding, folder / "camera_proj" / "diffusion_pytorch_model.safetensors")
    settings = {
        "_class_name": "CameraMatrixEmbedding", "_diffusers_version": "0.18.2", "act_fn": "silu",
        "camera_embed_dim": 128, "cond_proj_dim": None, "in_channels": 16, "out_dim": None,
        "post_act_fn": None,
    }  # fmt: skip
    (folder / "camera_proj" / "config.json").write_text(json.dumps(settings))
    index = json.loads((folder / "model_index.json").read_text()) | {
        "camera_proj": ["camera_proj", "CameraMatrixEmbedding"],
        "unet": ["unet", "UNet2DConditionModel"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


# Colours from latents, for `build_color_prior`
MIX = torch.tensor([[0.5, 0.2, 0.0, 0.1], [0.0, 0.4, -0.3, 0.2], [-0.2, 0.0, 0.5, 0.3]])


def colors_of(latents: torch.Tensor) -> torch.Tensor:
    """RGB (..., 3) in [-1, 1] that `build_color_prior` decodes latents (..., 4) to."""
    y = 2 * latents @ MIX.T
    rgb = torch.nn.functional.silu(y + 1) - torch.nn.functional.silu(y - 1) - 1
    return rgb.clamp(-1, 1)


def build_color_prior(folder: Path, blocks: int = 2) -> Path:
    """`build_latent_prior` with a decoder that means something: `colors_of`, 2^(blocks - 1) larger.

    A real AutoencoderKL whose weights are set. Residual branches are off and convolutions copy, so
    that the last activation sees y in channels 0 to 5, -y in 6 to 11, and two large constants, that
    make the last normalisation a division by a constant, which its own scale takes back.
    """
    build_latent_prior(folder)
    scaling, large = 0.18215, 1000.0
    vae = AutoencoderKL(
        block_out_channels=(16,) * blocks,
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        latent_channels=4,
        norm_num_groups=1,
        scaling_factor=scaling,
        mid_block_add_attention=False,
    )
    decoder, here = vae.decoder, (slice(None), slice(None), 1, 1)  # a kernel's centre
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if ".conv2." in name or name.startswith(("conv_in", "conv_out")):
                parameter.zero_()
            elif "upsamplers" in name:
                parameter.zero_()
                if name.endswith("weight"):
                    parameter[here] = torch.eye(16)
        vae.post_quant_conv.weight[..., 0, 0] = torch.eye(4)
        vae.post_quant_conv.bias.zero_()
        y = 2 * scaling * MIX
        decoder.conv_in.weight[here] = torch.cat([y, y, -y, -y, torch.zeros(4, 4)])
        decoder.conv_in.bias[12:14] = torch.tensor([large, -large])
        decoder.conv_norm_out.weight.fill_(large * (2 / 16) ** 0.5)
        decoder.conv_norm_out.bias.zero_()
        decoder.conv_norm_out.bias[:6] = torch.tensor([1.0] * 3 + [-1.0] * 3)
        decoder.conv_out.weight[:, :6, 1, 1] = torch.cat([torch.eye(3), -torch.eye(3)], dim=1)
        decoder.conv_out.bias.fill_(-1.0)
    shutil.rmtree(folder / "vae")
    vae.save_pretrained(folder / "vae", safe_serialization=True)
    return folder


def _build(
    folder: Path,
    unet_channels: int,
    unet_size: int,
    prediction: str,
    labels: int | None = None,
    **schedule: object,
) -> None:
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=unet_size,
        in_channels=unet_channels,
        out_channels=unet_channels,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        num_class_embeds=labels,
    ).save_pretrained(folder / "unet", safe_serialization=True)
    tokenizer = CLIPTokenizer.from_pretrained(BUILTINS["toybox"] / "tokenizer")
    tokenizer.save_pretrained(folder / "tokenizer")
    CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        **schedule,
    ).save_pretrained(folder / "scheduler")


def _write_index(folder: Path, has_vae: bool) -> None:
    index = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"] if has_vae else [None, None],
    }
    (folder / "model_index.json").write_text(json.dumps(index))


def build_deepfloyd_prior(folder: Path, prediction: str = "epsilon", **schedule: object) -> Path:
    """DeepFloyd IF's layout: 8 x 8 pixels, noise and variance out, T5 in, cosine schedule."""
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        encoder_hid_dim=24,
        attention_head_dim=4,
        norm_num_groups=4,
        act_fn="gelu",
    ).save_pretrained(folder / "unet", safe_serialization=True)
    letters = [(f"\u2581{c}", -3.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    letters += [(c, -4.0) for c in "abcdefghijklmnopqrstuvwxyz"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = T5Tokenizer(vocab=special + letters, extra_ids=0)
    tokenizer.save_pretrained(folder / "tokenizer")
    T5EncoderModel(
        T5Config(vocab_size=len(tokenizer), d_model=24, d_kv=4, d_ff=32, num_layers=1, num_heads=2)
    ).save_pretrained(folder / "text_encoder")
    DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        thresholding=True,
        clip_sample=False,
        prediction_type=prediction,
        **schedule,
    ).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "IFPipeline"}))
    return folder


def build_ddpm_prior(
    folder: Path, prediction: str = "epsilon", in_root: bool = False, **schedule: object
) -> Path:
    """The layout of google/ddpm-*-256: 8 x 8 pixels, linear betas; early ones lie in the root."""
    torch.manual_seed(0)
    _unconditional_unet().save_pretrained(
        folder if in_root else folder / "unet", safe_serialization=True
    )
    DDPMScheduler(clip_sample=False, prediction_type=prediction, **schedule).save_pretrained(
        folder if in_root else folder / "scheduler"
    )
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


def build_ve_prior(folder: Path) -> Path:
    """The layout of google/ncsnpp-ffhq-256: Fourier features of sigma, pixels in [0, 1]."""
    torch.manual_seed(0)
    unet = _unconditional_unet(time_embedding_type="fourier")
    with torch.no_grad():  # a network that listens to its time, as trained ones do
        for name, parameter in unet.named_parameters():
            if "time_emb" in name:
                parameter.mul_(4)
    unet.save_pretrained(folder / "unet", safe_serialization=True)
    ScoreSdeVeScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ScoreSdeVePipeline"}))
    return folder


def _unconditional_unet(**options: object) -> UNet2DModel:
    return UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=4,
        **options,
    )


# Those with a schedule of alphas take the prediction type and the schedule's settings.
SCHEDULED = {
    "pixel": build_pixel_prior,
    "latent": build_latent_prior,
    "deepfloyd": build_deepfloyd_prior,
    "ddpm": build_ddpm_prior,
}
FAMILIES = {**SCHEDULED, "ve": build_ve_prior}
