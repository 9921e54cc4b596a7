"""Networks that people use, small, each with the symmetries that it has: tests and benchmark."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cases import CASES, Wired
from oracles import vision_networks
from slipstream.pretrained import example_input_for
from slipstream.symmetry.neuron_groups import NeuronGroups


@dataclass(frozen=True)
class Network:
    """A network, an input, and how many groups it has: of a "size", or of a "size in parent's"."""

    build: Callable[[], nn.Module]
    inputs: Callable[[nn.Module], Any]
    expected: dict[str, int] = field(default_factory=dict)


def symmetries(groups: NeuronGroups) -> dict[str, int]:
    """Count the groups of a network by their sizes, and by those of their parents."""
    sizes = groups.sizes()
    kinds = (
        f"{group.size}"
        + " in " * bool(group.parents)
        + "x".join(str(sizes[p]) for p in group.parents)
        for group in groups.groups
    )
    return dict(Counter(kinds))


def noise(*shape: int) -> Callable[[Any], Tensor]:
    return lambda _: torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def case(name: str, expected: dict[str, int]) -> Network:
    return Network(CASES[name].model, lambda _: CASES[name].inputs(), expected)


def vision(name: str, expected: dict[str, int] | None = None, **options: Any) -> Network:
    build = partial(vision_networks.build, name, **options)
    return Network(build, noise(2, 3, 64, 64), expected or {})


def transformers_model(name: str, expected: dict[str, int], **settings: Any) -> Network:
    """A model of transformers; the configuration's class is named after the model's."""

    def build() -> nn.Module:
        import transformers

        kind = getattr(transformers, name)
        return kind(kind.config_class(**settings))

    return Network(build, example_input_for, expected)


def timm_network(
    name: str, expected: dict[str, int] | None = None, *, size: int = 64, **settings: Any
) -> Network:
    def build() -> nn.Module:
        import timm

        if name in timm.list_models():
            return timm.create_model(name, **settings)
        return getattr(timm.models, name)(**settings)

    return Network(build, noise(2, 3, size, size), expected or {})


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0].mean(1))


def recurrent(layer: Any, width: int, expected: dict[str, int], **settings: Any) -> Network:
    def build() -> nn.Module:
        return Recurrent(layer(5, 7, batch_first=True, **settings), width)

    return Network(build, noise(2, 4, 5), expected)


class Attending(nn.Module):
    def __init__(self, **settings: Any) -> None:
        super().__init__()
        self.embed, self.memory = nn.Linear(5, 12), nn.Linear(5, settings.get("kdim", 12))
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True, **settings)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        queries, keys = self.embed(x), self.memory(x)
        return self.head(self.attention(queries, keys, keys)[0])


def attending(expected: dict[str, int], **settings: Any) -> Network:
    return Network(lambda: Attending(**settings), noise(2, 4, 5), expected)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True)
    return nn.Sequential(nn.Linear(5, 12), nn.TransformerEncoder(layer, 2), nn.Linear(12, 3))


def decoder() -> nn.Module:
    layer = nn.TransformerDecoderLayer(12, 3, 20, batch_first=True, norm_first=True)

    def wiring(self: Any, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.decoder(self.embed(x), self.memory(x), tgt_mask=mask))

    return Wired(
        wiring,
        embed=nn.Linear(5, 12),
        memory=nn.Linear(5, 12),
        decoder=nn.TransformerDecoder(layer, 2),
        head=nn.Linear(12, 3),
    )


def swiglu() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))

    return Wired(wiring, gate=nn.Linear(5, 9), up=nn.Linear(5, 9), down=nn.Linear(9, 3))


def fused_swiglu() -> nn.Module:
    def wiring(self: Any, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(functional.silu(gate) * up)

    return Wired(wiring, gate_up=nn.Linear(5, 18), down=nn.Linear(9, 3))


TEXT = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 32,
}
IMAGE = {**TEXT, "image_size": 12, "patch_size": 4, "num_labels": 5}
# The residual stream, the heads, inside of each q with k and v with o, and the units of the MLPs.
ENCODER = {"24": 1, "4": 2, "6 in 4": 4, "40": 2}
# Key/value heads, query heads of each, and v with o; the planes of the positions pin q and k.
ROTARY = {"24": 1, "2": 2, "2 in 2": 2, "6 in 2": 2, "40": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2, "head_dim": 6, "pad_token_id": 0}
LLAMA = transformers_model("LlamaForCausalLM", ROTARY, **GROUPED)


def lora_llama() -> nn.Module:
    import peft

    wanted = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj", "down_proj"])
    return peft.get_peft_model(LLAMA.build(), wanted)


def unet_2d_condition() -> nn.Module:
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=10,
        attention_head_dim=2,
        norm_num_groups=4,
    )


def conditioned(_: Any) -> dict[str, Any]:
    return {
        "sample": noise(2, 3, 8, 8)(_),
        "timestep": torch.tensor([3, 7]),
        "encoder_hidden_states": noise(2, 5, 10)(_),
        "return_dict": False,
    }


NETWORKS: dict[str, Network] = {
    "mlp": case("mlp", {"8": 1, "7": 1}),
    "functional matmul": case("functional_matmul", {"8": 1}),
    "SwiGLU": Network(swiglu, noise(2, 5), {"9": 1}),
    "SwiGLU, fused": Network(fused_swiglu, noise(2, 5), {"9": 1}),
    "depthwise-separable": case("depthwise_separable", {"4": 1, "2 in 4": 1, "6": 1}),
    "concat of branches": case("concat_of_branches", {"4": 1, "5": 1}),
    "U-Net": case("unet", {"4": 1, "3": 1}),
    "squeeze-excitation": case("squeeze_excitation", {"6": 1, "4": 1}),
    "LSTM": recurrent(nn.LSTM, 7, {"7": 1}),
    "LSTM, 2 layers, 2 directions": recurrent(
        nn.LSTM, 14, {"7": 4}, num_layers=2, bidirectional=True
    ),
    "LSTM, projected": recurrent(nn.LSTM, 4, {"7": 2, "4": 2}, num_layers=2, proj_size=4),
    "GRU": recurrent(nn.GRU, 7, {"7": 1}),
    "GRU, 2 layers, 2 directions": recurrent(
        nn.GRU, 14, {"7": 4}, num_layers=2, bidirectional=True
    ),
    "RNN": recurrent(nn.RNN, 7, {"7": 2}, num_layers=2),
    "MultiheadAttention": attending({"12": 2, "3": 1, "4 in 3": 2}),
    "MultiheadAttention, separate": attending(
        {"12": 2, "10": 1, "3": 1, "4 in 3": 2}, kdim=10, vdim=10, bias=False
    ),
    "TransformerEncoder": Network(encoder, noise(2, 4, 5), {"12": 1, "3": 2, "4 in 3": 4, "20": 2}),
    # The columns of a fused projection list the stream and the memory alike.
    "TransformerDecoder": Network(decoder, noise(2, 4, 5), {"12": 1, "3": 4, "4 in 3": 8, "20": 2}),
    "vit (torchvision)": Network(
        vision_networks.build_vit, noise(2, 3, 12, 12), {"24": 1, "3": 2, "8 in 3": 4, "40": 2}
    ),
    "resnet18": vision("resnet18", {"64": 3, "128": 3, "256": 3, "512": 3}),
    "resnet50": vision("resnet50", {"64": 7, "256": 13, "128": 8, "512": 7, "1024": 1, "2048": 1}),
    "vgg11_bn": vision("vgg11_bn", {"64": 1, "128": 1, "256": 2, "512": 4, "4096": 2}),
    "convnext_tiny": vision(
        "convnext_tiny",
        {"96": 1, "384": 4, "192": 1, "768": 4, "1536": 9, "3072": 3},
    ),
    **{
        name: vision(name)
        for name in ("regnet_y_400mf", "mobilenet_v2", "densenet121", "shufflenet_v2_x1_0")
    },
    "googlenet": vision("googlenet", aux_logits=False, init_weights=False),
    "ViT": transformers_model("ViTForImageClassification", ENCODER, **IMAGE),
    "BERT": transformers_model("BertForMaskedLM", ENCODER, **TEXT),
    "RoBERTa": transformers_model("RobertaForSequenceClassification", {**ENCODER, "24": 2}, **TEXT),
    "T5": transformers_model(
        "T5ForConditionalGeneration",
        {"24": 1, "4": 4, "5 in 4": 12, "40": 4},
        vocab_size=50,
        d_model=24,
        d_kv=5,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    ),
    "GPT-2": transformers_model(
        "GPT2LMHeadModel",
        {"24": 1, "4": 2, "6 in 4": 4, "96": 2},
        vocab_size=50,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=4,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "Llama": LLAMA,
    "Llama, tied": transformers_model(
        "LlamaForCausalLM", ROTARY, tie_word_embeddings=True, **GROUPED
    ),
    "Llama, eager": transformers_model(
        "LlamaForCausalLM", ROTARY, attn_implementation="eager", **GROUPED
    ),
    "Qwen3": transformers_model("Qwen3ForCausalLM", ROTARY, **GROUPED),
    "Mixtral": transformers_model(
        "MixtralForCausalLM",
        {"24": 1, "2": 2, "2 in 2": 2, "6 in 2": 2, "3": 2, "40 in 3": 2},
        num_local_experts=3,
        **GROUPED,
    ),
    "Phi-3": transformers_model("Phi3ForCausalLM", ROTARY, **GROUPED),
    "GPT-OSS": transformers_model(
        "GptOssForCausalLM",
        {"24": 1, "2": 2, "2 in 2": 2, "6 in 2": 2, "3": 2, "40 in 3": 2},
        num_local_experts=3,
        num_experts_per_tok=2,
        **GROUPED,
    ),
    # One head of keys and values for all, so inside of every head the orders are the same.
    "GPT-BigCode": transformers_model(
        "GPTBigCodeForCausalLM",
        {"24": 1, "4": 2, "6": 4, "96": 2},
        vocab_size=50,
        n_positions=32,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_inner=96,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "ALBERT": transformers_model(
        "AlbertForMaskedLM",
        {"10": 1, "24": 1, "4": 1, "6 in 4": 2, "40": 1},
        embedding_size=10,
        **TEXT,
    ),
    "BEiT": transformers_model(
        "BeitForImageClassification", ENCODER, use_relative_position_bias=True, **IMAGE
    ),
    "BART": transformers_model(
        "BartForConditionalGeneration",
        {"24": 1, "4": 3, "6 in 4": 6, "40": 2},
        vocab_size=50,
        d_model=24,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        max_position_embeddings=32,
    ),
    "Gemma": transformers_model("GemmaForCausalLM", ROTARY, **GROUPED),
    "Whisper": transformers_model(
        "WhisperForConditionalGeneration",
        {"24": 3, "4": 6, "6 in 4": 12, "40": 4},
        vocab_size=50,
        num_mel_bins=4,
        d_model=24,
        max_source_positions=6,
        max_target_positions=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        pad_token_id=0,
        decoder_start_token_id=1,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "CLIP": transformers_model(
        "CLIPModel",  # it returns its embeddings: the projection's 10 features keep their order
        {"24": 2, "4": 4, "6 in 4": 8, "40": 4},
        text_config={**TEXT, "bos_token_id": 1, "eos_token_id": 2},
        vision_config=IMAGE,
        projection_dim=10,
    ),
    "Swin": transformers_model(
        "SwinForImageClassification",
        {"12": 1, "2": 2, "6 in 2": 4, "48": 2, "24": 1, "4": 2, "6 in 4": 4, "96": 2},
        image_size=16,
        patch_size=2,
        embed_dim=12,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        num_labels=5,
    ),
    "ConvNeXt-V2": transformers_model(
        "ConvNextV2ForImageClassification",
        {"6": 1, "24": 1, "10": 1, "40": 1, "12": 1, "48": 2, "14": 1, "56": 1},
        image_size=32,
        hidden_sizes=[6, 10, 12, 14],
        depths=[1, 1, 2, 1],
        num_labels=5,
    ),
    "Mamba": transformers_model(
        "MambaForCausalLM",
        {"24": 1, "48": 2, "5": 2, "3": 2},
        vocab_size=50,
        hidden_size=24,
        state_size=5,
        num_hidden_layers=2,
        time_step_rank=3,
        conv_kernel=4,
        expand=2,
    ),
    "Falcon-H1": transformers_model(
        "FalconH1ForCausalLM",
        {"16": 1, "2": 4, "4 in 2": 4, "4 in 2x4": 2, "6 in 2": 2, "2 in 2": 2, "24": 2},
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        mamba_d_ssm=32,
        mamba_n_heads=8,
        mamba_d_head=4,
        mamba_n_groups=2,
        mamba_d_state=6,
        mamba_chunk_size=8,
        ssm_multipliers=[0.35, 0.25, 0.36, 0.5, 0.37],
    ),
    "EfficientNet (timm)": timm_network("efficientnet_b0"),
    "Swin (timm)": timm_network(
        "swin_tiny_patch4_window7_224",
        {"24": 1, "3": 2, "8 in 3": 4, "96": 2, "48": 1, "6": 2, "8 in 6": 4, "192": 2},
        img_size=64,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(3, 6),
        window_size=4,
    ),
    "MLP-Mixer (timm)": timm_network(
        "MlpMixer",
        {"24": 1, "12": 2, "96": 2},
        size=12,
        img_size=12,
        patch_size=4,
        embed_dim=24,
        num_blocks=2,
    ),
    "CaiT (timm)": timm_network(
        "Cait",
        {"24": 1, "3": 20, "8 in 3": 16, "96": 8},
        size=32,
        img_size=32,
        patch_size=4,
        embed_dim=24,
        depth=6,
        num_heads=3,
    ),
    "EVA-02 (timm)": timm_network(
        "Eva",
        {"24": 1, "3": 2, "8 in 3": 2, "96": 2},
        size=16,
        img_size=16,
        patch_size=4,
        embed_dim=24,
        depth=2,
        num_heads=3,
        swiglu_mlp=True,
        use_rot_pos_emb=True,
        num_classes=5,
    ),
    "Swin-v2 (timm)": timm_network(
        "swinv2_tiny_window8_256",
        {"24": 1, "3": 2, "8 in 3": 4, "512": 4, "96": 2, "48": 1}
        | {"6": 2, "8 in 6": 4, "192": 2},
        img_size=64,
        embed_dim=24,
        depths=(2, 2),
        num_heads=(3, 6),
        window_size=4,
    ),
    "VOLO (timm)": timm_network(
        "VOLO",
        {"64": 3, "24": 1, "3": 2, "8 in 3": 2, "72": 2, "48": 1, "6": 4, "8 in 6": 8, "144": 4},
        layers=(2, 1, 0, 1),
        img_size=64,
        embed_dims=(24, 48, 48, 48),
        num_heads=(3, 6, 6, 6),
        num_classes=5,
    ),
    "UNet2DCondition (diffusers)": Network(unet_2d_condition, conditioned),
    "Llama with LoRA": Network(
        lora_llama, lambda model: example_input_for(model.get_base_model()), {**ROTARY, "3": 6}
    ),
}
