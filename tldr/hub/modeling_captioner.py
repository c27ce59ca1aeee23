"""A captioner, with or without a codebook, as a class of transformers'. An exported folder holds this file, for
``trust_remote_code=True``: it needs nothing but torch and transformers.

    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    model.generate(pixel_values)                       # captions
    model.codes(pixel_values)                          # (B, L), of a VQ-VLM
    model.alignment(pixel_values, **tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))

It is BLIP's, but the decoder reads only the patches, without the class token, each replaced by its nearest code if
there is a codebook (TL;DR, Wang et al. 2023, section 3.1, arXiv 2305.20087); and it has a learned null picture.

Shapes: B pairs, L patches, T text tokens, D width, K codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BlipConfig, BlipForConditionalGeneration, BlipVisionModel
from transformers.modeling_outputs import BaseModelOutputWithPooling


class CaptionerConfig(BlipConfig):
    """BLIP's config, with a ``codebook_size`` in ``vision_config`` (0: no codebook), and ``prompt``, with which every
    text begins: its tokens, ``prompt_ids``, are read, not written."""

    model_type = "tldr_captioner"


@dataclass
class Patches(BaseModelOutputWithPooling):
    """``last_hidden_state`` (B, L, D) is what the decoder reads; ``codes`` (B, L) where there is a codebook."""

    codes: Tensor | None = None


class PatchEncoder(BlipVisionModel):
    """BLIP's image encoder, the class token dropped, the patches quantised where there is a codebook."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        size = getattr(config, "codebook_size", 0)
        if size:
            self.register_buffer("codebook", torch.zeros(size, config.hidden_size))
            self.register_buffer("codebook_usage", torch.ones(size))  # patches a batch, to go on learning from

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]  (transformers lists its options one by one)
        self, pixel_values: Tensor | None = None, **options: Any
    ) -> Patches:
        """(B, 3, H, W), normalised -> `Patches`."""
        out: Any = super().forward(pixel_values=pixel_values, **options)
        patches, codes = out.last_hidden_state[:, 1:], None
        if hasattr(self, "codebook"):
            codebook: Any = self.codebook
            codes = torch.cdist(patches.float(), codebook.float()[None]).argmin(-1)
            patches = codebook[codes]
        return Patches(
            last_hidden_state=patches, pooler_output=out.pooler_output, hidden_states=out.hidden_states,
            attentions=out.attentions, codes=codes,
        )  # fmt: skip


class CaptionerForConditionalGeneration(BlipForConditionalGeneration):
    """BLIP's captioner over `PatchEncoder`. ``null_image`` (1, 1, D) is what the decoder reads where there is no
    picture: `alignment` measures against it."""

    config_class = CaptionerConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.vision_model = PatchEncoder(config.vision_config)
        self.null_image = nn.Parameter(torch.zeros(1, 1, config.vision_config.hidden_size))
        self.post_init()

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens of ``config.prompt``."""
        return getattr(self.config, "prompt_ids", [])

    @torch.no_grad()
    def generate(self, pixel_values: Tensor, input_ids: Any = None, *given: Any, **options: Any) -> Any:
        """(B, 3, H, W) -> tokens (B, T) of captions, which begin with ``config.prompt`` unless ``input_ids`` is given;
        ``options`` are those of transformers' generation."""
        if input_ids is None:
            text: Any = self.config.text_config
            begin = [text.bos_token_id, *self.prompt_ids, text.sep_token_id]
            input_ids = torch.tensor([begin], device=pixel_values.device).repeat(len(pixel_values), 1)
        return super().generate(pixel_values, input_ids, *given, **options)

    @torch.no_grad()
    def codes(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, L) the code of each patch. Raises ValueError where there is no codebook."""
        codes = self.vision_model(pixel_values).codes
        if codes is None:
            raise ValueError("this captioner has no codebook")
        return codes

    @torch.no_grad()
    def alignment(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        """(B, 3, H, W) and B texts (B, T) as the tokenizer gives them, ``config.prompt`` at their heads -> (B,) nats:
        their pointwise mutual information log p(text | picture) - log p(text | no picture)."""
        image = self.vision_model(pixel_values).last_hidden_state
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        tokens = input_ids.clone()
        text_config: Any = self.config.text_config
        tokens[:, 0] = text_config.bos_token_id
        words = mask[:, 1:].bool().clone()
        words[:, : len(self.prompt_ids)] = False

        def likelihood(seen: Tensor) -> Tensor:
            out: Any = self.text_decoder(tokens, attention_mask=mask, encoder_hidden_states=seen)
            found = out.logits[:, :-1].float().log_softmax(-1).gather(2, tokens[:, 1:, None])[..., 0]
            return (found * words).sum(1)

        return likelihood(image) - likelihood(self.null_image.expand(len(image), 1, -1))
