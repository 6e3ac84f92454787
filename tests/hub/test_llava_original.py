"""The LLaVA project's layouts: files under its own key names are read to the logits of stock llava, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tests.helpers import relative, vision_lm
from vlmzoo.compose import build, processor_for
from vlmzoo.config import ConfigError
from vlmzoo.folders import export, load, merge
from vlmzoo.hub import adapter
from vlmzoo.hub.files import read_whole
from vlmzoo.run import read_run

SIDE, PATCH, WIDTH, TEXT_WIDTH, PATCHES = 28, 14, 32, 48, 4
WORDS = ["a red circle and a blue square", "what is this? USER: ASSISTANT: describe the picture"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Without ``<image>``, as Vicuna's."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    core.train_from_iterator(
        WORDS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )


ROWS = len(tokenizer())
VISION = {
    "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": PATCH, "hidden_act": "quick_gelu",
}  # fmt: skip
TEXT = {
    "hidden_size": TEXT_WIDTH, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": ROWS, "max_position_embeddings": 256, "rms_norm_eps": 1e-5,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


class World:
    """A stock llava of random weights, written by hand in the project's layouts."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.folder = folder
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(**VISION).to_dict(), text_config=LlamaConfig(**{**TEXT, "vocab_size": ROWS + 1}).to_dict(),
            image_token_index=ROWS, vision_feature_layer=-2, vision_feature_select_strategy="default", image_seq_length=PATCHES,
        )  # fmt: skip
        self.stock = LlavaForConditionalGeneration(config).eval()
        state = self.stock.state_dict()
        self.tower = {
            n.removeprefix("model.vision_tower."): t for n, t in state.items() if "vision_tower" in n
        }
        self.language = {
            **{n.replace("model.language_model.", "model."): t for n, t in state.items() if "language_model" in n},
            "lm_head.weight": state["lm_head.weight"],
        }  # fmt: skip
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            self.language[name] = self.language[name][:ROWS].clone()
        self.projector = {
            f"model.mm_projector.{place}.{kind}": state[f"model.multi_modal_projector.linear_{number}.{kind}"]
            for number, place in ((1, 0), (2, 2))
            for kind in ("weight", "bias")
        }
        clip = CLIPVisionModel(CLIPVisionConfig(**VISION))
        clip.load_state_dict(self.tower)
        clip.save_pretrained(folder / "clip")
        CLIPImageProcessorPil(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        ).save_pretrained(folder / "clip")
        vicuna = LlamaForCausalLM(LlamaConfig(**TEXT))
        vicuna.load_state_dict(self.language)
        vicuna.save_pretrained(folder / "vicuna")
        tokenizer().save_pretrained(folder / "vicuna")

    def config(self, **more: Any) -> dict[str, Any]:
        return {
            **LlamaConfig(**TEXT).to_dict(), "model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"],
            "mm_vision_tower": str(self.folder / "clip"), "mm_hidden_size": WIDTH, "mm_projector_type": "mlp2x_gelu",
            "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch", "image_aspect_ratio": "pad",
            "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "use_mm_proj": True, **more,
        }  # fmt: skip

    def write(self, name: str, with_tokenizer: bool = True, **more: Any) -> Path:
        target = self.folder / name
        target.mkdir()
        (target / "config.json").write_text(json.dumps(self.config(**more)))
        if with_tokenizer:
            tokenizer().save_pretrained(target)
        return target

    def inputs(self) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[1, 5, *[ROWS] * PATCHES, 9, 12, 20], [1, *[ROWS] * PATCHES, 7, 8, 9, 4]])
        pictures = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def same(model: Any, world: World) -> float:
    """Against stock llava; the logit of ``<image>`` itself is never used."""
    inputs = world.inputs()
    with torch.no_grad():
        ours, theirs = model(**inputs).logits, world.stock(**inputs).logits
    return relative(ours[..., :ROWS], theirs[..., :ROWS])


@pytest.mark.parametrize("with_tower", [False, True])
def test_whole_in_shards_of_pickles(world: World, with_tower: bool) -> None:
    folder = world.write(f"whole-{with_tower}")
    tensors = {**world.language, **world.projector}
    if with_tower:
        tensors |= {f"model.vision_tower.vision_tower.vision_model.{n}": t for n, t in world.tower.items()}
    names = sorted(tensors)
    shards = {
        "pytorch_model-00001-of-00002.bin": names[::2],
        "pytorch_model-00002-of-00002.bin": names[1::2],
    }
    for file, members in shards.items():
        torch.save({n: tensors[n] for n in members}, folder / file)
    index = {n: file for file, members in shards.items() for n in members}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    model, processor = load(folder)
    assert same(model, world) < 1e-6
    assert processor.transform.fit == "pad" and processor.template == "vicuna_v1"
    assert model.config.image_token_id == ROWS


def test_projector_alone_beside_its_base(world: World, tmp_path: Path) -> None:
    folder = world.write("llava-pretrain", with_tokenizer=False, _name_or_path=str(world.folder / "vicuna"))
    torch.save(world.projector, folder / "mm_projector.bin")
    model, _ = load(folder)
    assert same(model, world) < 1e-6
    other, _ = load(folder, base=world.folder / "vicuna")
    assert same(other, world) < 1e-6


def test_lora_as_peft_wrote_it(world: World) -> None:
    peft = pytest.importorskip("peft")
    base = AutoModelForCausalLM.from_pretrained(world.folder / "vicuna", dtype=torch.float32)
    adapted = peft.get_peft_model(
        base,
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    folder = world.write("llava-lora", with_tokenizer=False)
    adapted.save_pretrained(folder)
    torch.save(
        {f"base_model.model.{n}": t for n, t in world.projector.items()}, folder / "non_lora_trainables.bin"
    )
    model, processor = load(folder)
    ids = torch.tensor([[1, 5, 9, 12, 20, 33]])
    with torch.no_grad():
        wanted = adapted(input_ids=ids).logits
        assert relative(model(input_ids=ids).logits[..., :ROWS], wanted) < 1e-6
    assert torch.equal(model.connector.up.weight, world.projector["model.mm_projector.0.weight"])
    model.save_pretrained(folder / "ours")
    processor.save_pretrained(folder / "ours")

    merge(folder / "ours", folder / "merged")
    again, _ = load(folder / "merged")
    assert relative(again(input_ids=ids).logits[..., :ROWS], wanted) < 1e-5

    export(folder / "ours", folder / "back", "original-lora", base=str(world.folder / "vicuna"))
    read_by_peft = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(world.folder / "vicuna", dtype=torch.float32), folder / "back"
    )
    with torch.no_grad():
        assert relative(read_by_peft(input_ids=ids).logits, wanted) < 1e-6
    others = torch.load(folder / "back" / "non_lora_trainables.bin", weights_only=True)
    assert set(others) == {f"base_model.model.{n}" for n in world.projector}


def test_there_and_back_is_bit_exact(world: World, tmp_path: Path) -> None:
    folder = world.write("there")
    torch.save({**world.language, **world.projector}, folder / "pytorch_model.bin")
    model, processor = load(folder)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    assert export(tmp_path / "ours", tmp_path / "back", "original") < 1e-6
    back = read_whole(tmp_path / "back")
    assert back is not None
    tower = "model.vision_tower.vision_tower.vision_model."
    wanted = {**world.language, **world.projector, **{tower + n: t for n, t in world.tower.items()}}
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)
    again, _ = load(tmp_path / "back")
    assert same(again, world) < 1e-6
    tree = json.loads((tmp_path / "back" / "config.json").read_text())
    assert (
        tree["vocab_size"] == ROWS
        and tree["mm_projector_type"] == "mlp2x_gelu"
        and tree["model_type"] == "llava"
    )
    # the language model is a Llama to anybody who leaves the mm_* names out
    llama = LlamaForCausalLM(LlamaConfig(**TEXT))
    missing, unexpected = llama.load_state_dict(back, strict=False)
    assert not missing and all("mm_projector" in n or "vision_tower" in n for n in unexpected)


def test_the_projects_model_in_stock_transformers_and_back(world: World, tmp_path: Path) -> None:
    """The way from published weights to a server: their layout, ours, stock; and the same bits home again."""
    folder = world.write("to-stock")
    torch.save({**world.language, **world.projector}, folder / "pytorch_model.bin")
    assert export(folder, tmp_path / "stock") < 1e-6
    stock, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "stock", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert same(stock, world) < 1e-6
    files = {file.name for file in (tmp_path / "stock").iterdir()}
    assert {
        "processor_config.json",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
    } <= files
    stock_processor = AutoProcessor.from_pretrained(tmp_path / "stock")
    chat = [
        {"role": role, "content": [{"type": "text", "text": text}]}
        for role, text in (("user", "what is this?"), ("assistant", "a red circle"))
    ]
    written = stock_processor.apply_chat_template(
        chat, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
    )
    answer = written["input_ids"][written["assistant_masks"].bool()]
    assert stock_processor.tokenizer.decode(answer).strip() == "a red circle</s>"
    square = stock_processor.image_processor  # image_aspect_ratio: pad
    wide = torch.randint(0, 256, (10, 24, 3), generator=torch.Generator().manual_seed(0)).byte().numpy()
    _, processor = load(folder)
    ours = processor.prompts([{"images": [{"image": Image.fromarray(wide)}], "id": "wide", "parts": [
        {"role": "user", "type": "image", "text": None}]}])["pixel_values"]  # fmt: skip
    assert torch.equal(square(Image.fromarray(wide), return_tensors="pt")["pixel_values"], ours)
    assert export(tmp_path / "stock", tmp_path / "home", "original") < 1e-6
    back = read_whole(tmp_path / "home")
    assert back is not None
    for name, tensor in {**world.language, **world.projector}.items():
        assert torch.equal(back[name], tensor), name


def test_our_projector_is_theirs(world: World, tmp_path: Path) -> None:
    folder = world.write("stage2")
    torch.save({**world.language, **world.projector}, folder / "pytorch_model.bin")
    model, processor = load(folder)
    model.save_pretrained(tmp_path / "ours")
    processor.save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "one", "original-projector", base=world.folder / "vicuna")
    found = torch.load(tmp_path / "one" / "mm_projector.bin", weights_only=True)
    assert found.keys() == world.projector.keys()
    assert all(torch.equal(found[n], t) for n, t in world.projector.items())


PROJECTORS: dict[str, tuple[dict[str, Any], Any]] = {  # the project's type: our connector, and what it builds
    "linear": ({"kind": "linear"}, lambda: nn.Linear(WIDTH, WIDTH)),
    "identity": ({"kind": "identity"}, nn.Identity),
    **{
        f"mlp{depth}x_gelu": (
            {"kind": "mlp", "depth": depth},
            lambda depth=depth: nn.Sequential(
                nn.Linear(WIDTH, WIDTH), *[layer for _ in range(depth - 1) for layer in (nn.GELU(), nn.Linear(WIDTH, WIDTH))]
            ),
        )
        for depth in (1, 2, 3, 4)
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", PROJECTORS)
def test_every_kind_of_projector_both_ways(kind: str, tmp_path: Path) -> None:
    connector, theirs = PROJECTORS[kind]
    vision = {"kind": "clip", **VISION, "feature_layer": -2}
    language = {"kind": "llama", **TEXT, "hidden_size": WIDTH, "vocab_size": 512}
    tree = {"class": "vision_lm", "vision": vision, "connector": connector, "language": language}
    model = build(tree).eval()
    model.save_pretrained(tmp_path / "ours")
    processor_for(model).save_pretrained(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs", "original")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert config["mm_projector_type"] == kind
    assert (config["mm_hidden_size"], config["vocab_size"], config["tokenizer_model_max_length"]) == (
        WIDTH,
        512,
        256,
    )
    tensors = read_whole(tmp_path / "theirs")
    assert tensors is not None
    mark = "model.mm_projector."
    built = theirs()
    built.load_state_dict(
        {name.removeprefix(mark): t for name, t in tensors.items() if name.startswith(mark)}
    )
    features = torch.randn(2, 1, PATCHES, WIDTH)
    assert torch.equal(model.connector(features), built(features[:, 0]))
    again, _ = load(tmp_path / "theirs")
    assert again.config.connector == model.config.connector
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())


def test_a_connector_starts_from_a_published_projector(world: World, tmp_path: Path) -> None:
    """As stage 2 does: from the project's file or folder, from a folder of ours, from adapters."""
    base = {"class": "vision_lm", "fusion": "splice", "connector": {"kind": "mlp"}, "image_token_id": 2}
    tree = {**base, "vision": {"from": str(world.folder / "clip"), "kind": "clip", "feature_layer": -2},
            "language": {"from": str(world.folder / "vicuna"), "kind": "llama"}}  # fmt: skip
    torch.save(
        {f"x.{name}": tensor.half() for name, tensor in world.projector.items()},
        tmp_path / "mm_projector.bin",
    )
    for source in (tmp_path, tmp_path / "mm_projector.bin"):
        model = build(tree, connector={"from": str(source)})
        for ours, theirs in (("up", 0), ("down", 2)):
            wanted = world.projector[f"model.mm_projector.{theirs}.weight"].half().float()
            assert torch.equal(getattr(model.connector, ours).weight, wanted)
        assert model.config.starts["connector"] == str(source) and "from" not in model.config.connector
    linear = build(tree, connector="linear")
    linear.save_pretrained(tmp_path / "linear")
    again = build(tree, connector={"from": str(tmp_path / "linear")})  # its kind comes along
    assert torch.equal(again.connector.project.weight, linear.connector.project.weight)
    adapter.save(
        linear,
        tmp_path / "learnt",
        tmp_path / "linear",
        ["connector.project.weight", "connector.project.bias"],
    )
    again = build(tree, connector={"from": str(tmp_path / "learnt")})
    assert torch.equal(again.connector.project.weight, linear.connector.project.weight)

    run = read_run({
        "model": {**tree, "connector": {"kind": "mlp", "from": str(tmp_path)}}, "learn": {"connector": 1e-3},
        "streams": {"a": {"data": "scenes", "objective": "language", "batch_size": 2}}, "optim": {"steps": 1}, "out": "x",
    }, ["model.image_token_id=2", f"processor.tokenizer={world.folder / 'vicuna'}"])  # fmt: skip
    assert torch.equal(build(run.model).connector.up.bias, model.connector.up.bias)
    for connector, message in (
        (
            {"from": str(tmp_path), "depth": 3},
            "mm_projector.bin: the weights do not fit the model: 2 missing: down.bias",
        ),
        ({"from": str(tmp_path), "kind": "linear"}, "mis-shaped|no rule|missing"),
        ({"from": str(tmp_path / "linear"), "bias": False}, "does not fit"),
        ({"from": str(tmp_path / "nowhere")}, "is no file, folder or Hub id with a projector"),
        ({"form": str(tmp_path)}, "model.connector.form: unknown key"),
    ):
        with pytest.raises(ConfigError, match=message):
            build(tree, connector=connector)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mm_projector_type": "cabstractor"}, "cabstractor"),
        ({"mm_projector_type": "mlp3x_gelu"}, "2 missing: connector.down"),
        ({"mm_use_im_start_end": True}, "mm_use_im"),
        ({"mm_vision_tower": None}, "mm_vision_tower"),
        ({"mm_vision_select_feature": "cls"}, "mm_vision_select_feature"),
    ],
)
def test_what_is_not_here_is_named(world: World, tmp_path: Path, more: dict[str, Any], message: str) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(world.config(**more)))
    tokenizer().save_pretrained(folder)
    torch.save({**world.language, **world.projector}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_broken_folders(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(world.config()))
    tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="holds no weights"):
        load(folder)
    torch.save({**world.language}, folder / "pytorch_model.bin")
    with pytest.raises(ConfigError, match=r"4 missing.*connector"):
        load(folder)
    (folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../evil.bin"}}))
    with pytest.raises(ConfigError, match="outside the folder"):
        load(folder)


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("ran code",))


def test_pickles_run_no_code(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model.mm_projector.0.weight": Evil()}, tmp_path / "mm_projector.bin")
    with pytest.raises(ConfigError, match="cannot be read as weights"):
        build("llava-tiny", connector={"from": str(tmp_path)})
    assert "ran code" not in capsys.readouterr().out


def test_what_the_layout_cannot_hold(tmp_path: Path) -> None:
    for name, changes, message in (
        ("gated", {"fusion": "gated_cross_attention"}, "LLaVA splices"),
        ("perceiver", {"connector": "perceiver"}, "GELU MLP, a linear layer or none"),
        ("gpt2", {"language": "gpt2"}, "Llama"),
        ("siglip", {"vision": "siglip"}, "CLIP"),
    ):
        model, processor = vision_lm(**changes)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=message):
            export(tmp_path / name, tmp_path / f"{name}-out", "original")
        assert not (tmp_path / f"{name}-out").exists()
    with pytest.raises(ConfigError, match="--base: missing"):
        export(tmp_path / "gated", tmp_path / "x", "original-lora")
    with pytest.raises(ConfigError, match="did you mean 'original'"):
        export(tmp_path / "gated", tmp_path / "x", "orignal")
