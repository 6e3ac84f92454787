"""The tables of names: what can be written in a config, and the lazy target each name stands for.

Targets are ``"module:attribute"`` texts, so this file imports nothing and no name depends on import order. Other
packages add names with :func:`register` or with an entry point in the group ``vlmzoo`` that points to a function
to be called once.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

ENTRY_POINT_GROUP = "vlmzoo"


@dataclass(frozen=True)
class Entry:
    """A table row: what the name builds (or where it lies) and one line about it."""

    target: Any
    about: str


_TABLES: dict[str, dict[str, Entry]] = {
    "models": {
        "clip-tiny": Entry("vlmzoo.models.dual_encoder:clip_tiny", "CLIP shape at 32 px that learns the scenes on a laptop"),
        "clip-vit-b-32": Entry("vlmzoo.models.dual_encoder:clip_vit_b_32", "OpenAI CLIP ViT-B/32, 151 M"),
        "clip-vit-b-16": Entry("vlmzoo.models.dual_encoder:clip_vit_b_16", "OpenAI CLIP ViT-B/16, 150 M"),
        "clip-vit-l-14": Entry("vlmzoo.models.dual_encoder:clip_vit_l_14", "OpenAI CLIP ViT-L/14, 428 M"),
        "clip-vit-l-14-336": Entry("vlmzoo.models.dual_encoder:clip_vit_l_14_336", "OpenAI CLIP ViT-L/14 at 336 px, 428 M"),
        "siglip-b-16": Entry("vlmzoo.models.dual_encoder:siglip_b_16", "SigLIP base, patch 16 at 224 px, 203 M"),
        "blip-tiny": Entry("vlmzoo.models.blip_med:blip_tiny", "BLIP's shape (MED: aligns, matches, speaks) that learns the scenes on a laptop"),
        "blip-base": Entry("vlmzoo.models.blip_med:blip_base", "BLIP with ViT-B/16 and BERT base, 252 M"),
        "blip-large": Entry("vlmzoo.models.blip_med:blip_large", "BLIP with ViT-L/16 and BERT base, 475 M"),
        "llava-tiny": Entry("vlmzoo.models.presets:llava_tiny", "LLaVA shape that learns the scenes on a laptop"),
        "llava-1.5-7b": Entry("vlmzoo.models.presets:llava_1_5_7b", "LLaVA-1.5 on Vicuna 7B, 7.06 B"),
        "llava-1.5-13b": Entry("vlmzoo.models.presets:llava_1_5_13b", "LLaVA-1.5 on Vicuna 13B, 13.35 B"),
        "flamingo-tiny": Entry("vlmzoo.models.flamingo:flamingo_tiny", "Flamingo shape: Perceiver Resampler, gated cross-attention"),
        "flamingo-3b": Entry("vlmzoo.models.flamingo:flamingo_3b", "Flamingo-3B's shape on Pythia 1.4B, 3.2 B"),
        "flamingo-9b": Entry("vlmzoo.models.flamingo:flamingo_9b", "Flamingo-9B's shape on Granite 3.1 8B, 10.6 B"),
        "flamingo-80b": Entry("vlmzoo.models.flamingo:flamingo_80b", "Flamingo-80B's shape on Llama 2 70B, 78 B"),
        "openflamingo-3b": Entry("vlmzoo.models.flamingo:openflamingo_3b", "OpenFlamingo on MPT-1B's shape"),
        "openflamingo-4b": Entry("vlmzoo.models.flamingo:openflamingo_4b", "OpenFlamingo on RedPajama-INCITE 3B"),
        "openflamingo-9b": Entry("vlmzoo.models.flamingo:openflamingo_9b", "OpenFlamingo on MPT-7B"),
        "idefics-9b": Entry("vlmzoo.models.flamingo:idefics_9b", "Idefics-9B's shape: Llama 7B, CLIP ViT-H/14, 8.9 B"),
    },
    "visions": {
        "clip": Entry("vlmzoo.nn.vision:CLIP", "CLIP vision transformer"),
        "siglip": Entry("vlmzoo.nn.vision:SIGLIP", "SigLIP vision transformer"),
        "vit": Entry("vlmzoo.nn.vision:VIT", "plain ViT / DeiT"),
        "dinov2": Entry("vlmzoo.nn.vision:DINOV2", "DINOv2 vision transformer"),
    },
    "connectors": {
        "mlp": Entry("vlmzoo.nn.connectors.mlp:MlpConfig", "two-layer MLP, token by token (LLaVA-1.5); depth says how many layers"),
        "linear": Entry("vlmzoo.nn.connectors.linear:LinearConfig", "one linear layer, token by token (LLaVA)"),
        "identity": Entry("vlmzoo.nn.connectors.identity:IdentityConfig", "none: a tower as wide as the language model, or gated cross-attention (Idefics without a resampler)"),
        "perceiver": Entry("vlmzoo.nn.connectors.perceiver:PerceiverConfig", "Perceiver Resampler: any pictures or frames to a fixed number of tokens (Flamingo)"),
    },
    "fusions": {
        "splice": Entry("vlmzoo.nn.connectors.splice:SpliceConfig", "visual tokens take the place of <image> in the prompt (LLaVA)"),
        "gated_cross_attention": Entry("vlmzoo.nn.connectors.gated_cross_attention:GatedCrossAttentionConfig", "tanh-gated cross-attention blocks between the language model's layers (Flamingo)"),
    },
    "languages": {
        name: Entry("vlmzoo.nn.language:CAUSAL_LM", about)
        for name, about in (
            ("llama", "Llama, Vicuna and kin"), ("mistral", "Mistral"), ("qwen2", "Qwen 2 and 2.5"), ("qwen3", "Qwen 3"),
            ("gemma", "Gemma"), ("gemma2", "Gemma 2"), ("gemma3_text", "Gemma 3"), ("phi", "Phi 1 and 2"), ("smollm3", "SmolLM 3"),
            ("olmo2", "OLMo 2"), ("gpt2", "GPT-2"), ("gpt_neox", "GPT-NeoX, Pythia, RedPajama"), ("opt", "OPT"),
            ("gptj", "GPT-J"), ("mpt", "MPT"), ("granite", "Granite 3"),
        )
    },
    "objectives": {
        "language": Entry("vlmzoo.objectives.language:LanguageConfig", "next token of the supervised positions (needs Speaks)"),
        "contrastive": Entry("vlmzoo.objectives.contrastive:ContrastiveConfig", "symmetric image-text InfoNCE or sigmoid over all ranks (needs Aligns)"),
        "itc": Entry("vlmzoo.objectives.itc:ImageTextContrastConfig", "image-text contrast with momentum twin, queue and soft targets (needs Aligns)"),
        "blip": Entry("vlmzoo.objectives.blip:BlipConfig", "BLIP's contrast, matching with hard negatives, and language in one pass (needs Aligns, Matches, Speaks)"),
    },
    "datasets": {
        "scenes": Entry("vlmzoo.data.scenes.source:ScenesConfig", "embedded drawn scenes: captions, questions, dialogues, labels"),
        "scenes_gallery": Entry("vlmzoo.data.scenes.gallery:GalleryConfig", "hard retrieval: groups of pictures whose captions have the same words"),
        "scenes_concepts": Entry("vlmzoo.data.scenes.concepts:ConceptsConfig", "concepts with a long tail and several names each, frequencies and definitions known"),
        "scenes_clips": Entry("vlmzoo.data.scenes.clips:ClipsConfig", "drawn scenes in motion as short videos: captions of what happens, questions that need several frames"),
        "scenes_pairs": Entry("vlmzoo.data.scenes.pairs:PairsConfig", "two drawn scenes and a statement that is true or false of them"),
        "scenes_text": Entry("vlmzoo.data.scenes.documents_source:TextConfig", "texts of the embedded world without pictures: captions, questions, documents, demonstrations"),
        "scenes_documents": Entry("vlmzoo.data.scenes.documents_source:DocumentsConfig", "interleaved documents of drawn scenes, later text needs earlier pictures"),
        "scenes_demonstrations": Entry("vlmzoo.data.scenes.documents_source:DemonstrationsConfig", "demonstrations and a query: task recognition, or made-up words"),
        "llava": Entry("vlmzoo.data.sources:LlavaConfig", "LLaVA json: [{id, image, conversations}] beside picture files"),
        "coco": Entry("vlmzoo.data.sources:CocoConfig", "COCO captions json beside picture files"),
        "messages": Entry("vlmzoo.data.sources:MessagesConfig", "messages as TRL and chat templates have them, jsonl beside picture files"),
        "interleaved": Entry("vlmzoo.data.sources:InterleavedConfig", "documents of texts and pictures: mmc4's or OBELICS' jsonl"),
        "webdataset": Entry("vlmzoo.data.sources:WebdatasetConfig", "tar shards of key.jpg, key.txt, key.json"),
        "parquet": Entry("vlmzoo.data.sources:ParquetConfig", "tables that hold their pictures, memory-mapped"),
        "imagefolder": Entry("vlmzoo.data.sources:ImageFolderConfig", "folders of pictures by class, or with a metadata file"),
        "csv": Entry("vlmzoo.data.sources:CsvConfig", "table of picture files with labels or captions"),
        "vqav2": Entry("vlmzoo.data.benchmarks.answers:VqaV2Data", "VQAv2: questions and annotations"),
        "gqa": Entry("vlmzoo.data.benchmarks.answers:GqaData", "GQA: questions with their types and what they entail"),
        "textvqa": Entry("vlmzoo.data.benchmarks.answers:TextVqaData", "TextVQA, with or without OCR tokens in the question"),
        "vizwiz": Entry("vlmzoo.data.benchmarks.answers:VizWizData", "VizWiz: questions of blind people"),
        "scienceqa": Entry("vlmzoo.data.benchmarks.choices:ScienceQaData", "ScienceQA: problems and their splits"),
        "mmbench": Entry("vlmzoo.data.benchmarks.choices:MmBenchData", "MMBench: a table with its pictures"),
        "seed_bench": Entry("vlmzoo.data.benchmarks.choices:SeedBenchData", "SEED-Bench: pictures, and frames of videos"),
        "pope": Entry("vlmzoo.data.benchmarks.yes_no:PopeData", "POPE: is this object there? random, popular, adversarial"),
        "mme": Entry("vlmzoo.data.benchmarks.yes_no:MmeData", "MME: a folder a category, two questions a picture"),
        "llava_wild": Entry("vlmzoo.data.benchmarks.judged:LlavaWildData", "LLaVA-Bench (in the wild), with reference answers"),
        "mm_vet": Entry("vlmzoo.data.benchmarks.judged:MmVetData", "MM-Vet: open questions by capability"),
    },
    "tasks": {
        "zero_shot": Entry("vlmzoo.evaluate.tasks.alignment:ZeroShotConfig", "classification by similarity to class prompts (needs Aligns)"),
        "retrieval": Entry("vlmzoo.evaluate.tasks.alignment:RetrievalConfig", "recall of the paired text and picture, both ways, also within groups (needs Aligns)"),
        "vqa": Entry("vlmzoo.evaluate.tasks.answers:VqaConfig", "answers to questions by kind, pictures swapped beside (needs Speaks)"),
        "yes_no": Entry("vlmzoo.evaluate.tasks.answers:YesNoConfig", "yes/no questions with POPE's statistics (needs Speaks)"),
        "captioning": Entry("vlmzoo.evaluate.tasks.captioning:CaptioningConfig", "captions: exact match, attributes, BLEU, ROUGE-L, CIDEr, CIDEr-D (needs Speaks)"),
        "likelihood": Entry("vlmzoo.evaluate.tasks.likelihood:LikelihoodConfig", "choosing by the likelihood of candidate answers (needs Speaks)"),
        "few_shot": Entry("vlmzoo.evaluate.tasks.few_shot:FewShotConfig", "accuracy by number of examples in the prompt (needs Speaks)"),
        "vqav2": Entry("vlmzoo.evaluate.tasks.benchmarks:VqaV2Config", "VQAv2: soft accuracy, submission (needs Speaks)"),
        "gqa": Entry("vlmzoo.evaluate.tasks.benchmarks:GqaConfig", "GQA: exact match by type, consistency (needs Speaks)"),
        "textvqa": Entry("vlmzoo.evaluate.tasks.benchmarks:TextVqaConfig", "TextVQA: soft accuracy (needs Speaks)"),
        "vizwiz": Entry("vlmzoo.evaluate.tasks.benchmarks:VizWizConfig", "VizWiz: soft accuracy by type, submission (needs Speaks)"),
        "scienceqa": Entry("vlmzoo.evaluate.tasks.benchmarks:ScienceQaConfig", "ScienceQA: letters by subject, context, grade (needs Speaks)"),
        "mmbench": Entry("vlmzoo.evaluate.tasks.benchmarks:MmBenchConfig", "MMBench: circular evaluation (needs Speaks)"),
        "seed_bench": Entry("vlmzoo.evaluate.tasks.benchmarks:SeedBenchConfig", "SEED-Bench by dimension, letters or likelihood (needs Speaks)"),
        "pope": Entry("vlmzoo.evaluate.tasks.benchmarks:PopeConfig", "POPE: yes/no statistics by split (needs Speaks)"),
        "mme": Entry("vlmzoo.evaluate.tasks.benchmarks:MmeConfig", "MME: accuracy and accuracy+, perception and cognition (needs Speaks)"),
        "llava_wild": Entry("vlmzoo.evaluate.tasks.judged:LlavaWildConfig", "LLaVA-Bench (in the wild), judged against references (needs Speaks)"),
        "mm_vet": Entry("vlmzoo.evaluate.tasks.judged:MmVetConfig", "MM-Vet, judged by capability (needs Speaks)"),
    },
}  # fmt: skip
_plugins_loaded = False


def families() -> list[str]:
    """The table names: models, visions, connectors, fusions, languages, objectives, datasets, tasks."""
    return list(_TABLES)


def _table(family: str) -> dict[str, Entry]:
    if family not in _TABLES:
        raise KeyError(f"no family {family!r}; {_guess(family, _TABLES)}")
    _load_plugins()
    return _TABLES[family]


def _guess(name: str, names: Any) -> str:
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return (
        f"did you mean {close[0]!r}? (there are: {', '.join(names)})"
        if close
        else f"there are: {', '.join(names)}"
    )


def _load_plugins() -> None:
    """Call every installed entry point once; each registers names of its own."""
    global _plugins_loaded
    if _plugins_loaded:
        return
    _plugins_loaded = True
    from importlib.metadata import entry_points

    for point in entry_points(group=ENTRY_POINT_GROUP):
        point.load()()


def names(family: str) -> list[str]:
    """All names of a family."""
    return list(_table(family))


def available(family: str | None = None) -> dict[str, str]:
    """Names of a family with one line each; without an argument, the families with their names.

    Raises:
        KeyError: no such family; the message lists them.
    """
    if family is None:
        return {name: ", ".join(names(name)) for name in _TABLES}
    return {name: entry.about for name, entry in _table(family).items()}


def register(family: str, name: str, builder: Any, about: str = "") -> None:
    """Add a name to a family.

    Args:
        family: one of :func:`families`.
        name: what a config will say; exact, no aliases.
        builder: the object a lookup gives (a part's config class, a preset function), or ``"module:attribute"``.
        about: one line for ``available``; the first line of the builder's docstring if empty.

    Raises:
        KeyError: no such family. ValueError: the name is taken by another builder.
    """
    table = _table(family)
    known = table.get(name)
    if known is not None and known.target != builder:
        raise ValueError(f"{family}: {name!r} is already registered ({known.about})")
    first_line = (getattr(builder, "__doc__", None) or "").strip().split("\n")[0]
    table[name] = Entry(builder, about or first_line)


def lookup(family: str, name: str) -> Any:
    """The object registered as ``name``, imported now if it was lazy.

    Raises:
        KeyError: no such name; the message gives the nearest and all others.
        ImportError: the target's module or attribute is missing; the message names the table row.
    """
    table = _table(family)
    if not isinstance(name, str) or name not in table:
        raise KeyError(f"no {family.rstrip('s')} {name!r}; {_guess(name, table)}")
    target = table[name].target
    if not isinstance(target, str):
        return target
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"{family}.{name} points to {target!r}, which cannot be imported: {error}"
        ) from error
