"""VisionLM: vision encoder, connector, fusion, language model. LLaVA and Flamingo are this class with other parts.

Shapes: B rows, T tokens, I pictures in the batch (reading order over rows), F frames, N tower tokens, L visual
tokens a picture after the connector, J pictures in the fullest row, V vocabulary, U supervised positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmzoo.config import ConfigError, read_part
from vlmzoo.models.answering import Answering
from vlmzoo.models.base import ZooModel
from vlmzoo.models.media import Media, deal, pad_rows
from vlmzoo.nn import language as lm
from vlmzoo.nn.connectors.gaze import Gaze
from vlmzoo.nn.tokens import AddedTokens
from vlmzoo.nn.vision import EXTRAS, VisionEncoder
from vlmzoo.types import IGNORE_INDEX, Batch, full


class VisionLMConfig(PreTrainedConfig):
    """The tree of a VisionLM.

    Attributes:
        vision, language: transformers config objects, shared with the towers built from them.
        connector, fusion: mappings with a ``kind``, validated against the registry.
        image_token_id: the id of ``<image>`` in the language model's vocabulary.
        tokens: ids of added tokens, whose rows learn apart from the language model's (see ``vlmzoo.nn.tokens``).
        starts: for each part, where its weights came from ("random" if absent).
        lora: part to the options of the adapter in it (see ``vlmzoo.nn.lora``); the model is built with it.
    """

    model_type = "vlmzoo_vision_lm"
    sub_configs_defaults = {
        "vision": SubConfigSpec(AutoConfig, "clip_vision_model"),
        "language": SubConfigSpec(AutoConfig, "llama"),
    }

    vision: dict | PreTrainedConfig | None = None
    language: dict | PreTrainedConfig | None = None
    connector: dict | None = None
    fusion: dict | None = None
    image_token_id: int = 2
    tokens: list[int] | None = None
    starts: dict | None = None
    lora: dict | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for name in ("connector", "fusion"):
            part = read_part(
                f"{name}s", getattr(self, name) or {"connector": "mlp", "fusion": "splice"}[name]
            )
            setattr(self, name, part.model_dump())
        for name, default in {**EXTRAS, "kind": "clip"}.items():
            if not hasattr(self.vision, name):
                setattr(self.vision, name, default)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The language model's config object itself: caches and resizing read and write it."""
        return self.language


class VisionLM(Answering, ZooModel, GenerationMixin):
    """Pictures and text in, text out. Offers the verb Speaks.

    Args:
        config: the tree; ``vlmzoo.build`` makes it from names and mappings.
    """

    config_class = VisionLMConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    PARTS = ("vision", "connector", "fusion", "tokens", "language")

    def __init__(self, config: VisionLMConfig) -> None:
        super().__init__(config)
        fusion, connector = read_part("fusions", config.fusion), read_part("connectors", config.connector)
        self.vision = VisionEncoder(config.vision)
        self.language = AutoModelForCausalLM.from_config(config.language)
        inside = (
            getattr(connector, "width", None) or self.vision.dim
        )  # of the visual tokens that the fusion is given
        self.fusion = fusion.build(
            image_token_id=config.image_token_id,
            num_layers=config.language.num_hidden_layers,
            dim=lm.layer_width(config.language),
            context_dim=inside,
        )
        width = self.fusion.width_for(inside, lm.width(config.language))
        self.connector = connector.build(self.vision.dim, width)
        rows = self.language.get_input_embeddings().num_embeddings
        for name, ids in (("image_token_id", [config.image_token_id]), ("tokens", config.tokens or [])):
            for number in ids:
                if not 0 <= number < rows:
                    raise ConfigError(f"{name}: {number} is outside the vocabulary of {rows} rows")
        tied = bool(config.language.tie_word_embeddings)
        self.tokens = AddedTokens(config.tokens, lm.width(config.language), tied) if config.tokens else None
        if not self.fusion.in_prompt:
            self.fusion.attach(lm.decoder_layers(self.language))
        self.post_init()
        self._hook_head()
        self.put_in_lora()

    # --- the transformers contract ---------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Set the language model's."""
        self.language.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        """The language model's."""
        return self.language.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Set the language model's."""
        self.language.set_output_embeddings(value)
        self._hook_head()

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """Resize the language model's vocabulary; its own config (shared with ours) follows."""
        embedding = self.language.resize_token_embeddings(*args, **kwargs)
        self._hook_head()
        return embedding

    # --- added tokens ----------------------------------------------------------------------------------------

    def _hook_head(self) -> None:
        if self.tokens is not None:
            self.tokens.attach(self.get_output_embeddings())

    def embed(self, input_ids: Tensor) -> Tensor:
        """Word embeddings of ids [B, T]: [B, T, D], added tokens from their own rows."""
        embedding = self.get_input_embeddings()
        return embedding(input_ids) if self.tokens is None else self.tokens.embed(embedding, input_ids)

    def fold_tokens(self) -> int:
        """Write the rows of added tokens into the language model's and forget them; how many there were."""
        if self.tokens is None:
            return 0
        folded = len(self.tokens.numbers)
        self.tokens.fold_into(self.get_input_embeddings(), self.get_output_embeddings())
        self.tokens = self.config.tokens = None
        return folded

    def get_decoder(self) -> nn.Module:
        """The language model's decoder."""
        return self.language.get_decoder()

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping their activations (same gradients)."""
        for tower in (self.vision.tower, self.language):
            if not tower.supports_gradient_checkpointing:
                continue
            if on:
                tower.gradient_checkpointing_enable({"use_reentrant": False})
            else:
                tower.gradient_checkpointing_disable()
        for block in getattr(self.fusion, "blocks", {}).values():
            block.checkpointing = on

    def full_precision(self) -> list[str]:
        """Names of the modules that quantisation leaves alone: all parts but the language model, and its output head."""
        head = self.get_output_embeddings()
        heads = [name for name, module in self.named_modules() if head is not None and module is head]
        return [name for name in self.PARTS if name != "language"] + heads

    def idle_parameters(self) -> set[str]:
        """Tower layers above the chosen feature layer."""
        return {f"vision.{name}" for name in self.vision.idle_parameters()}

    # --- pictures --------------------------------------------------------------------------------------------

    @property
    def image_tokens(self) -> int:
        """How many ids the processor writes for one ``<image>``."""
        return self._width(1)

    @property
    def frame_tokens(self) -> int:
        """How many ids more it writes for each further frame of a video."""
        return self._width(2) - self._width(1)

    def _width(self, frames: int) -> int:
        """How many ids a picture or video of so many frames has in the prompt."""
        if not self.fusion.in_prompt:
            return 1
        return self.connector.tokens_per_image(self.vision.num_tokens, frames)

    def encode_pictures(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] or frames [I, F, 3, H, W] to tower features [I, F, N, D]."""
        return self.vision.features(pixel_values)

    def media(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        frames: Tensor | None = None,
    ) -> Media:
        """The pictures of a prompt, encoded and connected.

        Args:
            input_ids: [B, T], to count each row's pictures.
            pixel_values: [I, 3, H, W], or [I, F, 3, H, W] for frames. image_features: [I, F, N, D] instead, if the
                tower has run before.
            frames: [I], the lengths of pictures and videos that differ in it; their frames then stand one after the
                other in pixel_values, [sum of F, 3, H, W], or image_features, [sum of F, 1, N, D].

        Raises:
            ValueError: the prompt wants another number of pictures than there are.
        """
        if image_features is None and pixel_values is not None and len(pixel_values):
            image_features = self.encode_pictures(pixel_values)
        counts = (input_ids == self.config.image_token_id).sum(dim=1)
        if image_features is not None and frames is not None:
            return self._unequal_media(counts, image_features, frames)
        width = self._width(1 if image_features is None else image_features.shape[1])
        if bool((counts % width).any()):
            raise ValueError(f"rows hold {counts.tolist()} image tokens; a picture takes {width}")
        pictures = (counts // width).tolist()
        given = 0 if image_features is None else len(image_features)
        if sum(pictures) != given:
            raise ValueError(
                f"the prompt has places for {sum(pictures)} pictures (by row: {pictures}), {given} were given"
            )
        if image_features is None:
            return Media(self._dummy_tokens(), pictures)
        return Media(self._connect(image_features, self._places(pictures)), pictures)

    def _unequal_media(self, counts: Tensor, features: Tensor, frames: Tensor) -> Media:
        """Pictures and videos of several lengths: those of one length pass the connector together."""
        lengths = frames.tolist()
        if sum(lengths) != len(features):
            raise ValueError(f"frames {lengths} are {sum(lengths)} pictures, {len(features)} were given")
        pictures = deal(counts.tolist(), [self._width(length) for length in lengths])
        places = self._places(pictures)
        videos = features.squeeze(1).split(lengths)  # I of [F, N, D]
        made: dict[int, Tensor] = {}
        for length in sorted(set(lengths)):
            same = [i for i, other in enumerate(lengths) if other == length]
            made.update(
                zip(same, self._connect(torch.stack([videos[i] for i in same]), places[same]), strict=True)
            )
        return Media.of([made[i] for i in range(len(videos))], pictures)

    def _places(self, pictures: list[int]) -> Tensor:
        """Each picture's place in its row, counted from 0, [I]."""
        return torch.cat([torch.arange(n, device=self.device) for n in pictures])

    def _connect(self, features: Tensor, places: Tensor) -> Tensor:
        features = features.to(self._connected_like().dtype)
        if getattr(self.connector, "media_embeds", None) is None:
            return self.connector(features)
        return self.connector(features, places)

    def _connected_like(self) -> Tensor:
        """A tensor of the device and dtype that visual tokens take: the connector's, the fusion's or the text's."""
        weights = chain(self.connector.parameters(), self.fusion.parameters())
        return next(weights, self.get_input_embeddings().weight)

    def _dummy_tokens(self) -> Tensor:
        """Tokens of one zero picture that no text sees: text-only rows leave zero, not missing, gradients."""
        weight = self._connected_like()
        if torch.is_grad_enabled() and any(p.requires_grad for p in self.vision.parameters()):
            side = self.vision.image_size
            features = self.encode_pictures(weight.new_zeros(1, 3, side, side))
        else:
            features = weight.new_zeros(1, 1, self.vision.num_tokens, self.vision.dim)
        return self._connect(features, self._places([1]))

    # --- text ------------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        frames: Tensor | None = None,
        media: Media | None = None,
        media_index: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the language model on text and pictures.

        Args:
            input_ids: [B, T]; every picture's place holds ``image_token_id`` (L times for splice, once for gated).
            attention_mask, position_ids, cache, use_cache: as in transformers. The cache that comes back also holds
                the pictures, and how many each row has had: what follows it brings those of its own places only.
            pixel_values: [I, 3, H, W] or [I, F, 3, H, W], pictures in reading order over the rows.
            image_features: [I, F, N, D] instead of pixels. media: already encoded pictures instead of either.
            frames: [I], where pictures and videos of several lengths are mixed; see :meth:`media`.
            media_index: [B, T], for gated fusion: the picture each position sees, from 1; 0 sees none. By default the
                last ``<image>`` up to the position, those in the cache counted.
            labels: [B, T] unshifted, -100 ignored; the token mean becomes ``loss``.
            logits_to_keep: as in transformers, where the language model knows it: of the last so many positions only.

        Returns:
            transformers' causal LM output, logits [B, T, V].
        """
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        past = lm.positions_in(cache)
        if media is None:
            media = self.media_after(cache, input_ids, pixel_values, image_features, frames)
        embeds = self.embed(input_ids) if inputs_embeds is None else inputs_embeds  # [B, T, D]
        places = media.open_places(input_ids == self.config.image_token_id, past)  # [B, T]
        images = media.count(places, past)  # [B, T]
        if self.fusion.in_prompt:
            embeds = self._spliced(embeds, places, media, images)
        if attention_mask is not None and position_ids is None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -embeds.shape[1] :]
        kwargs |= {} if cache is None else {lm.CACHE: cache}
        if cache is None and attention_mask is None and position_ids is not None:
            # packed: with a cache transformers lets the texts of a row see each other
            use_cache = bool(use_cache)
        kwargs |= lm.known(self.language, logits_to_keep=logits_to_keep)
        with self._looking(media, images if media_index is None else media_index, use_cache is not False):
            out = self.language(
                inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, use_cache=use_cache,
                **kwargs,
            )  # fmt: skip
        if getattr(out, lm.CACHE, None) is not None:
            getattr(out, lm.CACHE).media = media
        if labels is not None:
            out.loss = F.cross_entropy(full(out.logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        return out

    def _spliced(self, embeds: Tensor, places: Tensor, media: Media, images: Tensor) -> Tensor:
        """Visual tokens at the image ids of a call: each row's own, from where its text has been read."""
        if not any(media.counts):
            return embeds + 0.0 * media.tokens.sum().to(embeds.dtype)
        if embeds.shape[1] == 1 and not bool(places.any()):
            return embeds  # a decoding step: the pictures went in with the prompt
        tokens, owned = media.in_a_line()  # [M, D], [B]
        row = torch.arange(len(embeds), device=owned.device) // (len(embeds) // len(owned))
        if bool((places & (images > owned[row, None])).any()):
            raise ValueError(
                f"rows hold {images.amax(1).tolist()} image tokens, their pictures take {owned.tolist()}"
            )
        first = (owned.cumsum(0) - owned)[row, None]  # [B * K, 1]
        ids = places * self.config.image_token_id + ~places * -1
        return self.fusion(embeds, ids, tokens[(first + images - 1)[places]])

    @contextmanager
    def _looking(self, media: Media, index: Tensor, keep: bool) -> Iterator[None]:
        if self.fusion.in_prompt:
            yield
            return
        keep = (
            keep and not torch.is_grad_enabled()
        )  # with gradients each call has its own: backward looks back at it
        gaze = media.gaze if keep else None
        if gaze is None:
            lengths = None if media.lengths is None else pad_rows(media.lengths, media.counts)
            gaze = Gaze(pad_rows(media.tokens, media.counts), index, lengths, keep)
        else:
            gaze.turn(index)
        media.gaze = gaze if keep else media.gaze
        with self.fusion.given(gaze):
            yield

    def token_losses(
        self, batch: Batch, label_smoothing: float = 0.0, logit_rows: int | None = None
    ) -> Tensor:
        """Negative log-likelihood of each supervised token, [U] in reading order; logits are made only there.

        Args:
            batch: what the language collator makes: input_ids, labels (unshifted) and, if there are any,
                attention_mask, position_ids, pixel_values or image_features, frames.
            label_smoothing: weight of the uniform distribution in the target.
            logit_rows: positions whose logits are made at once; by the vocabulary if None.
        """
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        targets = batch["labels"][:, 1:]
        supervised = targets != IGNORE_INDEX  # [B, T - 1]
        return lm.losses_at(
            self.language, lambda: self(**inputs, use_cache=False).logits, F.pad(supervised, (0, 1)),
            targets[supervised], label_smoothing, logit_rows, self.tokens,
        )  # fmt: skip
