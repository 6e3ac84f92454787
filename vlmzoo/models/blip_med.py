"""BlipMED: a vision tower and the mixture of encoder and decoder, one model that aligns, matches and speaks (BLIP).

One pass of the tower serves every verb: what :meth:`BlipMED.encode_pictures` gives goes into a batch as ``image_features``.

Shapes: B texts, T tokens, I pictures (B is a multiple of I: a picture's texts stand in a row), F frames, N tower tokens,
C their width, E width of the shared space, V vocabulary, U supervised positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import AutoConfig, GenerationMixin, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmzoo.config import ConfigError
from vlmzoo.models.base import ZooModel
from vlmzoo.nn import language as lm
from vlmzoo.nn.med import MED, MED_EXTRAS, Context
from vlmzoo.nn.vision import EXTRAS, VisionEncoder
from vlmzoo.types import IGNORE_INDEX, Batch, full

DEC, ENC = (
    "[DEC]",
    "[ENC]",
)  # what the first token is where the text is said, and where it is read with a picture
QUESTION = ("question_ids", "question_mask", "context_index")  # what a batch of answers has besides pictures
TEMPERATURES = (0.001, 0.5)  # between which the temperature acts


class BlipMEDConfig(PreTrainedConfig):
    """The tree of a BlipMED.

    Attributes:
        vision, text: transformers config objects, shared with the towers; ``text`` is of the kind ``med``.
        projection_dim: E.
        itc_temperature: start of the temperature, by which similarities are divided (transformers would take a field
            called ``temperature`` for that of sampling).
        starts: for each part, where its weights came from ("random" if absent).
        lora: part to the options of the adapter in it (see ``vlmzoo.nn.lora``); the model is built with it.
    """

    model_type = "vlmzoo_blip_med"
    sub_configs_defaults = {
        "vision": SubConfigSpec(AutoConfig, "vit"),
        "text": SubConfigSpec(AutoConfig, "bert"),
    }

    vision: dict | PreTrainedConfig | None = None
    text: dict | PreTrainedConfig | None = None
    projection_dim: int = 256
    itc_temperature: float = 0.07
    starts: dict | None = None
    lora: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        for tower, extras in (
            (self.vision, {**EXTRAS, "kind": "vit"}),
            (self.text, {**MED_EXTRAS, "kind": "med"}),
        ):
            for name, default in extras.items():
                if not hasattr(tower, name):
                    setattr(tower, name, default)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PreTrainedConfig:
        """The text stack's config object itself: caches read it."""
        return self.text


class BlipMED(ZooModel, GenerationMixin):
    """Aligns, Matches, Speaks and Sees.

    Texts begin with any one token; each verb puts its own in that place ([CLS] to read alone, [ENC] to read with a
    picture, [DEC] to speak), so that the same ids serve all three. The caller's tensors are not changed.

    Args:
        config: the tree; ``vlmzoo.build`` makes it from names and mappings.

    Raises:
        ConfigError: a text tower of another kind.
    """

    config_class = BlipMEDConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    input_modalities = ("image", "text")
    PARTS = ("vision", "text", "vision_projection", "text_projection", "itm_head", "temperature")

    def __init__(self, config: BlipMEDConfig) -> None:
        super().__init__(config)
        if config.text.kind != "med":
            raise ConfigError(f"text.kind: a blip_med model has 'med', not {config.text.kind!r}")
        self.vision = VisionEncoder(config.vision)
        self.text = MED(config.text, self.vision.dim)
        self.vision_projection = nn.Linear(self.vision.dim, config.projection_dim)
        self.text_projection = nn.Linear(self.text.dim, config.projection_dim)
        self.itm_head = nn.Linear(self.text.dim, 2)
        self.temperature = nn.Parameter(torch.tensor(float(config.itc_temperature)))
        self.post_init()
        self.put_in_lora()
        for name in ("eos_token_id", "pad_token_id"):
            setattr(self.generation_config, name, getattr(config.text, name))
        self.generation_config.bos_token_id = config.text.dec_token_id

    def _init_weights(self, module: nn.Module) -> None:
        if any(module is one for one in self.text.modules()):
            self.text.start(module)
        else:
            super()._init_weights(module)
        if module is self:
            init.constant_(self.temperature, self.config.itc_temperature)

    # --- the transformers contract ---------------------------------------------------------------------------

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's."""
        return self.text.words

    def get_output_embeddings(self) -> None:
        """None: the head multiplies with the decoder's word embeddings, it has no matrix of its own."""

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping their activations (same gradients)."""
        if on:
            self.vision.tower.gradient_checkpointing_enable({"use_reentrant": False})
        else:
            self.vision.tower.gradient_checkpointing_disable()
        self.text.checkpointing = on

    def idle_parameters(self) -> set[str]:
        """Tower parameters that its tokens do not depend on."""
        return {f"vision.{name}" for name in self.vision.idle_parameters()}

    # --- pictures --------------------------------------------------------------------------------------------

    def encode_pictures(self, pixel_values: Tensor) -> Tensor:
        """Pictures [I, 3, H, W] or frames [I, F, 3, H, W] to tower tokens [I, F, N, C]."""
        return self.vision.features(pixel_values)

    def _features(self, batch: Batch) -> Tensor:
        """A batch's ``image_features``, or those of its ``pixel_values``, [I, F, N, C]."""
        if batch.get("frames") is not None:
            raise ValueError("videos of several lengths in one batch are not read by this model")
        features = batch.get("image_features")
        if features is None:
            features = self.encode_pictures(batch["pixel_values"])
        return features.to(self.vision_projection.weight.dtype)

    def context(self, batch: Batch) -> Context:
        """What texts look at: all tokens of a picture, those of a video's frames one after the other.

        Made once without gradients and given to :meth:`match` or :meth:`generate`, its keys and values are made once.

        Args:
            batch: ``pixel_values`` [I, 3, H, W] or ``image_features`` [I, F, N, C].
        """
        return Context(rearrange(self._features(batch), "i f n c -> i (f n) c"))

    def ask(self, batch: Batch, context: Context | None = None) -> Context:
        """What the decoder looks at where it answers: the states of questions read with their pictures.

        Args:
            batch: ``question_ids`` [B, T] (with ``question_mask``), pictures as for :meth:`match`.
            context: of :meth:`context`, instead of pictures in the batch.
        """
        context = self.context(batch) if context is None else context
        ids, mask = batch["question_ids"], batch.get("question_mask")
        ids = begun(ids, mask, self.config.text.enc_token_id)
        return Context(self.text(ids, mask, "encode", context), mask)

    def answer_context(self, batch: Batch) -> Context:
        """What the decoder looks at: pictures, or with ``answers_from: question`` the states of questions.

        Args:
            batch: as for :meth:`context` or :meth:`ask`; ``context_index`` [B] says which picture or question each text
                belongs to, where it is not the same number for each.
        """
        asks = self.config.text.answers_from == "question"
        context = self.ask(batch) if asks else self.context(batch)
        index = batch.get("context_index")
        return context if index is None else context.take(index)

    # --- Aligns ----------------------------------------------------------------------------------------------

    def encode_image(self, batch: Batch) -> Tensor:
        """``pixel_values`` [I, 3, H, W] or ``image_features`` [I, F, N, C] to unit vectors [I, E].

        Read at the class token, or at the mean of the tokens of a tower without one; a video is the mean of its frames.
        """
        features = self._features(batch)
        pooled = features.mean(dim=2) if self.config.vision.cls == "drop" else features[:, :, 0]  # [I, F, C]
        return F.normalize(self.vision_projection(pooled).mean(dim=1), dim=-1)

    def encode_text(self, batch: Batch) -> Tensor:
        """``input_ids`` [B, T] (with ``attention_mask``), read at [CLS], to unit vectors [B, E]."""
        states = self._read(batch, self.config.text.cls_token_id)
        return F.normalize(self.text_projection(states), dim=-1)

    def scale(self) -> Tensor:
        """1 / temperature, []; it acts between the bounds of ``TEMPERATURES`` and gets a gradient outside them too."""
        acting = self.temperature + (self.temperature.clamp(*TEMPERATURES) - self.temperature).detach()
        return 1 / acting

    @torch.no_grad()
    def bound_scale(self, least: float, greatest: float) -> None:
        """Bring the scale back within bounds, in place, if it learns."""
        if self.temperature.requires_grad:
            self.temperature.clamp_(1 / greatest, 1 / least)

    # --- Matches ---------------------------------------------------------------------------------------------

    def match(self, batch: Batch, context: Context | None = None) -> Tensor:
        """Logits of (does not match, matches), read at [ENC], [B, 2].

        Args:
            batch: ``input_ids`` [B, T] (with ``attention_mask``), and ``pixel_values`` [I, 3, H, W] or
                ``image_features`` [I, F, N, C]; texts 0 to B / I - 1 go with picture 0, and so on.
            context: of :meth:`context`, instead of pictures in the batch.

        Raises:
            ValueError: a number of texts that is no multiple of the pictures'.
        """
        context = self.context(batch) if context is None else context
        return self.itm_head(self._read(batch, self.config.text.enc_token_id, context))

    def _read(self, batch: Batch, first: int, context: Context | None = None) -> Tensor:
        """The state at the first token, [B, D]."""
        ids, mask = batch["input_ids"], batch.get("attention_mask")
        states = self.text(begun(ids, mask, first), mask, "text" if context is None else "encode", context)
        return states[torch.arange(len(ids), device=ids.device), beginnings(ids, mask)]

    # --- Speaks ----------------------------------------------------------------------------------------------

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Any = None,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        context: Context | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Run the decoder on text and pictures.

        Args:
            input_ids: [B, T]; without a cache the first token of each becomes [DEC].
            attention_mask, cache, use_cache: as in transformers.
            pixel_values: [I, 3, H, W]. image_features: [I, F, N, C] instead. context: of :meth:`answer_context` instead.
            kwargs: question_ids, question_mask, context_index, as :meth:`answer_context` takes them.
            labels: [B, T] unshifted, -100 ignored; the token mean becomes ``loss``.

        Returns:
            transformers' causal LM output, logits [B, T, V].
        """
        cache = kwargs.pop("past_key_values", None) if cache is None else cache
        if context is None:
            given = {"pixel_values": pixel_values, "image_features": image_features}
            given |= {name: kwargs.pop(name, None) for name in QUESTION}
            context = self.answer_context({key: value for key, value in given.items() if value is not None})
        if lm.positions_in(cache) == 0:
            input_ids = self._said(input_ids, attention_mask)
        states = self.text(
            input_ids, attention_mask, "decode", context, cache if use_cache is not False else None
        )
        logits = self.text.logits(states)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(full(logits[:, :-1]).flatten(0, 1), labels[:, 1:].flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{lm.CACHE: cache})

    def _said(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        return begun(input_ids, attention_mask, self.config.text.dec_token_id)

    def token_losses(
        self, batch: Batch, label_smoothing: float = 0.0, logit_rows: int | None = None
    ) -> Tensor:
        """Negative log-likelihood of each supervised token, [U] in reading order; logits are made only there.

        Args:
            batch: what the language collator makes: input_ids, labels (unshifted), attention_mask, and pixel_values or
                image_features, a picture for each text or the same number of texts for each.
            label_smoothing: weight of the uniform distribution in the target.
            logit_rows: positions whose logits are made at once; by the vocabulary if None.
        """
        mask = batch.get("attention_mask")
        ids = self._said(batch["input_ids"], mask)
        states = self.text(ids, mask, "decode", self.answer_context(batch))
        targets = batch["labels"][:, 1:]
        supervised = targets != IGNORE_INDEX  # [B, T - 1]
        return self.text.losses(states[:, :-1][supervised], targets[supervised], label_smoothing, logit_rows)

    @torch.no_grad()
    def generate(self, inputs: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Say what is in pictures; transformers' ``generate``, beams and sampling included.

        Args:
            inputs: prompt ids [B, T], left-padded (or ``input_ids=``); their first token becomes [DEC].
            kwargs: pixel_values or image_features (question_ids and question_mask too, for a model that answers), or the
                context of :meth:`answer_context`, and everything transformers' generate takes.

        Returns:
            As transformers gives it: prompt and new ids [B * returned, T'].

        Raises:
            ValueError: no ids, or no pictures.
        """
        input_ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if input_ids is None:
            raise ValueError("generate needs input_ids, the prompt made by the Processor")
        names = ("pixel_values", "image_features", "frames", *QUESTION)
        given = {name: kwargs.pop(name, None) for name in names}
        batch = {name: value for name, value in given.items() if value is not None}
        context = kwargs.pop("context", None)
        if context is None and not batch:
            raise ValueError("generate needs a picture: pixel_values, image_features or a context")
        context = self.answer_context(batch) if context is None else context
        context.check(len(input_ids))
        return super().generate(
            self._said(input_ids, kwargs.get("attention_mask")), context=context, **kwargs
        )


def begun(input_ids: Tensor, attention_mask: Tensor | None, first: int) -> Tensor:
    """The same texts [B, T] with ``first`` in the place of their first token."""
    return input_ids.scatter(1, beginnings(input_ids, attention_mask)[:, None], first)


def beginnings(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The place of each text's first token, [B]: 0, or the first that is not padding."""
    if attention_mask is None:
        return input_ids.new_zeros(len(input_ids))
    return attention_mask.long().argmax(dim=1)


# --- presets -----------------------------------------------------------------------------------------------------


def _blip(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "class": "blip_med",
        "vision": {"kind": "vit", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 16, "cls": "keep", **vision},
        "text": {
            "kind": "med", "hub": "google-bert/bert-base-uncased", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 30524, "max_position_embeddings": 512,
            "layer_norm_eps": 1e-12, "pad_token_id": 0, "eos_token_id": 102,
        },
        "projection_dim": 256,
    }  # fmt: skip


def blip_base() -> dict[str, Any]:
    """BLIP with ViT-B/16 from DeiT and BERT base (Li et al. 2022, section 4.1), 224 px."""
    return _blip(
        {
            "hub": "facebook/deit-base-patch16-224", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12,
        }
    )  # fmt: skip


def blip_large() -> dict[str, Any]:
    """BLIP with ViT-L/16 from ImageNet-21k and BERT base, 224 px; drop path 0.1 as in the authors' code."""
    return _blip(
        {
            "hub": "google/vit-large-patch16-224-in21k", "hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 24, "num_attention_heads": 16, "drop_path": 0.1,
        }
    )  # fmt: skip


def blip_tiny() -> dict[str, Any]:
    """BLIP's shape at 32 px over the tiny tokenizer and its two tokens more: learns the scenes on a laptop."""
    return {
        "class": "blip_med",
        "vision": {
            "kind": "vit", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
            "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6, "cls": "keep", "position_std": 1.0,
        },
        "text": {
            "kind": "med", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "vocab_size": 514, "max_position_embeddings": 128, "initializer_range": 0.1, "pad_token_id": 0,
            "bos_token_id": 1, "eos_token_id": 3, "cls_token_id": 1, "dec_token_id": 512, "enc_token_id": 513,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
        "projection_dim": 64,
    }  # fmt: skip
