"""The zoo's classes under transformers' Auto classes: importing this registers them."""

from __future__ import annotations

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from vlmzoo.models.blip_med import BlipMED, BlipMEDConfig
from vlmzoo.models.dual_encoder import DualEncoder, DualEncoderConfig
from vlmzoo.models.vision_lm import VisionLM, VisionLMConfig
from vlmzoo.processing.processor import Processor

for _config, _model in (
    (VisionLMConfig, VisionLM),
    (BlipMEDConfig, BlipMED),
    (DualEncoderConfig, DualEncoder),
):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
    AutoModel.register(_config, _model, exist_ok=True)
    AutoProcessor.register(_config, Processor, exist_ok=True)
AutoModelForImageTextToText.register(VisionLMConfig, VisionLM, exist_ok=True)
AutoModelForImageTextToText.register(BlipMEDConfig, BlipMED, exist_ok=True)
