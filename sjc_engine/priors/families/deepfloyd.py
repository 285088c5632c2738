"""DeepFloyd IF, stage I: 64 x 64 pixels from T5 embeddings, the open stand-in for Imagen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sjc_engine.priors.denoiser import Cond, SchedulePrior, frozen, tokenize, tokens_end
from sjc_engine.priors.loading.components import ModelSource
from sjc_engine.priors.tokens import DEEPFLOYD_TOKENS

# The cosine schedule ends at sigma = 2e4, where a rendering is nothing: 22 is enough.
LAST_TICK = 970


class DeepFloydPrior(SchedulePrior):
    """A `UNet2DConditionModel` that predicts noise and its variance, of which the latter is left.

    The text encoder (4.7 billion parameters) stays on the CPU: an asset's few prompts are embedded
    once, and the device keeps its memory for the network.
    """

    def __init__(self, source: ModelSource, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DDPMScheduler, UNet2DConditionModel
        from transformers import T5EncoderModel, T5Tokenizer

        unet = source.network(UNet2DConditionModel, "unet", dtype)
        scheduler = source.scheduler(DDPMScheduler)
        super().__init__(source, unet, scheduler, device, dtype)
        self.sigmas = self.sigmas[: LAST_TICK + 1]
        encoder_dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        text_encoder = source.encoder(T5EncoderModel, "text_encoder", encoder_dtype)
        # AutoTokenizer would want a config.json, which the folder lacks, and ask the hub for it
        self._tokenizer = source.tokenizer(T5Tokenizer, text_encoder.config.vocab_size)
        self._text_encoder = frozen(text_encoder, torch.device("cpu"))

    @torch.no_grad()
    def _embed(self, prompts: Sequence[str]) -> Cond:
        """In lower case, as in training."""
        lower = [prompt.lower().strip() for prompt in prompts]
        tokens = tokenize(self._tokenizer, lower, DEEPFLOYD_TOKENS)
        hidden = self._text_encoder(
            tokens.input_ids, attention_mask=tokens.attention_mask
        ).last_hidden_state
        return Cond(hidden.float().to(self.device))

    def read_end(self, text: str) -> int:
        lower = text.lower()
        # From the end: what is cut hardly ever changes its length in lower case.
        end = tokens_end(self._tokenizer, lower, DEEPFLOYD_TOKENS) - len(lower) + len(text)
        return max(0, end)


load = DeepFloydPrior
